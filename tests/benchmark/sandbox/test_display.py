"""Values are shown in a bounded text that is the same in every run."""

import pytest

from sdpo.benchmark.sandbox.display import display, display_pair, shorten


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b", "a"}, "{'a', 'b'}"),
        ((1,), "(1,)"),
        ((1, 2), "(1, 2)"),
        ({1: {2.0: "x"}}, "{1: {2.0: 'x'}}"),
        (set(), "set()"),
        (frozenset(), "frozenset()"),
        (frozenset({1}), "frozenset({1})"),
        ([], "[]"),
        (10**5000, "<integer of 16610 bits>"),
        ([10**5000], "[<integer of 16610 bits>]"),
    ],
    ids=[str(number) for number in range(10)],
)
def test_plain_data_looks_like_its_source(value: object, text: str) -> None:
    assert display(value) == text


def test_what_is_long_is_cut() -> None:
    assert len(display(list(range(10**6)))) < 2000
    assert len(display("x" * 10**6)) < 2000
    assert len(display([["x" * 999] * 999] * 999)) < 500_000
    assert display([0] * 300).endswith("0, ...]")
    deep: list = []
    for _ in range(30):
        deep = [deep]
    assert display(deep) == "[" * 21 + "..." + "]" * 21


def test_the_middle_of_a_text_is_cut_out() -> None:
    assert shorten("a" * 50, 20) == "a" * 11 + "..." + "a" * 6
    assert shorten("abc", 3) == "abc"


def test_types_are_told_where_values_look_the_same() -> None:
    class Two:
        def __repr__(self) -> str:
            return "2"

    assert display_pair(1, 2) == ("1", "2")
    assert display_pair(2, Two()) == ("2 (int)", "2 (Two)")
