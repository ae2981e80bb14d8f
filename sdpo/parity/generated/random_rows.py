"""Rows drawn at random for exploring, each led by what no row before it showed."""

import random
from collections.abc import Iterable, Iterator

from sdpo.parity.generated.factors import Row, Settings, Value, settings_of, table

DRAWN = 3
"""Rows that are drawn for each that is taken."""
STRENGTH = 3
TELLING = 0.75
"""The share of rows that have only values which hide nothing."""


def random_row(chance: random.Random, *, telling: bool = False) -> Row:
    """Draw a row that keeps the rules; of `telling` values only where asked."""
    factors = {**table().factors, **(table().telling if telling else {})}
    while True:
        row: dict[str, Value] = {}
        for factor in chance.sample(list(factors), len(factors)):
            fitting = [v for v in factors[factor] if table().allows({**row, factor: v})]
            if not fitting:
                break
            row[factor] = chance.choice(fitting)
        else:
            return {factor: row[factor] for factor in table().factors}


def exploring_rows(seed: int, before: Iterable[Row] = ()) -> Iterator[Row]:
    """Rows without end; the same seed gives the same.

    Each is the one of some drawn rows that shows most sets of three values which neither a row
    before it nor one of `before` has.
    """
    chance, seen = random.Random(seed), set[Settings]()
    for row in before:
        seen.update(settings_of(row, STRENGTH))
    while True:
        telling = chance.random() < TELLING
        drawn = [random_row(chance, telling=telling) for _ in range(DRAWN)]
        sets = [set(settings_of(row, STRENGTH)) for row in drawn]
        fresh = [len(each - seen) for each in sets]
        best = fresh.index(max(fresh))
        seen |= sets[best]
        yield drawn[best]
