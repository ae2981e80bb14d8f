"""What generated cases vary: the factors of `factors.toml`, their values, and which go together."""

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, convert

Value = str | int | float
Row = Mapping[str, Value]
"""One value of each factor."""

_TABLE = Path(__file__).with_name("factors.toml")


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """Where each factor of `when` has one of its values, each of `then` must have one of these."""

    when: dict[str, list[Value]]
    then: dict[str, list[Value]]

    def allows(self, row: Row) -> bool:
        """Whether a row keeps the rule; factors that the row lacks are taken as kept."""
        applies = all(
            factor in row and row[factor] in values for factor, values in self.when.items()
        )
        return not applies or all(
            row.get(f, values[0]) in values for f, values in self.then.items()
        )


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """The table: factors in three groups, values that hide nothing, sets of values, the rules."""

    problem: dict[str, list[Value]]
    form: dict[str, list[Value]]
    call: dict[str, list[Value]]
    telling: dict[str, list[Value]]
    together: list[dict[str, Value]]
    rules: list[Rule]

    @property
    def factors(self) -> dict[str, list[Value]]:
        """The values of each factor, the plainest first."""
        return {**self.problem, **self.form, **self.call}

    def allows(self, row: Row) -> bool:
        """Whether a row, or a part of one, keeps all rules."""
        return all(rule.allows(row) for rule in self.rules)


class Setting(NamedTuple):
    """A factor at one of its values."""

    factor: str
    value: Value

    def __str__(self) -> str:
        return f"{self.factor} {self.value}"


Settings = tuple[Setting, ...]
"""Values of two or three factors, in the table's order."""


@cache
def table() -> Table:
    """Read the table of factors."""
    return convert(tomllib.loads(_TABLE.read_text(encoding="utf-8")), Table)


def settings_of(row: Row, strength: int = 2) -> Iterator[Settings]:
    """Every choice of `strength` factors of a row, with their values."""
    ordered = [Setting(factor, row[factor]) for factor in table().factors]
    return combinations(ordered, strength)


@cache
def possible_pairs() -> frozenset[Settings]:
    """The pairs of values that the rules allow; each stands in some row that keeps all of them."""
    found = set()
    for (one, values), (other, others) in combinations(table().factors.items(), 2):
        for a, b in product(values, others):
            if table().allows({one: a, other: b}):
                found.add((Setting(one, a), Setting(other, b)))
    return frozenset(found)
