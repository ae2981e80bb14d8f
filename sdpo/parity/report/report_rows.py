"""The parts of a report as types, from which parsing, strictness and the JSON Schema follow.

What a field holds when it is left out of the document is its default here. JSON has no NaN and no
infinities: they are texts in a report.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, field

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import Status
from sdpo.parity.explain.explanation_rows import Certificate
from sdpo.runtime.json_values import Count, Number, Positive, Row


def _one_of(names: Iterable[str], description: str | None = None) -> Meta:
    """Restrict a text to some names: those that a schema then lists."""
    known = list(names)
    pattern = f"^({'|'.join(known)})$"
    return Meta(pattern=pattern, description=description, extra_json_schema={"enum": known})


_EFFECTS = (
    "",
    "value",
    "nan",
    "finite_where_reference_is_not",
    "zero_probability",
    "zero_weight",
    "empty_batch",
    "undefined_loss",
    "dtype",
    "failure",
)
_RUNG_RESULTS = ("holds", "departs", "loss departs", "gradient departs", "not covered")

StageName = Annotated[str, _one_of(NAMES, "One of the sixteen stages, in causal order.")]
Effect = Annotated[
    str,
    _one_of(
        _EFFECTS,
        "How a value departs: `value` by its size, `nan` where it invents a non-finite value, "
        "`finite_where_reference_is_not`, `dtype` where it is of another dtype than the "
        "reference's (judged for the transcription, a checkout and our own stages alone), "
        "`failure` where a trainer fails or hangs with several processes. The others are "
        "documented improvements, built into the verdict rules.",
    ),
]
Precision = Annotated[str, _one_of(("float64", "float32", "half precision"))]
Text = Annotated[str, Meta(min_length=1)]
Names = Annotated[list[str], Meta(min_length=1)]
Size = Annotated[float, Meta(ge=0)] | Literal["nan", "inf"]
Shape = Annotated[list[Positive], Meta(min_length=3, max_length=3)]
Moment = Annotated[list[Annotated[int, Meta(ge=-1)]], Meta(max_length=3)]
Place = Annotated[
    dict[str, Any],
    Meta(
        description="The element that uses most of its budget: its indices by name, and both "
        "values; `relative` is the size of the whole difference ÷ that of the reference's value.",
        extra_json_schema={"required": ["actual", "expected"]},
    ),
]


class CaseFigures(NamedTuple):
    """The largest errors of a case at a stage."""

    case: str
    status: Status
    budget_used: Size
    max_abs: Size
    max_ulp: Size


class StageRow(Row, frozen=True):
    """One stage over all cases.

    Maxima are over finite elements; `max_ulp` over those larger than their budget. `first_in`
    counts the cases whose first departure, in time, is here, and `introduced` is the worst place
    among these. `empty` counts comparisons in which no element counts; `relative` is the largest
    of the comparisons with the status of the stage.
    """

    name: StageName
    status: Status
    max_abs: Size | None
    max_ulp: Size | None
    budget_used: Size | None
    worst: Place | None
    first_in: Count
    introduced: Place | None
    comparisons: Count
    bit_equal: Count
    empty: Count
    smallest_detectable: Size | None
    relative: Size | None
    note: str
    by_case: list[CaseFigures]

    @property
    def compared(self) -> int:
        """Comparisons in which an element counts."""
        return self.comparisons - self.empty


class ComparisonRow(Row, frozen=True, omit_defaults=True):
    """One value of one stage as it was measured, before any declaration.

    `relative` is the size of the difference ÷ the size of the reference's value, in the norm;
    missing where the value is no larger than its budget. `inherits` is an earlier divergent stage
    of the same case that the value follows from. `place` is update, optimizer step and micro-batch
    of a value of a training; -1 before the first update. `may_follow` names stages whose result
    was not recorded since the last value that is known to be right, and that the value may follow
    from.
    """

    stage: StageName
    status: Status
    compared: Count = 0
    max_abs: Size = 0.0
    max_ulp: Size = 0.0
    budget_used: Size = 0.0
    smallest_detectable: Size | None = None
    relative: Size | None = None
    worst: Place = field(default_factory=dict)
    note: str = ""
    effect: Effect = ""
    inherits: Annotated[str, _one_of(("", *NAMES))] = ""
    place: Moment = field(default_factory=list)
    may_follow: list[StageName] = field(default_factory=list)


class CaseRow(Row, frozen=True):
    """One case; `status` is judged by the policy, `comparisons` are as measured.

    Where `may_follow` is true, the first departure may follow from those of other cases, which
    decide the first stage: it is a probe's, or of values whose weights were not recorded.
    """

    id: str
    family: str
    tags: list[str]
    status: Status
    first_stage: StageName | None
    note: str
    may_follow: bool
    comparisons: list[ComparisonRow]


class Rung(Row, frozen=True):
    """A generated case of the ladder of interventions, and what it showed."""

    stage: StageName
    feature: str
    result: Annotated[str, _one_of(_RUNG_RESULTS)]
    factor: Number | None


class Coverage(Row, frozen=True):
    """The stages that were compared, and the others."""

    covered: list[StageName]
    not_covered: list[StageName]


class Totals(Row, frozen=True, kw_only=True, omit_defaults=True):
    """Counts of cases and comparisons; those without an element that counts are `empty`."""

    cases: Count
    by_status: dict[Status, Count]
    comparisons: Count
    empty: Count | None = None
    bit_equal: Count
    elements: Count


class Sensitivity(Row, frozen=True, omit_defaults=True):
    """By stage the smallest relative change of an element that would fail, and the certificate.

    The certificate `faults` is missing if no stage of the loss is exposed.
    """

    smallest_detectable: dict[StageName, Size]
    faults: Certificate | None = None


class TrainerEffect(Row, frozen=True):
    """A trainer's update in one scenario beside the reference's own run of it.

    Ratio of the gradients' norms, their cosine, distance ÷ the reference's norm; distances of
    weights and teacher ÷ the way gone; of the first step the loss that was logged, the one that
    the trainer optimised, and the reference's. `introduced` are stages that depart by themselves,
    in order. Null where there is nothing to compare.
    """

    scenario: str
    description: str
    introduced: list[StageName]
    explained_by: list[str]
    gradient_ratio: Number | None
    gradient_cosine: Number | None
    gradient_distance: Number | None
    parameters_distance: Number | None
    teacher_distance: Number | None
    logged_loss: Number | None
    optimised_loss: Number | None
    reference_loss: Number | None


class BundleRow(Row, frozen=True):
    """A replay bundle of a failing case.

    `before` and `after` shrinking: rows, tokens and vocabulary, or of a trainer updates, groups
    and rows.
    """

    case: str
    file: str
    before: Shape
    after: Shape
    tries: Positive


class ImprovementRow(Row, frozen=True):
    """A documented improvement on the reference, and the cases that fall under it."""

    id: str
    effect: Effect
    stages: list[StageName]
    reason: Text
    link: str
    cases: Names


class PrecisionRow(Row, frozen=True):
    """Where the candidate computes in less precision than it is given, by measurement.

    Which values, in how many of the cases searched, and whose budgets judge these cases.
    """

    given: Precision
    computes_in: Precision
    values: Names
    cases: Positive
    of: Positive
    judged_by: Precision
