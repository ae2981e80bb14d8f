"""Random losses: what is varied, and that a planted departure of the fork shows."""

import pytest
import torch

from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.random_cases.compare_sides import FamilyComparison
from sdpo.parity.random_cases.random_losses import RandomLoss, random_loss

SAMPLE = [random_loss(seed) for seed in range(300)]


@pytest.mark.parametrize(
    ("feature", "least"),
    [
        (lambda case: not case.settings.full_logit_distillation, 30),
        (lambda case: case.settings.distillation_topk is None, 50),
        (lambda case: (case.settings.distillation_topk or 0) > case.student_logits.shape[-1], 10),
        (lambda case: case.settings.distillation_topk == 1, 10),
        (lambda case: case.settings.alpha in (0.0, 1.0), 100),
        (lambda case: 0.0 < case.settings.alpha < 1.0, 50),
        (lambda case: case.settings.is_clip is None, 30),
        (lambda case: case.sampler is not None, 30),
        (lambda case: case.rollout_is_weights is not None, 30),
        (lambda case: case.self_distillation_mask is None, 50),
        (lambda case: case.old_log_probs is None, 10),
        (lambda case: case.student_logits.dtype != case.teacher_logits.dtype, 50),
        (lambda case: case.student_logits.dtype == torch.bfloat16, 20),
        (lambda case: not case.response_mask.dtype.is_floating_point, 80),
        (lambda case: not case.response_mask.any(), 20),
        (lambda case: not case.student_logits.isfinite().all(), 5),
    ],
)
def test_every_feature_is_drawn_often_enough(feature, least):
    assert sum(map(feature, SAMPLE)) >= least


def compared(cases: list[RandomLoss]) -> FamilyComparison:
    comparison = FamilyComparison("loss")
    for seed, case in enumerate(cases):
        comparison.add(seed, case)
    return comparison


def test_the_stand_in_gives_the_values_of_the_transcription(stand_in):
    stand_in()
    find_checkout()
    plain = [case for case in SAMPLE if case.sampler is None][:40]
    comparison = compared(plain)
    assert comparison.differences == []
    assert comparison.values > 200


def test_a_planted_factor_shows_in_the_loss(stand_in):
    stand_in(**{"trainer/ppo/core_algos": ("return total", "return 1.5 * total")})
    find_checkout()
    comparison = compared([case for case in SAMPLE if case.sampler is None][:20])
    assert len(comparison.differences) >= 8
    assert {"loss", "gradient"} <= set(comparison.differences[0].names)
