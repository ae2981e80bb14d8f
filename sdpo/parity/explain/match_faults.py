"""Which known fault gives a candidate's results? Single faults first, then pairs.

A fault explains a candidate if, on every case, candidate and fault agree within what two correct
evaluations may differ by: on the cases where the candidate diverges, of which the fault must change
at least half itself, and on those where it holds. Faults that these cases cannot tell apart are all
named. A fault that leaves the reference as it is on all cases explains nothing. Where no fault
explains all cases, one may that the candidate has under one setting only (`one_setting_only.py`).
Cases with infinite or undefined inputs are left out, and batches in which nothing counts where the
candidate holds: implementations differ there whatever else they do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import torch

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.agreement import Values
from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation
from sdpo.parity.explain.one_setting_only import condition
from sdpo.parity.faults.catalogue import LOSS_FAULTS, Fault
from sdpo.parity.faults.evaluate_fault import fault_trace
from sdpo.parity.faults.reference_parts import LossPart
from sdpo.parity.truth.tolerances import TOLERANCES

MOST_NAMED = 6
CACHED_EVALUATIONS = 8192
# Pairs are tried until their evaluations have cost this much, in elements of logits: seconds on
# one core. A count, not a clock, so that two runs of an audit try the same pairs.
MOST_WORK = 400_000_000
WORK_OF_A_CALL = 20_000


@dataclass(frozen=True)
class Explanation:
    """One fault, or two together, that give the candidate's results; `only` under this setting.

    `cases` are the diverging ones in which they show.
    """

    faults: tuple[Fault, ...]
    only: str = ""
    cases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What reports print."""
        label = " + ".join(fault.label for fault in self.faults)
        return f"{label}, only with {self.only}" if self.only else label

    @property
    def stage(self) -> str:
        """The first stage that departs."""
        return min((fault.stage for fault in self.faults), key=NAMES.index)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a fault gives on a case; `changed` names the values that depart from the reference."""

    values: Values
    complaint: str
    changed: frozenset[str]
    allowed: Values

    @property
    def changes(self) -> bool:
        """Whether the fault departs from the reference."""
        return bool(self.complaint or self.changed)

    def shows_in(self, observation: Observation) -> bool:
        """Whether the fault departs in what was observed."""
        return bool(self.complaint or self.changed & observation.values.keys())


@dataclass
class Search:
    """How far the search went: single faults and pairs tried, of how many."""

    faults: int = 0
    pairs: int = 0
    pairs_tried: int = 0
    work_left: int = MOST_WORK

    def row(self) -> dict[str, Any]:
        """The search in the report."""
        found = asdict(self)
        del found["work_left"]
        return found


def explain(
    observations: Sequence[Observation],
    *,
    after_log_probs: bool = False,
    search: Search | None = None,
) -> list[Explanation]:
    """The smallest explanations of a divergent candidate, at most `MOST_NAMED`.

    Args:
        observations: the candidate's results, on cases where it diverges and where it holds.
        after_log_probs: only faults of a loss that is given log-probs.
        search: is told how far the search went; its `work_left` bounds the pairs, single faults
            are always tried.
    """
    search = search or Search()
    ordered = in_order(observations)
    if not ordered or not ordered[0].diverges:
        return []
    faults = [f for f in LOSS_FAULTS if f.after_log_probs or not after_log_probs]
    search.faults = len(faults)
    alone = [((fault,), explains((fault,), ordered)) for fault in faults]
    found = [Explanation(single, cases=cases) for single, cases in alone if cases]
    if not found:
        found = [part for fault in faults if (part := explains_in_part(fault, ordered)) is not None]
    return (found or list(explaining_pairs(faults, ordered, search)))[:MOST_NAMED]


def stage_of(explanations: Sequence[Explanation]) -> str | None:
    """The first stage that all explanations agree on."""
    stages = {explanation.stage for explanation in explanations}
    return stages.pop() if len(stages) == 1 else None


def in_order(observations: Sequence[Observation]) -> list[Observation]:
    """Divergent cases first, those with the fewest features at the front; inputs all finite."""

    def features(observation: Observation) -> tuple[bool, bool, int, int]:
        case = observation.evaluated.case
        switched_on = (
            case.config.temperature != 1.0,
            case.config.is_clip is not None,
            case.rollout_is_weights is not None,
            case.self_distillation_mask is not None,
            bool((case.response_mask == 0).any()),
        )
        low = case.student_logits.element_size() < 4
        return not observation.diverges, low, sum(switched_on), case.student_logits.numel()

    usable = [
        observation
        for observation in observations
        if observation.evaluated.finite
        and (observation.diverges or observation.evaluated.truth.counts.any())
    ]
    return sorted(usable, key=features)


def explains(
    faults: tuple[Fault, ...], ordered: Sequence[Observation], search: Search | None = None
) -> tuple[str, ...]:
    """The diverging cases in which some faults show that give the results on all cases.

    None where they do not, or show in less than half of the diverging cases.
    """
    shown: list[str] = []
    diverging = 0
    for observation in ordered:
        if search is not None:
            search.work_left -= WORK_OF_A_CALL + observation.evaluated.case.student_logits.numel()
        if not agrees_in_loss(observation, faults):
            return ()
        given = evaluation(faults, observation.evaluated)
        if given is None or not agrees(observation, given):
            return ()
        if observation.diverges:
            diverging += 1
            shown += [observation.evaluated.case.id] if given.shows_in(observation) else []
    return tuple(dict.fromkeys(shown)) if shows_enough(len(shown), diverging) else ()


def shows_enough(shown: int, diverging: int) -> bool:
    """Whether a fault shows on so many of the divergent cases that it may explain them all."""
    return diverging > 0 and diverging - shown <= TOLERANCES.fault_hidden_share * diverging


def explains_in_part(fault: Fault, ordered: Sequence[Observation]) -> Explanation | None:
    """A fault that gives the candidate's results wherever it diverges, under one setting only."""
    shows, spared, diverging = [], [], 0
    for observation in ordered:
        given = evaluation((fault,), observation.evaluated)
        alike = given is not None and agrees(observation, given)
        diverging += observation.diverges
        if given is not None and alike and observation.diverges:
            # in half precision entry by entry a fault may hide in what the whole betrays
            shows += [observation.evaluated.case] if given.shows_in(observation) else []
        elif observation.diverges:
            return None
        elif not alike:
            spared.append(observation.evaluated.case)
    only = condition(shows, spared) if shows_enough(len(shows), diverging) else ""
    cases = tuple(dict.fromkeys(case.id for case in shows))
    return Explanation((fault,), only, cases) if only else None


