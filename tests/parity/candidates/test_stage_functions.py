"""A module or object with functions named as the stages is audited stage by stage."""

import pytest

from sdpo.fixtures import PACKAGED
from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")


def statuses(run) -> dict[str, str]:
    return {row.name: row.status for row in run.stages if row.status != "NOT_COVERED"}


def test_our_prompt_module_matches_every_recorded_prompt():
    run = audit(Request("sdpo.prompt.teacher_batch"))
    assert run.verdict == "PASS", run.message
    names = ("feedback", "demonstration", "teacher_prompt", "teacher_tokens", "distillation_mask")
    assert statuses(run) == dict.fromkeys(names, "MATCH")


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("sdpo.loss.support", {"log_probs", "support", "tail"}),
        ("sdpo.loss.importance", {"importance"}),
        ("sdpo.loss.aggregate", {"aggregate"}),
    ],
)
def test_modules_of_our_maths(module, stages, goldens):
    run = audit(Request(module, goldens=(str(goldens),)))
    assert run.exit_code == 0, run.reasons
    assert set(statuses(run)) == stages


def test_a_fault_in_one_function_is_named(tmp_path, goldens):
    (tmp_path / "port.py").write_text(
        "def tail(log_probs, distillation_add_tail):\n"
        "    return log_probs - log_probs.logsumexp(-1, keepdim=True)\n"
        "def feedback(feedback_raw, n_rows, include_environment_feedback):\n"
        "    return [text or None for text in feedback_raw[:n_rows]]\n"
    )
    folders = (str(goldens), str(PACKAGED / "reprompt"))
    run = audit(Request(str(tmp_path / "port.py"), goldens=folders))
    assert run.verdict == "ERROR"
    assert statuses(run)["tail"] == "ERROR", "the tail is missing: a column too few"
    assert statuses(run)["feedback"] in ("DIVERGENT", "ERROR")


def test_a_function_that_asks_for_more_than_its_stage_offers(tmp_path, goldens):
    (tmp_path / "port.py").write_text("def tail(log_probs, tokenizer): return log_probs\n")
    run = audit(Request(str(tmp_path / "port.py"), goldens=(str(goldens),)))
    assert run.verdict == "ERROR"
    assert "needs the argument 'tokenizer'; this stage offers log_probs" in run.message
