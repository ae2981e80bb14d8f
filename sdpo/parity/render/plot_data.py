"""The numbers behind the plots, without any drawing."""

import math
from dataclasses import dataclass
from typing import Any

from sdpo.parity.render.text import RUN
from sdpo.parity.stages import STAGES

FAMILIES = {
    "config": "settings",
    "reprompt": "teacher prompt",
    "loss": "loss",
    "update": "update",
}


@dataclass(frozen=True)
class CaseError:
    """The largest finite error of one case at one stage, in three units."""

    case: str
    status: str
    used: float
    max_abs: float
    max_ulp: float


@dataclass(frozen=True)
class StageErrors:
    """The cases of one numeric stage.

    Every case is in one of three groups: `bit_equal` (a count), `errors` (a finite error above
    zero), `odd` (a count: differs, but only by non-finite values, or failed).
    """

    name: str
    bit_equal: int
    errors: tuple[CaseError, ...]
    odd: int

    @property
    def cases(self) -> int:
        """All cases of the stage."""
        return self.bit_equal + len(self.errors) + self.odd


@dataclass(frozen=True)
class Cell:
    """One stage in the overview; `compared` counts cases."""

    number: int
    name: str
    status: str
    family: str
    compared: int


def stage_errors(run: RUN) -> list[StageErrors]:
    """The numeric stages that were compared, in causal order."""
    rows = [row for row in run["stages"] if STAGES[row["name"]].kind == "numeric"]
    return [_errors(row["name"], row["by_case"]) for row in rows if row.get("by_case")]


def _errors(name: str, by_case: list[list[Any]]) -> StageErrors:
    cases = [
        CaseError(case, status, float(used), float(size), float(ulp))
        for case, status, used, size, ulp in by_case
    ]
    equal = [case for case in cases if case.status == "MATCH"]
    errors = [c for c in cases if c.status != "MATCH" and c.used > 0 and math.isfinite(c.used)]
    return StageErrors(name, len(equal), tuple(errors), len(cases) - len(equal) - len(errors))


def overview(run: RUN) -> list[Cell]:
    """All sixteen stages with status, family and number of cases."""
    return [
        Cell(
            number=STAGES[row["name"]].number,
            name=row["name"],
            status=row["status"],
            family=FAMILIES[STAGES[row["name"]].family],
            compared=len(row.get("by_case", [])),
        )
        for row in run["stages"]
    ]


def swarm(values: list[float], width: float, step: float) -> list[float]:
    """Offsets that keep nearby values apart: each bin fills symmetrically from its middle.

    Args:
        values: positions along the axis.
        width: of a bin.
        step: between neighbours; shrunk in bins that would leave ±0.4.
    """
    bins: dict[int, list[int]] = {}
    for index in sorted(range(len(values)), key=lambda i: values[i]):
        bins.setdefault(math.floor(values[index] / width), []).append(index)
    offsets = [0.0] * len(values)
    for members in bins.values():
        middle = (len(members) - 1) / 2
        distance = min(step, 0.4 / middle) if middle else 0.0
        for rank, index in enumerate(members):
            offsets[index] = (rank - middle) * distance
    return offsets
