"""Faults planted in a copy of a real checkout are headlined at the stage that they are about.

Each fault replaces a short piece of one file, given by a regular expression:

    SDPO_VERL_CHECKOUT=SDPO python -m pytest -m slow tests/parity/live_fork/test_planted_faults.py
"""

import importlib
import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from sdpo.parity.audit.audit import judge, load_goldens
from sdpo.parity.audit.load_candidate import load_candidate
from sdpo.parity.audit.request import Request
from sdpo.settings.determinism import deterministic
from tests.helpers.family_subset import family_subset
from tests.helpers.recorded.checkout import checkout, needs_checkout

pytestmark = [
    needs_checkout,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SETTINGS, YAML = "workers/config/actor.py", "trainer/config/sdpo.yaml"
PROMPT, LOSS = "trainer/ppo/ray_trainer.py", "trainer/ppo/core_algos.py"
ACTOR = "workers/actor/dp_actor.py"

PROMPT_FAULTS = [
    ("config", SETTINGS, r"alpha: float = 0\.0", "alpha: float = 0.5"),
    ("config", YAML, r"is_clip: 2\.0", "is_clip: 5.0"),
    ("feedback", PROMPT, r" and raw_feedback\[i\]\.strip\(\)", ""),
    ("feedback", PROMPT, r'dict\.get\("feedback"', 'dict.get("feedbacks"'),
    ("demonstration", PROMPT, r"solution_idxs\[0\]", "solution_idxs[-1]"),
    ("demonstration", PROMPT, r">= success_reward_threshold", "> success_reward_threshold"),
    ("demonstration", PROMPT, r"if j != idx", "if j >= 0"),
    ("demonstration", PROMPT, r"flags=re\.DOTALL", "flags=0"),
    ("teacher_prompt", PROMPT, r'"role": "user"', '"role": "system"'),
    ("teacher_prompt", PROMPT, r'(_prompt"\]\[i\]\[):-1\]', r"\1:0]"),
    ("teacher_prompt", PROMPT, r"and \(not feedback_only\w+ or not has_solution\)", ""),
    ("teacher_tokens", PROMPT, r"add_generation_prompt=True", "add_generation_prompt=False"),
    ("teacher_tokens", PROMPT, r"enable_thinking=enable_thinking", "enable_thinking=True"),
    ("teacher_tokens", PROMPT, r"(r\.truncation_side) = .*", r'\1 = "left"'),
    ("teacher_tokens", PROMPT, r"_with_mask\(teacher_attention_mask\)", "_with_mask(responses)"),
    ("distillation_mask", PROMPT, r"is not None or feedback_used", "is not None and feedback_used"),
]
LOSS_FAULTS = [
    ("log_probs", ACTOR, r"\blogits\.div_\(temperature\)", "logits.div_(1.0)"),
    ("log_probs", ACTOR, r"(logits = logits\[:, -response_length) - 1 : -1", r"\1:"),
    ("support", ACTOR, r"topk_logits - logsumexp", "topk_logits - 1.01 * logsumexp"),
    ("support", ACTOR, r"min\(distill_topk, logits\.", "min(distill_topk + 1, logits."),
    ("tail", LOSS, r"max=-1e-7", "max=-1e-1"),
    ("tail", LOSS, r"return logp - logZ", "return logp"),
    ("divergence", LOSS, r"lerp\(kl_student, kl_teacher", "lerp(kl_teacher, kl_student"),
    ("divergence", LOSS, r"(\(\s+)(student_dis\w+), (teacher_dis\w+)(, red)", r"\1\3, \2\4"),
    ("importance", LOSS, r"clamp\(max=is_clip\)", "clamp(max=1.0)"),
    ("importance", LOSS, r"(per_token_loss) \* rollout_is_weights", r"\1"),
    ("importance", LOSS, r"(student_log_probs) - old_log_probs\)", r"old_log_probs - \1)"),
    ("aggregate", LOSS, r"seq_mask \+ 1e-8", "seq_mask + 1.0"),
    ("aggregate", LOSS, r"(loss_mask\.sum\(\))\.clamp\(min=1\.0\)", r"\1.clamp(min=64.0)"),
    ("aggregate", LOSS, r"loss_mask \* self_distillation_mask\.unsqueeze\(1\)", "loss_mask"),
    ("gradient", LOSS, r"old_log_probs\)\.detach\(\)", "old_log_probs)"),
    ("gradient", LOSS, r"log_ratio\.detach\(\)", "log_ratio"),
]
UPDATE_FAULTS = [
    ("log_probs", ACTOR, r"torch\.lerp\(ref_logits,", "torch.lerp(0.9 * ref_logits,"),
    ("log_probs", ACTOR, r"shifts=-1", "shifts=0"),
    ("log_probs", ACTOR, r"logits_rmpad\.div_\(temperature\)", "logits_rmpad.div_(0.9)"),
    ("support", ACTOR, r"topk_indices=student_topk_indices", "topk_indices=None"),
    ("importance", ACTOR, r"len\(mini_batches\) == 1 and", ""),
    ("aggregate", ACTOR, r"(=self_distillation_mask),\n", r"\1 * 0 + 1,\n"),
    ("accumulate", ACTOR, r"1 / self\.gradient_accumulation", "1.0"),
    ("accumulate", ACTOR, r"response_mask\.shape\[0\] / self", "1.0 / self"),
    ("accumulate", ACTOR, r"policy_loss -= entropy_agg", "policy_loss += entropy_agg"),
    ("accumulate", ACTOR, r"kl_loss \* self\.config\.kl_loss_coef", "kl_loss"),
    ("accumulate", ACTOR, r"self\.actor_optimizer\.zero_grad\(\)(?=\s+for micro_batch)", "pass"),
    ("optimizer", ACTOR, r"(utils\.clip_grad_norm_.*)self\.config\.grad_clip", r"\g<1>1e9"),
    ("optimizer", ACTOR, r"if not torch\.isfinite\(grad_norm\):", "if False:"),
    ("optimizer", ACTOR, r"self\.actor_optimizer\.step\(\)", "pass"),
    ("teacher_update", ACTOR, r"1\.0 - update_rate", "1.0"),
    ("teacher_update", ACTOR, r"if did_update:", "if False:"),
    ("teacher_update", ACTOR, r"alpha=update_rate", "alpha=update_rate / 2"),
    ("teacher_update", ACTOR, r"if torch\.isfinite\(grad_norm\)\.item\(\):", "if True:"),
]


ALL_PROMPTS = tuple(f"P-R{number:03}" for number in range(1, 64))
LOSSES = tuple(f"P-L{n:03}" for n in (1, 2, 3, 5, 18, 30, 41, 47, 49, 57, 65, 103, 120, 140))
UPDATES = tuple(f"P-U{n:03}" for n in (2, 13, 15, 16, 17, 20, 22, 27, 29, 30, 40, 42, 43, 44))
GOLDENS = {
    "prompt": (LOSSES[:1], ALL_PROMPTS, UPDATES[:1]),
    "loss": (LOSSES, ALL_PROMPTS[:2], UPDATES[:2]),
    "update": (LOSSES[:2], ALL_PROMPTS[:2], UPDATES),
}
"""Recorded cases by family of the faults: most of the family, and a few of the others."""

FAULTS = [
    (family, *fault)
    for family, faults in zip(GOLDENS, (PROMPT_FAULTS, LOSS_FAULTS, UPDATE_FAULTS), strict=True)
    for fault in faults
]


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    return {
        name: family_subset(tmp_path_factory.mktemp(name), *ids) for name, ids in GOLDENS.items()
    }


@pytest.mark.parametrize(("family", "stage", "file", "pattern", "instead"), FAULTS)
def test_a_planted_fault_is_headlined_at_its_stage(
    goldens, tmp_path, family, stage, file, pattern, instead
):
    copy = tmp_path / "SDPO"
    shutil.copytree(checkout() / "verl", copy / "verl")
    target = copy / "verl" / file
    changed, count = re.subn(pattern, instead, target.read_text("utf-8"))
    assert count > 0
    target.write_text(changed, "utf-8")
    found = headline(copy, goldens[family])
    assert found[:2] == ("DIVERGENT", stage), found


@pytest.mark.parametrize("family", GOLDENS)
def test_the_same_cases_without_a_fault_are_right(goldens, family):
    found = headline(checkout(), goldens[family])
    assert found[0] == "PASS", found


def headline(folder: Path, goldens: Path) -> tuple[str, str | None, str | None]:
    """Verdict, first stage and message of an audit, in a process that has torch loaded already."""
    assert "verl" not in sys.modules
    importlib.import_module("ray")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_audited, (str(folder), str(goldens)))


def _audited(folder: str, goldens: str) -> tuple[str, str | None, str | None]:
    os.environ["SDPO_VERL_CHECKOUT"] = folder
    request = Request("verl", (goldens,))
    with deterministic():
        candidate = load_candidate("verl")
        run = judge(request, candidate, load_goldens([goldens]), [], nothing, isolation=False)
    return str(run.verdict), run.first_stage, run.message


def nothing(*_: object) -> None:
    """Progress that is not shown."""
