"""Two audits of a trainer, each in a process of its own, give the same bytes apart from times."""

import json
import os
import subprocess
import sys

import msgspec
import pytest
from msgspec import structs

from sdpo.parity.audit.report_files import document
from sdpo.parity.report.rejudge import policy_of, regate
from sdpo.parity.report.run_report import RunReport

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SCENARIOS = ("T01", "T03", "T17", "T31")
WORKER = f"""
import functools, sys
from sdpo.parity.audit import worker
from sdpo.parity.trainers.judge import run_scenarios as family
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
some = [scenario for scenario in SCENARIOS if scenario.id in {SCENARIOS}]
family.run_trainer_family = functools.partial(family.run_trainer_family, scenarios=some)
worker.main(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("candidate", ["sdpo-trainer", "trl"])
def test_two_audits_of_a_trainer_give_the_same_bytes_apart_from_times(candidate, tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"candidate": candidate}))
    runs = []
    for seed in ("1", "2"):
        result = tmp_path / f"run{seed}.json"
        command = [sys.executable, "-c", WORKER, str(request), str(result)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        runs.append(msgspec.json.decode(result.read_bytes(), type=RunReport))
    assert {effect.scenario for effect in runs[0].trainer} == set(SCENARIOS)
    assert "HOLDS" in {row.status for row in runs[0].invariants}
    assert document([regate(runs[0], policy_of(runs[0]))]) == document(runs[:1])
    timeless = [structs.replace(run, created="", seconds=0.0) for run in runs]
    assert document(timeless[:1]) == document(timeless[1:])
