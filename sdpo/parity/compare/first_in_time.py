"""First means first: which of a candidate's departures came before all others.

Within a case time decides: the place of a value (update, optimizer step, micro-batch), and at one
place the order of the stages. What a teacher that was not updated does to the log-probs of the next
update is later than the teacher, though its stage has a lower number. Between cases, which are
trained apart, the order of the stages decides, with two reservations:

- a probe says that something moved, and is charged to the stage that it is about, and a relation
  that a candidate does not keep may have any cause; where the case of a scenario or a recording
  departs, that says where, and they are not asked;
- a value whose weights were not recorded since the last one that held (`may_follow`) may follow
  from them; where another case departs at those weights, that is the place.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sdpo.parity.cases.stages import NAMES, first_in_order
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import FAILING

INDIRECT = ("probe", "relation")
BEFORE = (-1, 0, 0)
"""The place of what is settled before the first update."""


class Judged(Protocol):
    """What is used here of what happened to a case (`verdict.CaseResult`)."""

    family: str
    comparisons: list[Comparison]

    @property
    def first_stage(self) -> str | None:
        """The stage that is the first in time to diverge or fail in this case."""
        ...


Case = TypeVar("Case", bound=Judged)


def moment(comparison: Comparison) -> tuple[tuple[int, ...], int]:
    """When a value came about: its place, then its stage."""
    return comparison.place, NAMES.index(comparison.stage)


def earliest(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The failing comparison of one case that came first; inherited ones only if all are."""
    failing = [c for c in comparisons if c.status in FAILING]
    return min([c for c in failing if not c.inherits] or failing, key=moment, default=None)


def openers(result: Judged) -> list[Comparison]:
    """The failing comparisons of a case at its first stage, place and time."""
    first = earliest(result.comparisons)
    if first is None:
        return []
    return [c for c in result.comparisons if c.status in FAILING and moment(c) == moment(first)]


def deciding(results: Sequence[Case]) -> list[Case]:
    """The failing cases whose first departures count: those of the others may follow from them."""
    firsts = [(result, first) for result in results if (first := earliest(result.comparisons))]
    direct = [pair for pair in firsts if pair[0].family not in INDIRECT] or firsts
    certain = {first.stage for _, first in direct if not first.may_follow}
    return [result for result, first in direct if not certain & set(first.may_follow)]


def first_observed(results: Sequence[Judged]) -> str | None:
    """The stage at which a candidate was first seen to depart or fail; None if it was not."""
    return first_in_order({str(result.first_stage) for result in deciding(results)})
