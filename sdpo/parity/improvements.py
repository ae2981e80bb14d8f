"""Documented improvements on the reference: exceptions that hold for every candidate.

`deviations.toml` lists them, each with its reason. Which elements one may be about is decided from
the oracle (`loss_family.py`, `update_family.py`), never from the candidate's name; a value counts
only if it is the oracle's, within its budget.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpo.parity.verdict import CaseResult

LIST = Path(__file__).with_name("deviations.toml")
ZERO_PROBABILITY, ZERO_WEIGHT = "zero_probability", "zero_weight"
EMPTY_BATCH, UNDEFINED_LOSS = "empty_batch", "undefined_loss"


@dataclass(frozen=True)
class Improvement:
    """One exception: the effect that a comparison then has, and the stages where it may show."""

    id: str
    effect: str
    stages: tuple[str, ...]
    reason: str
    link: str

    @property
    def note(self) -> str:
        """What a comparison says that falls under it."""
        return f"built-in {self.id}: {self.reason}"


@cache
def improvements() -> Mapping[str, Improvement]:
    """All exceptions by their effect, in the order of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["improvement"]
    found = [Improvement(**entry | {"stages": tuple(entry["stages"])}) for entry in entries]
    return {entry.effect: entry for entry in found}


def improvement_rows(results: Iterable["CaseResult"]) -> list[dict[str, Any]]:
    """The exceptions that some cases fall under, with the cases: what the report prints."""
    cases: dict[str, dict[str, None]] = {}
    for result in results:
        for comparison in result.comparisons:
            if comparison.effect in improvements():
                cases.setdefault(comparison.effect, {})[result.id] = None
    return [
        asdict(entry) | {"stages": list(entry.stages), "cases": list(cases[effect])}
        for effect, entry in improvements().items()
        if effect in cases
    ]
