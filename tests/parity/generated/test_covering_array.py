"""The file of rows covers what it claims, and follows the table."""

import pytest

from sdpo.parity.generated.covering_array import covering_rows, row_of_texts
from sdpo.parity.generated.factors import possible_pairs, settings_of, table


def test_every_possible_pair_is_in_a_row():
    shown = {pair for row in covering_rows() for pair in settings_of(row)}
    assert shown == possible_pairs()


def test_every_pair_of_telling_values_is_in_a_row_of_telling_ones():
    telling = table().telling

    def tells(factor, value):
        return value in telling.get(factor, [value])

    rows = [row for row in covering_rows() if all(tells(*item) for item in row.items())]
    shown = {pair for row in rows for pair in settings_of(row)}
    assert {pair for pair in possible_pairs() if all(tells(*one) for one in pair)} == shown


def test_every_set_that_stands_together_is_in_a_row():
    for together in table().together:
        assert any(together.items() <= row.items() for row in covering_rows()), together


def test_every_row_keeps_the_rules():
    assert all(table().allows(row) for row in covering_rows())


def test_a_value_that_the_table_does_not_have_is_refused():
    texts = {factor: str(values[0]) for factor, values in table().factors.items()}
    assert row_of_texts(texts)["rows"] == table().factors["rows"][0]
    with pytest.raises(ValueError, match=r"clip '7\.0': factors\.toml has"):
        row_of_texts({**texts, "clip": "7.0"})
    with pytest.raises(ValueError, match=r"factors \['rows'\]: factors.toml has"):
        row_of_texts({"rows": "2"})
