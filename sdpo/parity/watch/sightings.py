"""From a report to what departs, and from that to deviations as a ledger names them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.report.report_context import Deviation
from sdpo.parity.report.report_rows import Size
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.watch.watch_line import Departure, WatchLine

FAILED = "error"
"""The effect of a case in which the candidate failed."""


@dataclass
class Sighting:
    """A deviation as one release shows it.

    Attributes:
        id: of its entry in the ledger, else its stage, effect and known fault.
        stage: where it shows.
        fault: id of the known fault behind it; empty for none.
        by_value: whether it is sized by its largest |Δ|, not by the number of cases.
        sizes: the largest |Δ| of each case that shows it.
    """

    id: str
    stage: str
    fault: str
    by_value: bool
    sizes: dict[str, float] = field(default_factory=dict)

    def add(self, departure: Departure) -> None:
        """Count a departure."""
        size = float(departure.size)
        self.sizes[departure.case] = max(size, self.sizes.get(departure.case, size))


def departures_of(run: RunReport) -> tuple[Departure, ...]:
    """Take from a report what departs by itself, the largest value of each case and stage."""
    faults: dict[str, list[str]] = {}
    for row in run.explanations:
        for case in row.cases:
            faults.setdefault(case, []).append(_id_of(row.fault))
    largest: dict[tuple[str, str, str], Departure] = {}
    for case in run.cases:
        for row in case.comparisons:
            if row.status not in FAILING or row.inherits:
                continue
            effect = FAILED if row.status == Status.ERROR else row.effect
            key = (case.id, row.stage, effect)
            before = largest.get(key)
            if before is None or _number(row.max_abs) > _number(before.size):
                largest[key] = Departure(
                    case.id,
                    tuple(case.tags),
                    row.stage,
                    effect,
                    row.max_abs,
                    tuple(faults.get(case.id, ())),
                )
    return tuple(largest.values())


def judged_cases(run: RunReport) -> tuple[str, ...]:
    """The cases of a report in which something was compared."""
    unjudged = (Status.NOT_COVERED, Status.ERROR)
    return tuple(case.id for case in run.cases if case.status not in unjudged)


def sightings(line: WatchLine, ledger: Sequence[Deviation]) -> dict[str, Sighting]:
    """Sum up the departures of a release under the entries of a ledger that speak of them.

    What no entry speaks of is named by stage, effect and the known fault of that stage.
    """
    seen: dict[str, Sighting] = {}
    entries = [entry for entry in ledger if entry.concerns([line.candidate])]
    for departure in line.departures:
        result = CaseResult(departure.case, "", departure.tags)
        comparison = Comparison(
            departure.stage, Status.DIVERGENT, departure.case, effect=departure.effect
        )
        about = [entry for entry in entries if entry.covers(result, comparison)]
        for entry in about:
            row = Sighting(entry.id, departure.stage, entry.fault, entry.sized_by_value)
            seen.setdefault(entry.id, row).add(departure)
        if not about:
            row = _undeclared(departure)
            seen.setdefault(row.id, row).add(departure)
    return seen


def _undeclared(departure: Departure) -> Sighting:
    """A deviation that no ledger names."""
    fault = next((name for name in departure.faults if _is_at(name, departure.stage)), "")
    name = " ".join(filter(None, (departure.stage, departure.effect, fault)))
    return Sighting(name, departure.stage, fault, _is_sized(departure))


def _is_sized(departure: Departure) -> bool:
    """Whether a departure has a size: its values are numbers."""
    return departure.effect == "value" and _number(departure.size) > 0


def _is_at(fault: str, stage: str) -> bool:
    """Whether a known fault, or one of two together, is of a stage."""
    return any(name in BY_ID and BY_ID[name].stage == stage for name in fault.split(" + "))


def _id_of(label: str) -> str:
    """The ids in the label of an explanation: `M07 mean over all rows` is M07."""
    return " + ".join(part.split()[0] for part in label.split(" + "))


def _number(size: Size) -> float:
    """A size that JSON may hold as a text."""
    return float(size)
