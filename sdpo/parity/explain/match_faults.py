"""Searches for the known faults that give a candidate's results: single faults, then pairs.

A fault matches a candidate if the reference with that fault gives the candidate's results, within
what two correct evaluations may differ by, on every case: where the candidate diverges and where it
holds. It must change the results of at least half of the diverging cases; a fault that changes none
matches nothing. All faults that the cases cannot tell apart are named. If no fault matches on all
cases, one may that the candidate has under a single setting only (`one_setting_only.py`).

Left out are cases with infinite or undefined inputs, and batches without a token that counts where
the candidate holds: correct implementations differ there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.agreement import Values
from sdpo.parity.compare.evaluated_case import EvaluatedCase, Observation
from sdpo.parity.explain.explanation_rows import ExplanationSearch
from sdpo.parity.explain.one_setting_only import condition
from sdpo.parity.faults.catalogue import Fault, possible_faults
from sdpo.parity.faults.evaluate_fault import fault_trace
from sdpo.parity.faults.reference_parts import LossPart
from sdpo.parity.truth.tolerances import TOLERANCES

_MOST_NAMED = 6
_CACHED_EVALUATIONS = 8192
# Pairs are tried until their evaluations have cost this much, in elements of logits: seconds on
# one core. A count, not a clock, so that two runs of an audit try the same pairs.
_MOST_WORK = 400_000_000
_WORK_OF_A_CALL = 20_000


@dataclass(frozen=True)
class FaultMatch:
    """One fault, or two together, that give the candidate's results.

    Attributes:
        faults: the one or two.
        only: the setting under which alone the candidate has the fault; empty if it always has.
        cases: the diverging ones whose results the faults change.
    """

    faults: tuple[Fault, ...]
    only: str = ""
    cases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name the faults as reports do."""
        label = " + ".join(fault.label for fault in self.faults)
        return f"{label}, only with {self.only}" if self.only else label

    @property
    def stage(self) -> str:
        """Find the first stage that departs."""
        return min((fault.stage for fault in self.faults), key=NAMES.index)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the reference with some faults gives on a case.

    Attributes:
        values: its stage values.
        complaint: how its gradient is broken; empty if it is not.
        changed: the values that depart from the reference.
        allowed: how far correct evaluations may be from `values`.
    """

    values: Values
    complaint: str
    changed: frozenset[str]
    allowed: Values

    @property
    def changes(self) -> bool:
        """Tell whether the fault departs from the reference."""
        return bool(self.complaint or self.changed)

    def shows_in(self, observation: Observation) -> bool:
        """Tell whether the fault departs in a value that was observed."""
        return bool(self.complaint or self.changed & observation.values.keys())


@dataclass
class Search:
    """Counts the single faults and pairs that were tried; `work_left` bounds the pairs."""

    faults: int = 0
    pairs: int = 0
    pairs_tried: int = 0
    work_left: int = _MOST_WORK

    def row(self) -> ExplanationSearch:
        """Count for the report."""
        return ExplanationSearch(self.faults, self.pairs, self.pairs_tried)


def explain(
    observations: Sequence[Observation],
    *,
    after_log_probs: bool = False,
    search: Search | None = None,
) -> list[FaultMatch]:
    """Find the smallest sets of faults that match a divergent candidate, at most `_MOST_NAMED`.

    Args:
        observations: the candidate's results, on cases where it diverges and where it holds.
        after_log_probs: only faults of a loss that is given log-probs.
        search: is told how far the search went; its `work_left` bounds the pairs, single faults
            are always tried.
    """
    search = search or Search()
    ordered = _in_order(observations)
    if not ordered or not ordered[0].diverges:
        return []
    faults = possible_faults(after_log_probs)
    search.faults = len(faults)
    single = [((fault,), explains((fault,), ordered)) for fault in faults]
    matches = [FaultMatch(fault, cases=cases) for fault, cases in single if cases]
    if not matches:
        partial = (_match_under_one_setting(fault, ordered) for fault in faults)
        matches = [match for match in partial if match is not None]
    return (matches or list(_matching_pairs(faults, ordered, search)))[:_MOST_NAMED]


def stage_of(matches: Sequence[FaultMatch]) -> str | None:
    """Find the first stage that all matches agree on."""
    stages = {match.stage for match in matches}
    return stages.pop() if len(stages) == 1 else None


def _in_order(observations: Sequence[Observation]) -> list[Observation]:
    """Order the usable cases: divergent ones first, then by the number of features."""

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
    """List the diverging cases in which some faults show, if they give the results on all cases.

    Empty where they do not, or where they show in less than half of the diverging cases.
    """
    shown: list[str] = []
    diverging = 0
    for observation in ordered:
        if search is not None:
            search.work_left -= _WORK_OF_A_CALL + observation.evaluated.case.student_logits.numel()
        if not agrees_in_loss(observation, faults):
            return ()
        faulty = evaluation(faults, observation.evaluated)
        if faulty is None or not agrees(observation, faulty):
            return ()
        if observation.diverges:
            diverging += 1
            shown += [observation.evaluated.case.id] if faulty.shows_in(observation) else []
    return tuple(dict.fromkeys(shown)) if shows_enough(len(shown), diverging) else ()


def shows_enough(shown: int, diverging: int) -> bool:
    """Tell whether a fault shows on so many of the divergent cases that it may explain them all."""
    return diverging > 0 and diverging - shown <= TOLERANCES.fault_hidden_share * diverging


def _match_under_one_setting(fault: Fault, ordered: Sequence[Observation]) -> FaultMatch | None:
    """Match a fault that the candidate has wherever it diverges, and under one setting only."""
    shows, spared, diverging = [], [], 0
    for observation in ordered:
        faulty = evaluation((fault,), observation.evaluated)
        matches = faulty is not None and agrees(observation, faulty)
        diverging += observation.diverges
        if faulty is not None and matches and observation.diverges:
            # in half precision each entry of a faulty gradient may be within its budget, while the
            # norm of the gradient is not
            shows += [observation.evaluated.case] if faulty.shows_in(observation) else []
        elif observation.diverges:
            return None
        elif not matches:
            spared.append(observation.evaluated.case)
    only = condition(shows, spared) if shows_enough(len(shows), diverging) else ""
    cases = tuple(dict.fromkeys(case.id for case in shows))
    return FaultMatch((fault,), only, cases) if only else None


def agrees(observation: Observation, faulty: Evaluation) -> bool:
    """Tell whether a fault gives the candidate's results on one case."""
    if bool(observation.complaint) != bool(faulty.complaint):
        return False
    allowed = lenient(faulty.allowed)
    if "gradient" in allowed:
        # where the reference's gradient is zero, that of a fault may be roundings of its terms
        few = TOLERANCES.agreement_roundings * torch.finfo(observation.evaluated.case.dtype).eps
        roundings = few * observation.evaluated.truth.gradient_scale
        allowed["gradient"] = np.maximum(allowed["gradient"], roundings)
    return observation.evaluated.agreement.same(observation.values, faulty.values, allowed)


