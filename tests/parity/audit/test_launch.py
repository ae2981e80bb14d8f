"""An audit in a process of its own: it ends with a verdict, and twice it gives the same bytes."""

import os

import pytest
from msgspec import structs

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.launch import run_worker
from sdpo.parity.audit.report_files import document
from sdpo.parity.audit.request import Request
from sdpo.parity.report.rejudge import policy_of, regate
from tests.helpers import candidates
from tests.helpers.golden_subset import subset
from tests.helpers.report_schema import assert_valid

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")

CANDIDATES = candidates.__file__
SEARCHED = ("P-L002", "P-L030", "P-L148")


def test_candidate_that_ends_the_process_is_an_error(tmp_path, goldens):
    request = Request(f"{CANDIDATES}:ends_the_process", goldens=(str(goldens),))
    run = run_worker(request, tmp_path)
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert "ended the process (exit code 0)" in run.message


def test_two_audits_give_the_same_bytes_apart_from_times(tmp_path, monkeypatch):
    """Also where hashes differ.

    All pairs of faults are tried; few act on the sampled case, which comes first.
    """
    goldens = subset(tmp_path / "goldens", SEARCHED)
    request = Request(f"{CANDIDATES}:off_by_a_percent", goldens=(str(goldens),))
    monkeypatch.setenv("PYTHONHASHSEED", "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2")
    runs = [run_worker(request, tmp_path), audit(request)]
    assert runs[0].explained_by == []
    assert runs[0].explanation_search is not None
    assert runs[0].explanation_search.pairs_tried > 4000
    assert_valid(*runs)
    for run in runs:
        assert document([regate(run, policy_of(run))]) == document([run])
    timeless = [structs.replace(run, created="", seconds=0.0) for run in runs]
    assert document(timeless[:1]) == document(timeless[1:])
