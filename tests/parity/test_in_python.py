"""`sdpo.audit`: a function or a name in, a typed report out."""

import os
from pathlib import Path
from typing import Any

import pytest

from sdpo.parity.audit.request import UsageError
from sdpo.parity.capabilities.declared import CapabilitiesError
from sdpo.parity.compare.statuses import Verdict
from sdpo.parity.in_python import assert_parity, audit, candidate_name
from tests.helpers import candidates, golden_subset, narrow_losses
from tests.helpers.golden_subset import subset

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subset(tmp_path_factory.mktemp("goldens"), ["P-L001"])


def test_a_function_is_audited_and_nothing_is_left_behind(
    goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    before = os.environ.get("PYTHONPATH")
    run = audit(candidates.zero_gradient, goldens=[goldens])
    assert (run.verdict, run.first_stage) == (Verdict.DIVERGENT, "gradient")
    assert os.environ.get("PYTHONPATH") == before
    assert not list(tmp_path.iterdir())


def test_reports_are_written_where_asked(goldens: Path, tmp_path: Path):
    name = f"{candidates.__file__}:correct"
    run = audit(name, goldens=[goldens], stages=["gradient"], out=tmp_path)
    assert run.verdict == Verdict.PASS
    assert len(list(tmp_path.glob("*/report.json"))) == 1


def test_a_name_that_cannot_be_loaded_is_a_report_that_says_so(tmp_path: Path):
    run = audit(str(tmp_path / "none.py:loss"))
    assert (run.verdict, run.started) == (Verdict.ERROR, False)
    assert "no file" in run.message


def test_what_another_process_cannot_import_is_refused():
    def local() -> None: ...

    unnamed: list[Any] = [local, lambda: None, len, 3]
    for candidate in unnamed:
        with pytest.raises(UsageError, match="not at the top of a module"):
            candidate_name(candidate)
    with pytest.raises(UsageError, match="unknown stages"):
        audit("sdpo", stages=["tails"])


def test_a_function_is_named_by_its_file_and_place():
    assert candidate_name(subset) == f"{golden_subset.__file__}:subset"
    assert candidate_name("trl") == "trl"


def test_a_loss_is_asserted_in_two_lines_and_fails_with_the_diagnosis():
    knobs: dict[str, Any] = {"alpha": {0.5}, "topk": False}
    run = assert_parity(narrow_losses.jensen_shannon, **knobs)
    assert run.exit_code == 0
    assert run.compared_cases > 100
    with pytest.raises(AssertionError) as caught:
        assert_parity(narrow_losses.jensen_shannon_doubled, **knobs)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("DIVERGENT candidate=")
    assert any("matters: " in line and "norm x 2 (median)" in line for line in lines)
    with pytest.raises(CapabilitiesError, match="assert_parity: unknown alhpa"):
        assert_parity(narrow_losses.jensen_shannon, alhpa={0.5})
