"""Rows of prompts in one form, whatever a trainer shows of them."""

import torch

from sdpo.parity.trainers.judge.prompt_stages import PADDING, attended, comparable, plain


def test_positions_count_from_the_first_token_that_is_attended():
    ids, mask = torch.tensor([[9, 5, 6, 9]]), torch.tensor([[0, 1, 1, 0]])
    (row,) = attended(ids, mask, torch.tensor([[0, 3, 4, 5]]))
    assert row["input_ids"] == [5, 6]
    assert row["position_ids"] == [0, 1]
    assert attended(ids, mask)[0] == row


def test_padding_among_tokens_is_counted():
    ids, mask = torch.tensor([[5, 9, 6]]), torch.tensor([[1, 0, 1]])
    assert attended(ids, mask)[0][PADDING] == 1


def test_tuples_are_lists_and_positions_relative():
    assert plain((1, ("a", None))) == [1, ["a", None]]
    assert plain({"position_ids": [7, 8]}) == {"position_ids": [0, 1]}


def test_padding_is_compared_only_where_it_is_shown():
    shown, expected = {"input_ids": [1]}, {"input_ids": [1], PADDING: 2}
    ours, theirs = comparable(shown, expected)
    assert ours == theirs
    ours, theirs = comparable(shown | {PADDING: 0}, expected)
    assert ours != theirs