def agrees(observation: Observation, given: Evaluation) -> bool:
    """Whether a fault gives the candidate's results on one case."""
    if bool(observation.complaint) != bool(given.complaint):
        return False
    room = lenient(given.allowed)
    if "gradient" in room:
        # where the reference has no gradient a fault shows roundings of the natural scale
        few = TOLERANCES.agreement_roundings * torch.finfo(observation.evaluated.case.dtype).eps
        room["gradient"] = np.maximum(
            room["gradient"], few * observation.evaluated.truth.gradient_scale
        )
    return observation.evaluated.agreement.same(observation.values, given.values, room)


def lenient(allowed: Values) -> dict[str, np.ndarray]:
    """How far candidate and fault may be apart: a fault may be worse conditioned."""
    return {name: TOLERANCES.fault_agreement_slack * values for name, values in allowed.items()}


def agrees_in_loss(observation: Observation, faults: tuple[Fault, ...]) -> bool:
    """False if the loss alone rules some faults out, at a fraction of the cost of `evaluation`."""
    if "aggregate" not in observation.values:
        return True
    given = loss_alone(faults, observation.evaluated)
    if given is None:
        return True
    agreement = observation.evaluated.agreement
    loss = {"aggregate": observation.values["aggregate"]}
    return agreement.same(loss, given, lenient(agreement.allowances(given)))


def explaining_pairs(
    faults: Sequence[Fault], ordered: Sequence[Observation], search: Search
) -> Iterator[Explanation]:
    """Pairs of faults in different parts of the loss, until the work is used up.

    A pair of which one fault does nothing on the first case must agree there by the other alone.
    """
    pairs = [p for p in combinations(faults, 2) if not p[0].parts.keys() & p[1].parts.keys()]
    search.pairs = len(pairs)
    first = ordered[0]
    single = {fault.id: evaluation((fault,), first.evaluated) for fault in faults}
    alone = {id_ for id_, given in single.items() if given is not None and agrees(first, given)}
    acting = {id_ for id_, given in single.items() if given is None or given.shows_in(first)}
    for pair in pairs:
        if search.work_left <= 0:
            return
        search.pairs_tried += 1
        both = {fault.id for fault in pair}
        promising = both <= acting or (both & acting and both & acting <= alone)
        if promising and (cases := explains(pair, ordered, search)):
            yield Explanation(pair, cases=cases)


@lru_cache(maxsize=CACHED_EVALUATIONS)
def evaluation(faults: tuple[Fault, ...], evaluated: EvaluatedCase) -> Evaluation | None:
    """What the reference with some faults gives on a case; None if they make it fail."""
    complaint, trace = "", {}
    try:
        trace = fault_trace(parts_of(faults), evaluated.case)
    except BrokenGradientError as error:
        complaint, trace = str(error), error.trace  # type: ignore[attr-defined]
    except CandidateError:
        return None
    agreement = evaluated.agreement
    values = agreement.values_of(trace)
    changed = frozenset(
        name for name, value in values.items() if not agreement.with_reference({name: value})
    )
    return Evaluation(values, complaint, changed, agreement.allowances(values))


@lru_cache(maxsize=CACHED_EVALUATIONS)
def loss_alone(faults: tuple[Fault, ...], evaluated: EvaluatedCase) -> Values | None:
    """The loss that the reference with some faults gives on a case; None if they make it fail."""
    try:
        trace = fault_trace(parts_of(faults), evaluated.case, gradient=False)
    except CandidateError:
        return None
    return evaluated.agreement.values_of({"aggregate": trace["aggregate"]})


def parts_of(faults: tuple[Fault, ...]) -> dict[str, LossPart]:
    """All parts that some faults exchange."""
    return {name: part for fault in faults for name, part in fault.parts.items()}
