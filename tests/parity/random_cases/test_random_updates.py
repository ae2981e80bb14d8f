"""Random updates: what is varied, and that a planted departure of the fork shows."""

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.random_cases.compare_sides import FamilyComparison
from sdpo.parity.random_cases.random_updates import RandomUpdate, random_update

pytest.importorskip("transformers", reason="the recorded models are loaded by it")

SAMPLE = [random_update(seed, packaged_family("update")) for seed in range(300)]


@pytest.mark.parametrize(
    ("feature", "least"),
    [
        (lambda case: case.teacher == "trust_region", 50),
        (lambda case: case.teacher in ("none", "actor"), 5),
        (lambda case: case.actor["use_dynamic_bsz"], 50),
        (lambda case: case.actor["use_remove_padding"], 50),
        (lambda case: case.actor["entropy_coeff"] != 0, 80),
        (lambda case: case.actor["use_kl_loss"], 50),
        (lambda case: case.actor["ppo_epochs"] == 2, 40),
        (lambda case: case.actor["compute_dtype"] == "bfloat16", 30),
        (lambda case: len(case.batches) == 3, 50),
        (lambda case: case.model == "B", 100),
        (lambda case: "rollout_is_weights" in case.batches[0], 50),
        (lambda case: len(case.batches[0]) < 12, 2),
    ],
)
def test_every_feature_is_drawn_often_enough(feature, least):
    assert sum(map(feature, SAMPLE)) >= least


def plain() -> list[RandomUpdate]:
    """Updates that the stand-in knows: float32, padded, without further terms, right ones."""
    refused = ("use_dynamic_bsz", "use_remove_padding", "use_kl_loss", "calculate_entropy")
    return [
        case
        for case in SAMPLE
        if not any(case.actor[name] for name in (*refused, "entropy_coeff", "use_fused_kernels"))
        and case.actor["compute_dtype"] == "float32"
        and case.actor["grad_clip"] is not None
        and case.teacher in ("separate", "trust_region")
        and all(finite(batch) for batch in case.batches)
    ]


def finite(batch) -> bool:
    """Whether nothing is missing, every row counts, and no metric of the sampler is asked for."""
    needed = {"input_ids", "teacher_input_ids", "advantages", "old_log_probs", "responses"}
    if "rollout_log_probs" in batch or not needed <= batch.keys():
        return False
    counted = batch.get("self_distillation_mask"), batch.get("response_mask")
    return all(mask is not None and mask.any() for mask in counted) and bool(
        batch["attention_mask"].any()
    )


def compared(cases: list[RandomUpdate]) -> set[str]:
    """What differs: names without the number of the update."""
    comparison = FamilyComparison("update")
    for seed, case in enumerate(cases):
        comparison.add(seed, case)
    names = (name for found in comparison.differences for name in found.names)
    # the stand-in logs less
    return {name.split(".", 1)[-1] for name in names if "/" not in name}


def test_the_stand_in_gives_the_values_of_the_transcription(stand_in):
    stand_in()
    find_checkout()
    assert compared(plain()[:6]) == set()


def test_a_planted_departure_shows_in_the_weights(stand_in):
    stand_in(**{"workers/actor/dp_actor": ("self.actor_optimizer.step()", "pass")})
    find_checkout()
    assert any(name.startswith("actor.") for name in compared(plain()[:3]))
