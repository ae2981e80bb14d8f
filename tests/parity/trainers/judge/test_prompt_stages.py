"""Rows of prompts in one form, whatever a trainer shows of them."""

from sdpo.parity.trainers.judge.prompt_stages import PADDING, comparable, plain


def test_tuples_are_lists_and_positions_relative():
    assert plain((1, ("a", None))) == [1, ["a", None]]
    assert plain({"position_ids": [7, 8]}) == {"position_ids": [0, 1]}


def test_padding_is_compared_only_where_it_is_shown():
    shown, expected = {"input_ids": [1]}, {"input_ids": [1], PADDING: 2}
    ours, theirs = comparable(shown, expected)
    assert ours == theirs
    ours, theirs = comparable(shown | {PADDING: 0}, expected)
    assert ours != theirs
