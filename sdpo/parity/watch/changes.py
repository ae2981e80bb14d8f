"""Which release introduced, changed or removed which deviation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sdpo.parity.report.report_context import Deviation
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.watch.sightings import Sighting, sightings
from sdpo.parity.watch.watch_line import WatchLine

Kind = Literal["introduced", "changed", "removed"]
Sizes = Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """What a release did to a deviation.

    Attributes:
        id: the deviation.
        stage: where it shows.
        fault: id of the known fault behind it; empty for none.
        kind: what happened.
        release: the first release known to have it so.
        after: the last release known to have had it otherwise.
        is_adjacent: whether no release of the list lies between them.
        before: sizes of the cases that moved, as they were; of one that did not show it none.
        now: the same as they are since.
        by_value: whether sizes are |Δ|; else only cases count.
    """

    id: str
    stage: str
    fault: str
    kind: Kind
    release: str
    after: str
    is_adjacent: bool
    before: Sizes
    now: Sizes
    by_value: bool


def changes(lines: Sequence[WatchLine], ledger: Sequence[Deviation]) -> list[Change]:
    """Follow every deviation through the releases of one upstream.

    A case that a release could not be judged by keeps what is known of it from before; of one that
    is judged for the first time nothing is known from before, so that it is no change.

    Args:
        lines: oldest release first, each once.
        ledger: names deviations.
    """
    seen = {number: sightings(line, ledger) for number, line in enumerate(lines) if line.is_judged}
    names = dict.fromkeys(name for of_release in seen.values() for name in of_release)
    moved = [change for name in names for change in _of_deviation(name, lines, seen)]
    order = {line.short_release: number for number, line in enumerate(lines)}
    return sorted(moved, key=lambda change: (order[change.release], change.id))


def _of_deviation(
    name: str, lines: Sequence[WatchLine], seen: Mapping[int, Mapping[str, Sighting]]
) -> Iterator[Change]:
    """The changes of one deviation, oldest first."""
    shown = [of_release[name] for of_release in seen.values() if name in of_release]
    cases = dict.fromkeys(case for sighting in shown for case in sighting.sizes)
    known: dict[str, float] = {}
    judged_at: dict[str, int] = {}
    for number, of_release in seen.items():
        sizes = of_release[name].sizes if name in of_release else {}
        before = dict(known)
        moved = []
        for case in cases:
            if case not in lines[number].judged:
                continue
            if case not in judged_at:
                before |= {case: sizes[case]} if case in sizes else {}
            elif _differ(known.get(case), sizes.get(case)):
                moved.append(case)
            known.pop(case, None)
            known |= {case: sizes[case]} if case in sizes else {}
        if moved:
            after = min(judged_at[case] for case in moved)
            yield Change(
                name,
                shown[0].stage,
                shown[0].fault,
                "introduced" if not before else "changed" if known else "removed",
                lines[number].short_release,
                lines[after].short_release,
                number - after == 1,
                {case: before[case] for case in moved if case in before},
                {case: known[case] for case in moved if case in known},
                shown[0].by_value,
            )
        judged_at |= {case: number for case in cases if case in lines[number].judged}


def _differ(before: float | None, now: float | None) -> bool:
    """Whether a case shows the deviation otherwise than before: at all, or by its size."""
    if before is None or now is None:
        return (before is None) != (now is None)
    if math.isnan(before) or math.isnan(now):
        return math.isnan(before) != math.isnan(now)
    return before != now and not math.isclose(before, now, rel_tol=TOLERANCES.release_drift_share)
