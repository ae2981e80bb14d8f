"""What some generated cases show together: how many of all pairs, and which values not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sdpo.parity.generated.factors import Row, Value, possible_pairs, settings_of, table


@dataclass(frozen=True)
class Varied:
    """Pairs of values that `cases` show, of how many, and what is shown in no case at all."""

    cases: int
    pairs_shown: int
    pairs: int
    not_varied: list[str]

    def __str__(self) -> str:
        absent = f"; not varied: {', '.join(self.not_varied)}" if self.not_varied else ""
        return (
            f"{self.cases} compared show {self.pairs_shown} of {self.pairs} pairs of values of "
            f"{len(table().factors)} factors{absent}"
        )


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
    return Varied(len(compared), len(shown), len(possible_pairs()), absent)
