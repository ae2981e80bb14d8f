"""An audit in a process of its own: it ends with a verdict, and twice it gives the same bytes."""

import json
import os
from pathlib import Path

from golden_subset import subset
from report_schema import VALIDATOR

from sdpo.parity.audit import Request, audit
from sdpo.parity.consistency import check
from sdpo.parity.launch import run_worker
from sdpo.parity.regate import policy_of, regate
from sdpo.parity.worker import plain

HERE = Path(__file__).parent / "candidates.py"
SEARCHED = ("P-L002", "P-L030", "P-L148")


def test_candidate_that_ends_the_process_is_an_error(tmp_path, goldens):
    request = {
        "candidate": f"{HERE}:ends_the_process",
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
        "candidate": f"{HERE}:off_by_a_percent",
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
