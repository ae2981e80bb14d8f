"""Batch settings in small numbers: what is on-policy, where an update ends, what a part weighs."""

import pytest
import torch

from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.update.schedule import (
    Schedule,
    aggregation_weight,
    micro_batch_scale,
    mini_batch_weights,
)

MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
"""Four tokens in two rows; the third row has none."""


def test_an_update_ends_after_all_passes_over_a_generation():
    """Two micro-batches a generation, three passes: after 6, 12, … micro-batches."""
    schedule = Schedule(2, 2, 3)
    assert schedule.steps_per_update == 6
    assert [steps for steps in range(1, 13) if schedule.ends_update(steps)] == [6, 12]


@pytest.mark.parametrize(
    ("accumulated", "generation", "passes", "expected"),
    [(2, 2, 1, True), (4, 2, 1, True), (1, 2, 1, False), (2, 2, 2, False)],
)
def test_on_policy_means_that_no_step_is_made_between_rollouts_and_gradient(
    accumulated, generation, passes, expected
):
    assert Schedule(accumulated, generation, passes).on_policy is expected


def test_a_step_that_mixes_parts_of_two_generations_is_refused():
    with pytest.raises(ConfigError, match="is 4 and gradient_accumulation_steps 3"):
        Schedule(3, 4)


def test_exact_needs_whole_mini_batches_in_a_generation():
    Schedule(2, 4).check_exact()
    with pytest.raises(ConfigError, match="to be a multiple of gradient_accumulation_steps"):
        Schedule(4, 2).check_exact()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 4),
        ("seq-mean-token-sum", 2),
        ("seq-mean-token-mean", 2),
        ("seq-mean-token-sum-norm", 1),
    ],
)
def test_a_micro_batch_weighs_its_tokens_or_its_rows_with_tokens(mode, expected):
    assert aggregation_weight(MASK, mode).item() == expected


def test_each_micro_batch_knows_the_weight_of_its_mini_batch():
    """Weights 1 and 3 make 4, an empty mini-batch counts as 1."""
    found = mini_batch_weights(torch.tensor([1.0, 3, 0, 0]), 2, "token-mean")
    assert found.tolist() == [4, 4, 1, 1]


def test_verl_divides_by_the_number_of_micro_batches_and_exact_by_their_shares():
    """Of 4 micro-batches verl gives each 1/4; exact gives 3 of 12 tokens on 2 ranks 2 · 3/12."""
    schedule = Schedule(4, 4)
    parts = {"weight": 3.0, "mini_batch_weight": 12.0, "ranks": 2}
    assert micro_batch_scale(SDPOConfig(), schedule, **parts) == 1 / 4
    exact = SDPOConfig(micro_batch_semantics="exact")
    assert micro_batch_scale(exact, schedule, **parts) == 1 / 2
