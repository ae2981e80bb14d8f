"""Faults of `aggregate` on two rows: losses 1, 2 and 9 (one padded place), the other row has 4."""

import pytest
import torch

from sdpo.parity.faults.reference_parts import LossState
from sdpo.settings.config import SDPOConfig
from tests.helpers.loss_state import value


def rows(mode="token-mean", signal=(1.0, 1.0)):
    """Losses of two tokens in the first row, of one in the second, padding after both."""
    nothing = torch.empty(0)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    state = LossState(SDPOConfig(loss_agg_mode=mode), nothing, nothing, nothing, mask)
    state.self_distillation_mask = torch.tensor(signal)
    state.loss_mask = mask * state.self_distillation_mask[:, None]
    state.token_losses = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    return state


@pytest.mark.parametrize(
    ("fault", "loss"),
    [
        ("M08", (1.5 + 4) / 2),
        ("M09", (1 + 2 + 4) / 2),
        ("M10", (1.5 + 4) / 2),
        ("M16", (1 + 2 + 4) / 3),
        ("M82", (1 + 2 + 4) / 6),
        ("M86", 1 + 2 + 4),
        ("M92", (1 + 2 + 4) / 2),
        ("M115", (1.5 + 4) / 2),
        ("M132", (1 + 2 + 4) / 3 / 2),
    ],
)
def test_three_tokens_of_one_two_and_four_for_token_mean(fault, loss):
    assert value(fault, rows()).item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("fault", "mode", "loss"),
    [
        ("M83", "seq-mean-token-mean", (3 / 3 + 4 / 3) / 2),
        ("M84", "seq-mean-token-sum-norm", (3 + 4) / 3 / 2),
        ("M85", "seq-mean-token-sum-norm", (3 + 4) / 2),
        ("M87", "seq-mean-token-sum", (1 + 2 + 4) / 3),
    ],
)
def test_other_modes_with_sums_of_rows_of_three_and_four(fault, mode, loss):
    assert value(fault, rows(mode)).item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("fault", "mode", "loss"),
    [
        ("M07", "seq-mean-token-sum", (3 + 0) / 2),
        ("M15b", "token-mean", (1 + 2 + 4) / 2),
        ("M90", "token-mean", (1 + 2) / 3),
        ("M90", "seq-mean-token-sum", (3 + 0) / 2),
    ],
)
def test_a_second_row_without_teacher_signal(fault, mode, loss):
    assert value(fault, rows(mode, (1.0, 0.0))).item() == pytest.approx(loss)


def test_nothing_that_counts_divides_by_zero():
    assert value("M16", rows(signal=(0.0, 0.0))).isnan()


@pytest.mark.parametrize(
    ("fault", "mask"),
    [
        ("M13", [[1, 1, 1], [0, 0, 0]]),
        ("M15", [[1, 1, 0], [1, 0, 0]]),
        ("M88", [[0, 1, 1], [0, 0, 0]]),
        ("M131", [[1, 0, 0], [0, 0, 0]]),
        ("M89", [[1, 0, 0], [0, 0, 0]]),
    ],
)
def test_masks_where_the_second_row_has_no_teacher_signal(fault, mask):
    assert value(fault, rows(signal=(1.0, 0.0))).tolist() == mask


def test_a_temperature_of_two_makes_the_loss_four_times_as_large():
    state = rows()
    state.config = SDPOConfig(loss_agg_mode="token-mean", temperature=2.0)
    assert value("M104", state).item() == pytest.approx(4 * 7 / 3)
