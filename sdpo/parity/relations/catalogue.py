"""Metamorphic relations of the loss: what must stay when its inputs are cut, moved or relabelled.

No reference value is needed: a relation compares a candidate with itself, on the claims of
`transformed_cases.py`, which makes them by the relation's name. `check.py` tests them. This module
imports no torch: a report needs the names only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sdpo.parity.compare.statuses import RelationStatus

EQUAL, NOT_BELOW, TEACHER = "equal", "not-below", "teacher"
GRAVEST = (
    RelationStatus.VIOLATED,
    RelationStatus.ERROR,
    RelationStatus.INHERITED,
    RelationStatus.HOLDS,
    RelationStatus.NOT_COVERED,
)

_PAINS = {
    "splits": "the split of a batch changes the loss (verl #907, TRL #6006)",
    "masks": "padding or masked rows are trained on (optipfair #34, NeMo-RL #3496)",
    "top-k": "a support that is cut off is no divergence (verl #7856, TRL #5990)",
    "direction": "direction and alpha are unclear (TRL #6780, siyan-zhao/OPSD #14)",
    "teacher": "the teacher is updated otherwise than said (TRL #5862)",
    "empty": "a batch without a successful rollout (rlhf-book #387)",
}
"""What users report, with public threads."""

# name, pain, kind, which candidates can violate it (given any input, or logits), what must hold
_TABLE = """
micro-batch split       | splits    | equal     | any    | The loss of a batch is the mean over its two halves, and so is the gradient.
process split           | splits    | equal     | any    | Two processes that are dealt every other row average to the loss and gradient of one.
gradient accumulation   | splits    | equal     | any    | Rows taken one by one, each with an equal share, accumulate to the gradient of the batch.
padding side            | masks     | equal     | any    | Padding on the left gives what padding on the right gives.
extra padding           | masks     | equal     | any    | Further columns of padding change nothing and get no gradient, whatever they hold.
row order               | masks     | equal     | any    | Rows in another order give the same.
masked row              | masks     | equal     | any    | A row that does not count gives what its removal gives, and gets no gradient.
nothing counts          | empty     | equal     | any    | A batch in which nothing counts has the loss zero and the gradient zero.
logit shift             | top-k     | equal     | logits | A constant added to all logits of one side changes nothing.
vocabulary order        | top-k     | equal     | any    | Another numbering of the vocabulary changes nothing.
equal sides             | direction | equal     | any    | A teacher that equals the student gives the loss zero and the gradient zero.
never negative          | top-k     | not-below | any    | The divergence of a token is not below zero.
teacher gets no gradient| teacher   | teacher   | logits | No gradient flows into the teacher's logits.
continuity in alpha     | direction | equal     | any    | As alpha tends to 0 and to 1, loss and gradient tend to those at 0 and at 1.
"""  # noqa: E501


@dataclass(frozen=True)
class Relation:
    """A named relation.

    Attributes:
        name: contract; reports and tests use it.
        sentence: what must hold.
        pain: what users report that it answers, with public threads.
        kind: `equal`: loss and gradient are the claim's sum; `not-below`: only the loss, which may
            be larger; `teacher`: no gradient reaches the teacher.
        needs_logits: a candidate that is given log-probs cannot violate it.
    """

    name: str
    sentence: str
    pain: str
    kind: str
    needs_logits: bool


def _relation(row: str) -> Relation:
    """Read a row of the table."""
    name, pain, kind, given, sentence = (cell.strip() for cell in row.split("|"))
    return Relation(name, sentence, _PAINS[pain], kind, given == "logits")


RELATIONS = tuple(_relation(row) for row in _TABLE.strip().splitlines())
RELATION_NAMES = tuple(relation.name for relation in RELATIONS)


def gravest(statuses: Iterable[RelationStatus]) -> RelationStatus:
    """Return the gravest status among those of the claims; there is at least one."""
    present = set(statuses)
    return next(status for status in GRAVEST if status in present)
