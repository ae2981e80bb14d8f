"""Documented improvements on the reference: exceptions that hold for every candidate.

`deviations.toml` lists them, each with its reason. Which elements one may be about is decided from
the oracle (`loss_stages.py`, `recorded/updates.py`), never from the candidate's name; a value
counts only if it is the oracle's, within its budget.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIST = Path(__file__).parents[1] / "report" / "deviations.toml"
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
    entries = tomllib.loads(_LIST.read_text(encoding="utf-8"))["improvement"]
    listed = [Improvement(**entry | {"stages": tuple(entry["stages"])}) for entry in entries]
    return {entry.effect: entry for entry in listed}
