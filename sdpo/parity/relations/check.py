"""Which metamorphic relations a candidate keeps, measured in its own budgets.

A relation compares results of the candidate with each other, so it needs no reference. The
reference breaks some itself; a candidate is blamed only where the reference keeps the relation.
Results stand beside the stages and do not enter the verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sdpo.parity.candidates.implementations import WHOLE, Transcription
from sdpo.parity.candidates.loss_functions import FromLogits, FromLogProbs
from sdpo.parity.cases.checked_call import (
    INTO_TEACHER,
    BrokenGradientError,
    CandidateError,
    LossCandidate,
    NotCoveredError,
)
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import Values, allowances, prepared, values_of
from sdpo.parity.compare.statuses import RelationStatus
from sdpo.parity.relations.catalogue import (
    GRAVEST,
    NOT_BELOW,
    RELATIONS,
    TEACHER,
    Relation,
    gravest,
)
from sdpo.parity.relations.received_inputs import differences
from sdpo.parity.relations.transformed_cases import Claim, TransformedCase, claims_of
from sdpo.parity.truth.oracle import Array
from sdpo.settings.determinism import reseed

COMPARED = ("aggregate", "gradient")
SEED = 20262

PARTIAL = "stage functions give no loss and gradient from logits"
FROM_LOG_PROBS = "is given log-probs, and the teacher's arrive without gradient"
SAME_GIVEN = "is given log-probs, which the change leaves as they are"
NOTHING_CHANGED = "the change of this relation changes nothing, so that nothing is tested"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClaimOutcome:
    """What one claim showed; `used` is the largest distance ÷ budget of its element.

    `value` is `loss` or `gradient`, `distance` and `budget` are those of that element.
    """

    status: str
    case: str
    used: float | None = None
    value: str = ""
    distance: float | None = None
    budget: float | None = None
    note: str = ""

    def worst(self) -> dict[str, Any] | None:
        """Where most of the budget is used, None where nothing was measured."""
        if self.used is None:
            return None
        numbers = {"used": self.used, "distance": self.distance, "budget": self.budget}
        return {"case": self.case, "value": self.value, **numbers}


@dataclass(frozen=True, eq=False)
class Given:
    """Loss and gradient that a candidate gave on a case, and the budget of each element."""

    values: Values
    budgets: Values
    complaint: str = ""


def evaluate(candidate: LossCandidate, case: LossCase) -> Given:
    """Run a candidate on a generated case.

    Raises:
        CandidateError: the candidate failed.
        NotCoveredError: it does not take what the case needs.
    """
    on, complaint = prepared(case), ""
    reseed(SEED)
    try:
        trace = candidate.trace(case)
    except BrokenGradientError as error:
        trace, complaint = error.trace, str(error)
    values = {n: v for n, v in values_of(on, trace).items() if n in COMPARED}
    with np.errstate(all="ignore"):
        budgets = {name: room / 2 for name, room in allowances(on, values).items()}
    return Given(values, budgets, complaint)


def outcome_of(candidate: LossCandidate, relation: Relation, claim: Claim) -> ClaimOutcome:
    """Test one claim on a candidate."""
    name = claim.case.id
    if refused := nothing_changed(candidate, claim):
        return refused
    try:
        left = evaluate(candidate, claim.case)
        rights = [(part, evaluate(candidate, part.case)) for part in claim.parts]
    except NotCoveredError as error:
        return ClaimOutcome(RelationStatus.NOT_COVERED, name, note=str(error))
    except CandidateError as error:
        return ClaimOutcome(RelationStatus.ERROR, name, note=str(error))
    if relation.kind == TEACHER:
        untested = RelationStatus.NOT_COVERED if left.complaint else RelationStatus.HOLDS
        status = RelationStatus.VIOLATED if left.complaint == INTO_TEACHER else untested
        return ClaimOutcome(status, name, note=left.complaint)
    values = COMPARED[:1] if relation.kind == NOT_BELOW else COMPARED
    given = [left, *(right for _, right in rights)]
    shared = [v for v in values if all(v in g.values for g in given)]
    notes = {g.complaint for g in given if g.complaint and len(shared) < len(values)}
    found = [measured(v, left, rights, name, relation.kind) for v in shared]
    worst = max(found, key=lambda outcome: outcome.used or 0.0)
    return ClaimOutcome(**{**vars(worst), "note": "; ".join(sorted(notes))})


def nothing_changed(candidate: LossCandidate, claim: Claim) -> ClaimOutcome | None:
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


def measured(
    value: str, left: Given, rights: list[tuple[TransformedCase, Given]], case: str, kind: str
) -> ClaimOutcome:
    """Distance of a value from the weighted sum of its parts, element by element."""
    expected = np.zeros_like(left.values[value])
    budget = np.array(left.budgets[value], dtype=np.float64)
    with np.errstate(all="ignore"):
        for part, right in rights:
            place = part.place if value == "gradient" else as_it_is
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
        "loss" if value == "aggregate" else value,
        float(distance[place]),
        float(budget[place]),
    )


def as_it_is(value: Array) -> Array:
    """The loss of a part needs no mapping."""
    return value


def excuse(candidate: Any, relation: Relation) -> str:
    """Why a relation cannot be tested on a candidate, empty if it can."""
    if not set(COMPARED) <= set(candidate.stages):
        return PARTIAL
    return FROM_LOG_PROBS if relation.needs_logits and isinstance(candidate, FromLogProbs) else ""


def as_function(candidate: LossCandidate) -> LossCandidate:
    """The loss function of a whole implementation, which is checked for a gradient elsewhere."""
    return (
        FromLogits(candidate.name, candidate.function)
        if isinstance(candidate, WHOLE)
        else candidate
    )


def outcomes(candidate: LossCandidate, relation: Relation) -> list[ClaimOutcome]:
    """What each claim of a relation shows on a candidate."""
    judged = as_function(candidate) if relation.kind == TEACHER else candidate
    return [outcome_of(judged, relation, claim) for claim in claims_of(relation.name)]


@cache
def of_reference(relation: Relation) -> tuple[ClaimOutcome, ...]:
    """What each claim of a relation shows on the transcription."""
    return tuple(outcomes(Transcription(), relation))


def invariants(candidate: Any, progress: Progress = lambda *_: None) -> list[dict[str, Any]]:
    """One row for each relation, whether it could be tested or not.

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


