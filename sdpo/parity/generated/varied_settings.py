"""What some generated cases show together: how many of all pairs, and which values not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sdpo.parity.generated.factors import Row, Value, possible_pairs, settings_of, table


@dataclass(frozen=True)
class Varied:
    """Pairs of values that are shown, of how many, and what is shown in no case at all."""

    pairs_shown: int
    pairs: int
    not_varied: list[str]


def varied_settings(rows: Collection[Row], fixed: Mapping[str, Value]) -> Varied:
    """What the compared cases show; the candidate leaves factors in `fixed` at one value."""
    compared = [{**row, **fixed} for row in rows]
    shown = {pair for row in compared for pair in settings_of(row)} & possible_pairs()
    absent = [
        f"{factor} {value}"
        for factor, values in table().factors.items()
        for value in values
        if all(row[factor] != value for row in compared)
    ]
    return Varied(len(shown), len(possible_pairs()), absent)