def lenient(allowed: Values) -> dict[str, np.ndarray]:
    """Widen how far candidate and fault may be apart: a fault may be worse conditioned."""
    return {name: TOLERANCES.fault_agreement_slack * values for name, values in allowed.items()}


def agrees_in_loss(observation: Observation, faults: tuple[Fault, ...]) -> bool:
    """Rule some faults out by the loss alone, at a fraction of the cost of `evaluation`."""
    if "aggregate" not in observation.values:
        return True
    faulty = loss_alone(faults, observation.evaluated)
    if faulty is None:
        return True
    agreement = observation.evaluated.agreement
    loss = {"aggregate": observation.values["aggregate"]}
    return agreement.same(loss, faulty, lenient(agreement.allowances(faulty)))


def _matching_pairs(
    faults: Sequence[Fault], ordered: Sequence[Observation], search: Search
) -> Iterator[FaultMatch]:
    """Yield matching pairs of faults in different parts of the loss, until the work is used up.

    A pair of which one fault does nothing on the first case must agree there by the other alone.
    """
    pairs = [p for p in combinations(faults, 2) if not p[0].parts.keys() & p[1].parts.keys()]
    search.pairs = len(pairs)
    first = ordered[0]
    single = {fault.id: evaluation((fault,), first.evaluated) for fault in faults}
    agreeing = {id_ for id_, faulty in single.items() if faulty and agrees(first, faulty)}
    acting = {id_ for id_, faulty in single.items() if not faulty or faulty.shows_in(first)}
    for pair in pairs:
        if search.work_left <= 0:
            return
        search.pairs_tried += 1
        both = {fault.id for fault in pair}
        promising = both <= acting or (both & acting and both & acting <= agreeing)
        if promising and (cases := explains(pair, ordered, search)):
            yield FaultMatch(pair, cases=cases)


@lru_cache(maxsize=_CACHED_EVALUATIONS)
def evaluation(faults: tuple[Fault, ...], evaluated: EvaluatedCase) -> Evaluation | None:
    """Evaluate the reference with some faults on a case; None if they make it fail."""
    complaint, trace = "", {}
    try:
        trace = fault_trace(_parts_of(faults), evaluated.case)
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


@lru_cache(maxsize=_CACHED_EVALUATIONS)
def loss_alone(faults: tuple[Fault, ...], evaluated: EvaluatedCase) -> Values | None:
    """Compute the loss of the reference with some faults on a case; None if they make it fail."""
    try:
        trace = fault_trace(_parts_of(faults), evaluated.case, gradient=False)
    except CandidateError:
        return None
    return evaluated.agreement.values_of({"aggregate": trace["aggregate"]})


def _parts_of(faults: tuple[Fault, ...]) -> dict[str, LossPart]:
    """Collect all parts of the loss that some faults exchange."""
    return {name: part for fault in faults for name, part in fault.parts.items()}
