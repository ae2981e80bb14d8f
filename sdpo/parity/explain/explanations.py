"""Known faults that explain a candidate, each with the diverging cases that it explains.

Ordered by their number. A fault that explains one case of forty does not stand beside one that
explains thirty-nine: below a quarter of what the first explains (`explanation_beside_share`) it is
told apart, as "also". It may be a second fault that few cases can show, or a likeness.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.parity.truth.tolerances import TOLERANCES


@dataclass(frozen=True)
class Explained:
    """A known fault, the diverging cases whose results it gives, and how many cases diverge."""

    fault: str
    cases: tuple[str, ...]
    of: int


def ranked(cases: Mapping[str, Iterable[str]], of: int) -> list[Explained]:
    """Faults with their cases, those of most cases first; equal ones in the order given."""
    found = [Explained(fault, tuple(sorted(set(ids))), of) for fault, ids in cases.items()]
    return sorted(found, key=lambda one: -len(one.cases))


def united(*several: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Cases by fault, from several searches."""
    found: dict[str, set[str]] = {}
    for cases in several:
        for fault, ids in cases.items():
            found.setdefault(fault, set()).update(ids)
    return found


def in_all(tried: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Faults that give all departing values of a stage, of one scenario.

    A teacher that was averaged too early is one that was not updated, in the first update.

    Args:
        tried: by stage, of each departing value the faults that give it.
    """
    common = [[f for f in of[0] if all(f in found for found in of)] for of in tried.values() if of]
    return list(dict.fromkeys(fault for faults in common for fault in faults))


def fewest(alternatives: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Few faults that explain every case, each with its cases.

    Args:
        alternatives: of each case the faults that explain it. Scenarios of a trainer differ in one
            setting, so that a single fault explains what shows in one; faults that one scenario
            cannot tell apart another may.
    """
    open_, chosen = [set(faults) for faults in alternatives.values() if faults], []
    while open_:
        faults = sorted(set().union(*open_))
        best = max(faults, key=lambda fault: sum(fault in faults for faults in open_))
        chosen.append(best)
        open_ = [faults for faults in open_ if best not in faults]
    return {f: {id_ for id_, faults in alternatives.items() if f in faults} for f in chosen}


def rows(found: Sequence[Explained]) -> list[dict[str, Any]]:
    """The explanations in the report."""
    most = max((len(one.cases) for one in found), default=0)
    return [
        {
            "fault": one.fault,
            "explains": len(one.cases),
            "of": one.of,
            "also": len(one.cases) < TOLERANCES.explanation_beside_share * most,
            "cases": list(one.cases),
        }
        for one in found
    ]
