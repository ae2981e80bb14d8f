"""What a report says of a relation, from what its claims showed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdpo.parity.compare.statuses import RelationStatus
from sdpo.parity.relations.catalogue import GRAVEST, Relation, gravest
from sdpo.runtime.json_values import Number, Positive, Row


class RelationWorst(Row, frozen=True):
    """The element of the gravest cases that uses most of its budget; `used` is the share."""

    case: str
    value: Literal["loss", "gradient"]
    used: Number
    distance: Number
    budget: Number


class RelationRow(Row, frozen=True):
    """A metamorphic relation: the candidate compared with itself on generated cases.

    `sentence` is what must hold, `pain` the reported pain that it answers, `status` the gravest of
    its cases: VIOLATED, ERROR, INHERITED, HOLDS, NOT_COVERED. `worst` is null where nothing was
    measured.
    """

    name: str
    sentence: str
    pain: str
    status: RelationStatus
    cases: dict[RelationStatus, Positive]
    worst: RelationWorst | None
    of_reference: RelationStatus
    note: str


@dataclass(frozen=True)
class ClaimOutcome:
    """What one claim showed; `used` is the largest distance ÷ budget of its element.

    `value` is `loss` or `gradient`, `distance` and `budget` are those of that element.
    """

    status: RelationStatus
    case: str
    used: float | None = None
    value: Literal["loss", "gradient", ""] = ""
    distance: float | None = None
    budget: float | None = None
    note: str = ""

    def worst(self) -> RelationWorst | None:
        """Say where most of the budget is used; None where nothing was measured."""
        if not self.value or self.used is None or self.distance is None or self.budget is None:
            return None
        return RelationWorst(self.case, self.value, self.used, self.distance, self.budget)


def relation_row(
    relation: Relation, outcomes: Sequence[ClaimOutcome], reference: Sequence[ClaimOutcome]
) -> RelationRow:
    """Put together what the report says of a relation, from the outcomes of its cases."""
    status = gravest(outcome.status for outcome in outcomes)
    of_status = [outcome for outcome in outcomes if outcome.status == status]
    shown = max(of_status, key=lambda outcome: outcome.used or 0.0)
    counts = Counter(outcome.status for outcome in outcomes)
    return RelationRow(
        name=relation.name,
        sentence=relation.sentence,
        pain=relation.pain,
        status=status,
        cases={status: counts[status] for status in GRAVEST if counts[status]},
        worst=shown.worst(),
        of_reference=gravest(outcome.status for outcome in reference),
        note=shown.note,
    )


def blamed(outcome: ClaimOutcome, of_reference: ClaimOutcome) -> ClaimOutcome:
    """Mark a violation as inherited where the reference shows it on the same case."""
    violated = RelationStatus.VIOLATED
    if outcome.status == of_reference.status == violated:
        return replace(outcome, status=RelationStatus.INHERITED)
    return outcome
