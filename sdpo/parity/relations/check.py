"""Which metamorphic relations a candidate keeps, measured in its own budgets.

A relation compares results of the candidate with each other, so it needs no reference. The
reference breaks some itself; a candidate is blamed only where the reference keeps the relation.
What it alone violates is a failing case of the audit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from sdpo.parity.candidates.implementations import WHOLE, Transcription
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits, LossFunction
from sdpo.parity.cases.checked_call import (
    INTO_TEACHER,
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
)
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.agreement import Values
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.statuses import RelationStatus, Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.relations.catalogue import NOT_BELOW, RELATIONS, TEACHER, Relation
from sdpo.parity.relations.received_inputs import differences
from sdpo.parity.relations.relation_rows import ClaimOutcome, RelationRow, blamed, relation_row
from sdpo.parity.relations.transformed_cases import Claim, TransformedCase, claims_of
from sdpo.parity.truth.oracle import Array
from sdpo.settings.config import SDPOConfig
from sdpo.settings.determinism import reseed

_COMPARED = ("aggregate", "gradient")
_SEED = 20262

PARTIAL = "stage functions give no loss and gradient from logits"
FROM_LOG_PROBS = "is given log-probs, and the teacher's arrive without gradient"
SAME_GIVEN = "is given log-probs, which the change leaves as they are"
NOTHING_CHANGED = "the change of this relation changes nothing, so that nothing is tested"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """Loss and gradient that a candidate gave on a case, and the budget of each element."""

    values: Values
    budgets: Values
    complaint: str = ""


def _evaluate(candidate: LossCandidate, case: LossCase) -> _Evaluated:
    """Run a candidate on a generated case.

    Raises:
        CandidateError: the candidate failed.
        NotCoveredError: it does not take what the case needs.
    """
    evaluated, complaint = evaluate_case(case), ""
    reseed(_SEED)
    try:
        trace = candidate.trace(case)
    except BrokenGradientError as error:
        trace, complaint = error.trace, str(error)
    values = {n: v for n, v in evaluated.agreement.values_of(trace).items() if n in _COMPARED}
    with np.errstate(all="ignore"):
        budgets = {name: room / 2 for name, room in evaluated.agreement.allowances(values).items()}
    return _Evaluated(values, budgets, complaint)


def outcome_of(candidate: LossCandidate, relation: Relation, claim: Claim) -> ClaimOutcome:
    """Test one claim on a candidate."""
    name = claim.case.id
    if refused := _nothing_changed(candidate, claim):
        return refused
    try:
        left = _evaluate(candidate, claim.case)
        rights = [(part, _evaluate(candidate, part.case)) for part in claim.parts]
    except NotCoveredError as error:
        return ClaimOutcome(RelationStatus.NOT_COVERED, name, note=str(error))
    except CandidateError as error:
        return ClaimOutcome(RelationStatus.ERROR, name, note=str(error))
    if relation.kind == TEACHER:
        untested = RelationStatus.NOT_COVERED if left.complaint else RelationStatus.HOLDS
        status = RelationStatus.VIOLATED if left.complaint == INTO_TEACHER else untested
        return ClaimOutcome(status, name, note=left.complaint)
    values = _COMPARED[:1] if relation.kind == NOT_BELOW else _COMPARED
    sides = [left, *(right for _, right in rights)]
    shared = [v for v in values if all(v in side.values for side in sides)]
    notes = {s.complaint for s in sides if s.complaint and len(shared) < len(values)}
    outcomes = [_measured(v, left, rights, name, relation.kind) for v in shared]
    worst = max(outcomes, key=lambda outcome: outcome.used or 0.0)
    return replace(worst, note="; ".join(sorted(notes)))


def _nothing_changed(candidate: LossCandidate, claim: Claim) -> ClaimOutcome | None:
    """Why a claim tests nothing: the candidate is given the same on all of its cases.

    Not covered where that comes from what the candidate takes; else a claim that changes nothing,
    which is an error of its own.
    """
    parts = [part.case for part in claim.parts]
    if not parts or all(differences(candidate, claim.case, case) for case in parts):
        return None
    if all(differences(None, claim.case, case) for case in parts):
        return ClaimOutcome(RelationStatus.NOT_COVERED, claim.case.id, note=SAME_GIVEN)
    return ClaimOutcome(RelationStatus.ERROR, claim.case.id, note=NOTHING_CHANGED)


def _measured(
    value: str,
    left: _Evaluated,
    rights: list[tuple[TransformedCase, _Evaluated]],
    case: str,
    kind: str,
) -> ClaimOutcome:
    """Distance of a value from the weighted sum of its parts, element by element."""
    expected = np.zeros_like(left.values[value])
    budget = np.array(left.budgets[value], dtype=np.float64)
    with np.errstate(all="ignore"):
        for part, right in rights:
            place = part.place if value == "gradient" else _as_it_is
            expected = expected + part.weight * place(right.values[value])
            budget = budget + abs(part.weight) * place(right.budgets[value])
        gap = left.values[value] - expected
        distance = np.maximum(-gap, 0.0) if kind == NOT_BELOW else np.abs(gap)
        distance = np.where(np.isfinite(gap), distance, np.inf)
        used = np.where(distance == 0, 0.0, distance / budget)
    place = np.unravel_index(int(np.argmax(used)), used.shape)
    share = float(used[place])
    return ClaimOutcome(
        RelationStatus.HOLDS if share <= 1 else RelationStatus.VIOLATED,
        case,
        share,
        "loss" if value == "aggregate" else "gradient",
        float(distance[place]),
        float(budget[place]),
    )


def _as_it_is(value: Array) -> Array:
    """The loss of a part needs no mapping."""
    return value


def _excuse(candidate: LossCandidate, relation: Relation) -> str:
    """Say why a relation cannot be tested on a candidate, empty if it can."""
    if not set(_COMPARED) <= set(candidate.stages):
        return PARTIAL
    return FROM_LOG_PROBS if relation.needs_logits and isinstance(candidate, FromLogProbs) else ""


def _as_function(candidate: LossCandidate) -> LossCandidate:
    """The loss function of a whole implementation, which is checked for a gradient elsewhere."""
    return (
        FromLogits(candidate.name, candidate.function)
        if isinstance(candidate, WHOLE)
        else candidate
    )


def _outcomes(
    candidate: LossCandidate, relation: Relation, claims: Iterable[Claim]
) -> list[ClaimOutcome]:
    """What each claim of a relation shows on a candidate."""
    judged = _as_function(candidate) if relation.kind == TEACHER else candidate
    return [outcome_of(judged, relation, claim) for claim in claims]


@cache
def _of_reference(relation: Relation) -> tuple[ClaimOutcome, ...]:
    """What each claim of a relation shows on the transcription."""
    return tuple(_outcomes(Transcription(), relation, claims_of(relation.name)))


def _claims_within(candidate: LossCandidate, relation: Relation) -> list[Claim] | None:
    """The claims at the plainest settings that a loss takes; None for one that lacks nothing.

    The relation of alpha's ends is about the settings themselves.
    """
    reach = candidate.reach if isinstance(candidate, LossFunction) else None
    if reach is None or not reach.lacks or relation.name == "continuity in alpha":
        return None
    config = SDPOConfig.from_dict(reach.base_settings)

    def moved(case: LossCase) -> LossCase:
        return replace(case, config=config, old_log_probs=None)

    return [
        replace(
            claim,
            case=moved(claim.case),
            parts=tuple(replace(part, case=moved(part.case)) for part in claim.parts),
        )
        for claim in claims_of(relation.name)
    ]


def invariants(candidate: LossCandidate, progress: Progress = lambda *_: None) -> list[RelationRow]:
    """Test all relations, and return the row of each, whether it could be tested or not.

    Args:
        candidate: of any kind but a trainer; only a loss with gradient can be tested.
        progress: told `invariants`, relations done, relations in all.
    """
    rows = []
    for number, relation in enumerate(RELATIONS):
        progress("invariants", number, len(RELATIONS))
        rows.append(row_of(candidate, relation))
    progress("invariants", len(RELATIONS), len(RELATIONS))
    return rows


def row_of(candidate: LossCandidate, relation: Relation) -> RelationRow:
    """Test one relation, and return its row in the report."""
    if excuse := _excuse(candidate, relation):
        reference = _of_reference(relation)
        untested = [
            ClaimOutcome(RelationStatus.NOT_COVERED, outcome.case, note=excuse)
            for outcome in reference
        ]
        return relation_row(relation, untested, reference)
    if (claims := _claims_within(candidate, relation)) is None:
        claims, reference = claims_of(relation.name), _of_reference(relation)
    else:
        reference = _outcomes(Transcription(), relation, claims)
    pairs = zip(_outcomes(candidate, relation, claims), reference, strict=True)
    return relation_row(relation, [blamed(*pair) for pair in pairs], reference)


def violations(rows: Sequence[RelationRow]) -> list[CaseResult]:
    """Give the relations that a candidate violates and the reference keeps, as failing cases."""
    return [_violation(row) for row in rows if row.status == RelationStatus.VIOLATED]


def _violation(row: RelationRow) -> CaseResult:
    """A violated relation as a case: of the gradient, unless the loss alone shows it."""
    worst = row.worst
    finite = worst is None or math.isfinite(float(worst.distance))
    comparison = Comparison(
        "aggregate" if worst is not None and worst.value == "loss" else "gradient",
        Status.DIVERGENT,
        compared=1,
        max_abs=float(worst.distance) if worst and finite else 0.0,
        budget_used=float(worst.used) if worst and finite else 0.0,
        note=f"is violated: {row.sentence}" + (f" ({row.note})" if row.note else ""),
        effect="value" if finite else "nan",
    )
    return CaseResult(f"relation: {row.name}", "relation", comparisons=[comparison])