def row_of(candidate: Any, relation: Relation) -> dict[str, Any]:
    """A relation in the report."""
    reference = of_reference(relation)
    why = excuse(candidate, relation)
    if why:
        found = [
            ClaimOutcome(RelationStatus.NOT_COVERED, outcome.case, note=why)
            for outcome in reference
        ]
    else:
        pairs = zip(outcomes(candidate, relation), reference, strict=True)
        found = [blamed(own, theirs) for own, theirs in pairs]
    return relation_row(relation, found, reference)


def relation_row(
    relation: Relation, found: Sequence[ClaimOutcome], reference: Sequence[ClaimOutcome]
) -> dict[str, Any]:
    """What the report says of a relation, from the outcomes of its cases."""
    status = gravest(outcome.status for outcome in found)
    of_status = [outcome for outcome in found if outcome.status == status]
    shown = max(of_status, key=lambda outcome: outcome.used or 0.0)
    return {
        "name": relation.name,
        "sentence": relation.sentence,
        "pain": relation.pain,
        "status": status,
        "cases": {s: n for s in GRAVEST if (n := sum(o.status == s for o in found))},
        "worst": shown.worst(),
        "of_reference": gravest(outcome.status for outcome in reference),
        "note": shown.note,
    }


def blamed(own: ClaimOutcome, theirs: ClaimOutcome) -> ClaimOutcome:
    """A violation that the reference shows on the same case is inherited."""
    inherited = own.status == RelationStatus.VIOLATED and theirs.status == RelationStatus.VIOLATED
    return ClaimOutcome(**{**vars(own), "status": RelationStatus.INHERITED}) if inherited else own
