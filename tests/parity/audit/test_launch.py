"""An audit in a process of its own: it ends with a verdict, and twice it gives the same bytes."""

import json
import os

import pytest

from sdpo.parity.audit.audit import Request, audit
from sdpo.parity.audit.launch import run_worker
from sdpo.parity.audit.worker import plain
from sdpo.parity.report.rejudge import policy_of, regate
from sdpo.parity.report.validate import check
from tests.helpers import candidates
from tests.helpers.golden_subset import subset
from tests.helpers.report_schema import VALIDATOR

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")

CANDIDATES = candidates.__file__
SEARCHED = ("P-L002", "P-L030", "P-L148")


def test_candidate_that_ends_the_process_is_an_error(tmp_path, goldens):
    request = {
        "candidate": f"{CANDIDATES}:ends_the_process",
        "goldens": [str(goldens)],
        "declared": [],
        "stages": [],
        "repro": "",
    }
    run = run_worker(request, tmp_path)
    assert (run["verdict"], run["exit_code"]) == ("ERROR", 2)
    assert "ended the process (exit code 0)" in run["message"]


def test_two_audits_give_the_same_bytes_apart_from_times(tmp_path, monkeypatch):
    """Also where hashes differ.

    All pairs of faults are tried; few act on the sampled case, which comes first.
    """
    request = {
        "candidate": f"{CANDIDATES}:off_by_a_percent",
        "goldens": [str(subset(tmp_path / "goldens", SEARCHED))],
        "declared": [],
        "stages": [],
        "repro": "",
    }
    monkeypatch.setenv("PYTHONHASHSEED", "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2")
    runs = [run_worker(request, tmp_path), plain(audit(Request.from_fields(request)))]
    assert runs[0]["explained_by"] == []
    assert runs[0]["explanation_search"]["pairs_tried"] > 4000
    check(runs[0])
    VALIDATOR.validate({"schema_version": 1, "runs": runs})
    for run in runs:
        assert json.dumps(plain(regate(run, policy_of(run)))) == json.dumps(run)
        del run["created"], run["seconds"]
    assert json.dumps(runs[0]) == json.dumps(runs[1])
