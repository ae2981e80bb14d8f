"""The rows of the generated cases: each pair of values, and each set in `together`, is in a row.

Each pair of telling values is also in a row that has only telling ones.

`covering_array.csv` holds them, as making them takes seconds; after a change of `factors.toml`
`python -m sdpo.parity.generated.covering_array` makes them again, by the package covertable.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

from sdpo.parity.generated.factors import Row, Rule, Value, table

_ARRAY = Path(__file__).with_name("covering_array.csv")


@cache
def covering_rows() -> tuple[Row, ...]:
    """The rows, in the order of the file.

    Raises:
        ValueError: the file has another factor or value than the table.
    """
    with _ARRAY.open(encoding="utf-8", newline="") as file:
        return tuple(row_of_texts(texts) for texts in csv.DictReader(file))


def row_of_texts(texts: dict[str, str]) -> Row:
    """A row from its values as texts.

    Raises:
        ValueError: a factor or value that the table does not have.
    """
    factors = table().factors
    if list(texts) != list(factors):
        raise ValueError(f"factors {list(texts)}: factors.toml has {list(factors)}")
    return {factor: _value(factor, text) for factor, text in texts.items()}


def _value(factor: str, text: str) -> Value:
    """The value of a factor that is written as a text."""
    for value in table().factors[factor]:
        if str(value) == text:
            return value
    raise ValueError(f"{factor} {text!r}: factors.toml has {table().factors[factor]}")


def _constraint(rule: Rule) -> dict[str, Any]:
    """A rule as covertable's: not `when`, or `then`."""

    def each(values: dict[str, list[Value]]) -> dict[str, Any]:
        terms = [{"operator": "in", "left": f, "values": v} for f, v in values.items()]
        return {"operator": "and", "conditions": terms}

    unless = {"operator": "not", "condition": each(rule.when)}
    return {"operator": "or", "conditions": [unless, each(rule.then)]}


def write_rows() -> None:
    """Make the covering array and write it; the same table gives the same file."""
    from covertable import make

    rules = [_constraint(rule) for rule in table().rules]
    rows = make(table().factors, presets=table().together, constraints=rules)
    rows += make({**table().factors, **table().telling}, constraints=rules)
    with _ARRAY.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table().factors), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dict(row) for row in rows)


if __name__ == "__main__":
    write_rows()
