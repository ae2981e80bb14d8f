"""Rows of six columns: where the responses are, and the same with them at the end."""

import torch

from sdpo.parity.trainers.recording.token_layout import (
    at_responses,
    at_the_end,
    attended_tokens,
    columns_of,
    joined,
    padding_inside,
    widened,
)

IDS = torch.tensor([[0, 7, 8, 1, 2, 0], [9, 3, 0, 0, 0, 0]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
POSITIONS = torch.tensor([[0, 0, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1]])
GIVEN = {"input_ids": IDS, "attention_mask": MASK}
COMPLETIONS = [[1, 2], [3]]


def test_what_rows_attend_to():
    first, second = attended_tokens(IDS, MASK, POSITIONS)
    assert first == {
        "input_ids": [7, 8, 1, 2],
        "position_ids": [0, 1, 2, 3],
        "padding_inside": 0,
    }
    assert second["input_ids"] == [9, 3]


def test_columns_between_attended_ones_are_padding_inside():
    assert padding_inside(torch.tensor([0, 1, 0, 0, 1, 0])) == 2
    assert padding_inside(torch.zeros(6)) == 0


def test_responses_are_found_where_the_completions_end():
    assert columns_of(GIVEN, COMPLETIONS, 2) == [[3, 4], [1]]


def test_responses_in_the_last_columns_are_as_usual():
    given = {"input_ids": torch.tensor([[7, 8, 1, 2], [0, 9, 3, 0]])}
    assert columns_of(given | {"attention_mask": given["input_ids"] != 0}, COMPLETIONS, 2) is None


def test_the_value_before_a_token_predicts_it():
    """Responses begin in columns 3 and 1; the values are ten times their column."""
    values = 10 * torch.arange(6.0).expand(2, 6)[..., None]
    found = at_responses(values, [[3, 4], [1]], 0, 2)[..., 0]
    assert found.tolist() == [[20, 30], [0, 0]]
    assert at_responses(values, None, 0, 2)[..., 0].tolist() == [[30, 40], [30, 40]]


def test_values_of_the_last_columns_alone_are_counted_from_the_end():
    values = 10 * torch.arange(2, 6.0).expand(2, 4)[..., None]
    assert at_responses(values, [[3, 4], [4]], 2, 2)[..., 0].tolist() == [[20, 30], [30, 0]]


def test_prompts_are_moved_so_that_responses_begin_in_one_column():
    found = at_the_end(GIVEN, POSITIONS, [[3, 4], [1]], 2)
    assert found["input_ids"].tolist() == [[0, 7, 8, 1, 2], [0, 0, 9, 3, 0]]
    assert found["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]
    assert found["position_ids"].tolist() == [[0, 0, 1, 2, 3], [0, 0, 0, 1, 1]]


def test_later_values_of_a_row_overwrite_earlier_ones():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([5.0])
    assert joined([([0, 2], first), ([2], second)], 3).tolist() == [1, 0, 5]


def test_inputs_are_padded_in_front():
    assert widened({"a": torch.tensor([[1, 2]])}, 4)["a"].tolist() == [[0, 0, 1, 2]]
