"""What the audit says about correct, broken and hostile candidates, by the contract's rules."""

from pathlib import Path

import pytest

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.render.text import first_line, text_report
from tests.helpers import candidates
from tests.helpers.golden_subset import SOME, subset
from tests.helpers.report_schema import assert_valid

CANDIDATES = candidates.__file__

pytestmark = [
    pytest.mark.usefixtures("relations_once"),
    pytest.mark.usefixtures("certificates_once", "budgets_once"),
]


def judged(attribute: str, goldens: Path, **changes):
    request = Request(f"{CANDIDATES}:{attribute}", goldens=(str(goldens),), **changes)
    run = audit(request)
    assert first_line(run).split()[0] == run.verdict
    assert "\n" not in first_line(run)
    assert text_report(run).startswith(first_line(run))
    assert_valid(run)
    return run


@pytest.mark.parametrize("attribute", ["correct", "module"])
def test_correct_candidates_pass(attribute, goldens):
    run = judged(attribute, goldens)
    assert (run.verdict, run.exit_code) == ("PASS", 0)
    assert run.coverage.covered == ["aggregate", "gradient"]


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("raises", "raised RuntimeError: boom and a second line"),
        ("raises_for_alpha_zero", "alpha 0 is not implemented"),
        ("exits", "raised SystemExit"),
        ("wrong_shape", "returned shape (1,); expected a scalar"),
        ("per_token", "expected a scalar"),
        ("mutates", "changed its input response_mask in place"),
        ("needs_a_package", "needs the package 'a_package_that_is_not_there'"),
        ("returns_nothing", "returned NoneType"),
    ],
)
def test_broken_candidates_are_errors_and_the_other_cases_still_run(attribute, words, goldens):
    run = judged(attribute, goldens)
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert words in run.message
    assert "stage" in run.message
    assert "P-L0" in run.message
    assert len(run.cases) == len(SOME)


def test_a_failure_in_some_cases_leaves_the_others_judged(goldens):
    run = judged("raises_for_alpha_zero", goldens)
    failed = {case.id for case in run.cases if case.status == "ERROR"}
    assert failed == {"P-L001", "P-L002"}
    assert all(c.status in ("MATCH", "PASS") for c in run.cases if c.id not in failed)


@pytest.mark.parametrize(
    ("attribute", "first"),
    [
        ("detached", "gradient"),
        ("zero_gradient", "gradient"),
        ("gradient_times_four", "gradient"),
        ("teaches_the_teacher", "gradient"),
        ("no_temperature", "log_probs"),
    ],
)
def test_divergent_candidates_are_named_with_their_first_stage(attribute, first, goldens):
    run = judged(attribute, goldens)
    assert (run.verdict, run.exit_code, run.first_stage) == ("DIVERGENT", 1, first)


def test_nan_is_divergent(goldens):
    run = judged("not_a_number", goldens)
    assert (run.verdict, run.first_observed) == ("DIVERGENT", "aggregate")


def test_random_and_stateful_candidates_never_pass(float32_goldens):
    run = judged("random_loss", float32_goldens)
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    run = judged("keeps_state", float32_goldens)
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    assert any("state" in reason for reason in run.reasons)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py:f", "no file absent.py"),
        (f"{CANDIDATES}:absent", "no attribute 'absent'"),
        ("absent_module:f", "absent_module"),
        (f"{CANDIDATES}:number", "int is no candidate"),
        (f"{CANDIDATES}:needs_a_secret", "needs the argument 'secret'"),
        (f"{CANDIDATES}:takes_one_argument", "cannot tell what to give result"),
    ],
)
def test_unknown_candidates_are_errors(name, words, goldens):
    run = audit(Request(name, goldens=(str(goldens),)))
    assert run.verdict == "ERROR"
    assert words in run.message


def test_naming_only_uncovered_stages_is_inconclusive(goldens):
    run = judged("correct", goldens, stages=("tail",))
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    assert judged("correct", goldens, stages=("aggregate",)).verdict == "PASS"


def test_damaged_data_are_an_error_and_never_a_pass(tmp_path):
    home = subset(tmp_path, SOME[:2])
    path = home / "loss" / "P-L001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    run = audit(Request("sdpo", goldens=(str(home),)))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert "sha256" in run.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"goldens": ("absent",)}, "absent is not a folder"),
        ({"declared": ("absent.toml",)}, "cannot read absent.toml"),
    ],
)
def test_absent_files_are_errors(changes, words):
    run = audit(Request("sdpo", **changes))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert words in run.message


def test_empty_folder_of_golden_data_is_an_error(tmp_path):
    run = audit(Request("sdpo", goldens=(str(tmp_path),)))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)


def test_addresses_in_messages_do_not_make_reports_differ(goldens):
    run = judged("complains_of_an_object", goldens)
    assert "object at 0x…" in run.message
