"""Declared deviations: known differences with a reason, so that only undeclared ones fail."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from sdpo.parity.compare import DECLARED, DIVERGENT, Comparison
from sdpo.parity.stages import STAGES

PACKAGED = Path(__file__).parent / "deviations.toml"
EFFECTS = ("value", "finite_where_reference_is_not", "zero_weight", "nan")


class DeclaredError(Exception):
    """The file of declared deviations is missing or not in its format."""


@dataclass(frozen=True)
class Deviation:
    """One declared deviation of a candidate from the reference.

    The entry covers a divergent comparison of one of the `candidates`, at one of `stages`, in a
    case that has the tag, with that effect, and with `max_abs` of at most `largest`.
    """

    id: str
    candidates: tuple[str, ...]
    stages: tuple[str, ...]
    tag: str
    effect: str
    reason: str
    largest: float | None = None
    expires: date | None = None
    link: str = ""

    def covers(self, candidate: str, tags: Sequence[str], comparison: Comparison) -> bool:
        """Whether this entry declares a divergent comparison."""
        return (
            self.concerns(candidate)
            and comparison.stage in self.stages
            and comparison.effect == self.effect
            and self.tag in tags
            and (self.largest is None or comparison.max_abs <= self.largest)
        )

    def concerns(self, candidate: str) -> bool:
        """Whether this entry is about a candidate."""
        return candidate in self.candidates

    def expired(self, today: date) -> bool:
        """Whether the entry no longer holds."""
        return self.expires is not None and today > self.expires


def load_declared(path: Path) -> list[Deviation]:
    """Read a file of declared deviations.

    Raises:
        DeclaredError: unreadable, not TOML, unknown or missing fields, or unknown stages.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("deviation", [])
    except OSError as error:
        raise DeclaredError(f"declared deviations: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeclaredError(f"declared deviations: {path} is not TOML: {error}") from error
    return [_deviation(path, entry) for entry in entries]


def _deviation(path: Path, entry: dict[str, Any]) -> Deviation:
    known = {f.name for f in fields(Deviation)}
    if unknown := sorted(set(entry) - known):
        raise DeclaredError(f"{path}: unknown fields {unknown}; valid are {sorted(known)}")
    try:
        lists = {name: tuple(entry[name]) for name in ("candidates", "stages")}
        deviation = Deviation(**{**entry, **lists})
    except (KeyError, TypeError) as error:
        raise DeclaredError(f"{path}: entry {entry.get('id', '?')}: {error}") from error
    if wrong := [stage for stage in deviation.stages if stage not in STAGES]:
        raise DeclaredError(f"{path}: entry {deviation.id}: unknown stages {wrong}")
    if deviation.effect not in EFFECTS:
        raise DeclaredError(f"{path}: entry {deviation.id}: effect must be one of {EFFECTS}")
    return deviation


def apply_declared(
    comparison: Comparison, candidate: str, tags: Sequence[str], declared: Sequence[Deviation]
) -> tuple[Comparison, str | None]:
    """A divergent comparison becomes DECLARED if an entry that has not expired covers it.

    Returns:
        The comparison, and the id of the entry that was used.
    """
    if comparison.status != DIVERGENT:
        return comparison, None
    for deviation in declared:
        if deviation.covers(candidate, tags, comparison):
            if deviation.expired(date.today()):
                note = f"{comparison.note}; {deviation.id} expired on {deviation.expires}"
                return replace(comparison, note=note), None
            note = f"declared as {deviation.id}: {deviation.reason}"
            return replace(comparison, status=DECLARED, note=note), deviation.id
    return comparison, None


def vanished(
    candidate: str, declared: Sequence[Deviation], used: set[str], tags_seen: set[str]
) -> list[Deviation]:
    """Entries of a candidate whose cases ran without showing the deviation."""
    return [
        deviation
        for deviation in declared
        if deviation.concerns(candidate) and deviation.tag in tags_seen and deviation.id not in used
    ]
