"""Metamorphic relations of the loss: what must stay when its inputs are cut, moved or relabelled.

No reference value is needed: a relation compares a candidate with itself, on the claims of
`transformed_cases.py`. `check.py` tests them. Torch is imported when claims are made: a report
needs the names only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from sdpo.parity.compare.statuses import RelationStatus

if TYPE_CHECKING:
    from sdpo.parity.relations.transformed_cases import Claim

EQUAL, NOT_BELOW, TEACHER = "equal", "not below", "teacher"
GRAVEST = (
    RelationStatus.VIOLATED,
    RelationStatus.ERROR,
    RelationStatus.INHERITED,
    RelationStatus.HOLDS,
    RelationStatus.NOT_COVERED,
)


@dataclass(frozen=True)
class Relation:
    """A named relation.

    Attributes:
        name: contract; reports and tests use it.
        sentence: what must hold.
        pain: what users report that it answers, with public threads.
        kind: `equal`: loss and gradient are the claim's sum; `not below`: only the loss, which may
            be larger; `teacher`: no gradient reaches the teacher.
        needs_logits: a candidate that is given log-probs cannot violate it.
        make: builds the claims.
    """

    name: str
    sentence: str
    pain: str
    make: Callable[[], "list[Claim]"]
    kind: str = EQUAL
    needs_logits: bool = False


def gravest(statuses: Iterable[str]) -> str:
    """The gravest status among those of the claims; there is at least one."""
    present = set(statuses)
    return next(status for status in GRAVEST if status in present)


def made() -> ModuleType:
    """The module that makes the claims."""
    from sdpo.parity.relations import transformed_cases

    return transformed_cases


SPLITS = "the split of a batch changes the loss (verl #907, TRL #6006)"
MASKS = "padding or masked rows are trained on (optipfair #34, NeMo-RL #3496)"
TOP_K = "a support that is cut off is no divergence (verl #7856, TRL #5990)"
DIRECTION = "direction and alpha are unclear (TRL #6780, siyan-zhao/OPSD #14)"
TEACHERS = "the teacher is updated otherwise than said (TRL #5862)"
EMPTY = "a batch without a successful rollout (rlhf-book #387)"


RELATIONS = (
    Relation(
        "micro-batch split",
        "The loss of a batch is the mean over its two halves, and so is the gradient.",
        SPLITS,
        lambda: made().splits(made().HALVES),
    ),
    Relation(
        "process split",
        "Two processes that are dealt every other row average to the loss and gradient of one.",
        SPLITS,
        lambda: made().splits(made().DEALT),
    ),
    Relation(
        "gradient accumulation",
        "Rows taken one by one, each with an equal share, accumulate to the gradient of the batch.",
        SPLITS,
        lambda: made().splits(made().ONE_BY_ONE),
    ),
    Relation(
        "padding side",
        "Padding on the left gives what padding on the right gives.",
        MASKS,
        lambda: made().padding_side(),
    ),
    Relation(
        "extra padding",
        "Further columns of padding change nothing and get no gradient, whatever they hold.",
        MASKS,
        lambda: made().extra_padding(),
    ),
    Relation(
        "row order", "Rows in another order give the same.", MASKS, lambda: made().row_order()
    ),
    Relation(
        "masked row",
        "A row that does not count gives what its removal gives, and gets no gradient.",
        MASKS,
        lambda: made().masked_row(),
    ),
    Relation(
        "nothing counts",
        "A batch in which nothing counts has the loss zero and the gradient zero.",
        EMPTY,
        lambda: made().nothing_counts(),
    ),
    Relation(
        "logit shift",
        "A constant added to all logits of one side changes nothing.",
        TOP_K,
        lambda: made().logit_shift(),
        needs_logits=True,
    ),
    Relation(
        "vocabulary order",
        "Another numbering of the vocabulary changes nothing.",
        TOP_K,
        lambda: made().vocabulary_order(),
    ),
    Relation(
        "equal sides",
        "A teacher that equals the student gives the loss zero and the gradient zero.",
        DIRECTION,
        lambda: made().equal_sides(),
    ),
    Relation(
        "never negative",
        "The divergence of a token is not below zero.",
        TOP_K,
        lambda: made().single_tokens(),
        kind=NOT_BELOW,
    ),
    Relation(
        "teacher gets no gradient",
        "No gradient flows into the teacher's logits.",
        TEACHERS,
        lambda: [made().Claim(case) for case in made().bases()],
        kind=TEACHER,
        needs_logits=True,
    ),
    Relation(
        "continuity in alpha",
        "As alpha tends to 0 and to 1, loss and gradient tend to those at 0 and at 1.",
        DIRECTION,
        lambda: made().ends_of_alpha(),
    ),
)
RELATION_NAMES = tuple(relation.name for relation in RELATIONS)


@cache
def claims_of(relation: Relation) -> "tuple[Claim, ...]":
    """The claims of a relation; the same objects each time."""
    return tuple(relation.make())
