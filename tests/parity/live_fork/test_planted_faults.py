"""Faults planted in a copy of a real checkout are headlined at the stage that they are about.

Each fault replaces a short piece of one file, given by a regular expression:

    SDPO_VERL_CHECKOUT=SDPO python -m pytest -m slow tests/parity/live_fork/test_planted_faults.py
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

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

FAULTS = [
    ("config", SETTINGS, r"alpha: float = 0\.0", "alpha: float = 0.5"),
    ("config", YAML, r"is_clip: 2\.0", "is_clip: 5.0"),
    ("feedback", PROMPT, r" and raw_feedback\[i\]\.strip\(\)", ""),
    ("demonstration", PROMPT, r"solution_idxs\[0\]", "solution_idxs[-1]"),
    ("demonstration", PROMPT, r">= success_reward_threshold", "> success_reward_threshold"),
    ("teacher_prompt", PROMPT, r'"role": "user"', '"role": "system"'),
    ("teacher_tokens", PROMPT, r"add_generation_prompt=True", "add_generation_prompt=False"),
    ("distillation_mask", PROMPT, r"is not None or feedback_used", "is not None and feedback_used"),
    ("log_probs", ACTOR, r"\blogits\.div_\(temperature\)", "logits.div_(1.0)"),
    ("log_probs", ACTOR, r"torch\.lerp\(ref_logits,", "torch.lerp(0.9 * ref_logits,"),
    ("support", ACTOR, r"topk_logits - logsumexp", "topk_logits - 1.01 * logsumexp"),
    ("tail", LOSS, r"max=-1e-7", "max=-1e-1"),
    ("divergence", LOSS, r"lerp\(kl_student, kl_teacher", "lerp(kl_teacher, kl_student"),
    ("importance", LOSS, r"clamp\(max=is_clip\)", "clamp(max=1.0)"),
    ("aggregate", LOSS, r"seq_mask \+ 1e-8", "seq_mask + 1.0"),
    ("gradient", LOSS, r"old_log_probs\)\.detach\(\)", "old_log_probs)"),
    ("accumulate", ACTOR, r"1 / self\.gradient_accumulation", "1.0"),
    ("optimizer", ACTOR, r"(utils\.clip_grad_norm_.*)self\.config\.grad_clip", r"\g<1>1e9"),
    ("teacher_update", ACTOR, r"1\.0 - update_rate", "1.0"),
    ("teacher_update", ACTOR, r"if did_update:", "if False:"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    numbers = (1, 2, 3, 5, 18, 30, 41, 49, 103)
    losses = [f"P-L{number:03}" for number in numbers]
    return family_subset(tmp_path_factory.mktemp("cases"), losses)


@pytest.mark.parametrize(("stage", "file", "pattern", "instead"), FAULTS)
def test_a_planted_fault_is_headlined_at_its_stage(cases, tmp_path, stage, file, pattern, instead):
    copy = tmp_path / "SDPO"
    shutil.copytree(checkout() / "verl", copy / "verl")
    target = copy / "verl" / file
    changed, count = re.subn(pattern, instead, target.read_text("utf-8"))
    assert count > 0
    target.write_text(changed, "utf-8")
    run = audited(copy, cases, tmp_path)
    assert (run["verdict"], run["first_stage"]) == ("DIVERGENT", stage), run["message"]


def test_the_same_cases_without_a_fault_are_right(cases, tmp_path):
    run = audited(checkout(), cases, tmp_path)
    assert run["verdict"] == "PASS", run["message"]


def audited(folder, cases, tmp_path):
    command = [sys.executable, "-m", "sdpo", "audit", "verl", "--json", "--bundles", "0"]
    done = subprocess.run(
        [*command, "--goldens", str(cases), "--out", str(tmp_path / "out")],
        env=os.environ | {"SDPO_VERL_CHECKOUT": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    (run,) = json.loads(done.stdout)["runs"]
    return run
