"""What a report was judged by and made with, as types: deviations, policy, environment."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, convert, field

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.improvements import improvements
from sdpo.parity.compare.statuses import FINITE, Status
from sdpo.parity.report.report_rows import Effect, StageName, Text
from sdpo.runtime.json_values import Count, Positive, Row

if TYPE_CHECKING:
    from sdpo.parity.compare.comparison import Comparison
    from sdpo.parity.compare.verdict import CaseResult

ANY = "*"

Amount = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]


class Deviation(Row, frozen=True):
    """One declared deviation of a candidate from the reference.

    The entry is about divergent comparisons of one of the `candidates`, or of an adapter derived
    from that one's, at one of `stages`, with that `effect`, in cases that have the `tag` and, if
    `cases` names some, are among them; `*` is any candidate or tag. Its size is the largest |Δ|
    where the effect is a `value` of a numeric stage, else the number of cases; `measured` is the
    size when it was declared, and `range` the sizes that are allowed. What is a documented
    improvement (`improvements.py`) needs no entry; one with the effect
    `finite_where_reference_is_not` may speak of it all the same, and then shows.
    """

    id: str
    candidates: tuple[str, ...]
    stages: tuple[StageName, ...]
    effect: Effect
    reason: Text
    tag: str = ANY
    cases: tuple[str, ...] = ()
    fault: str = ""
    link: str = ""
    measured: Amount | None = None
    range: tuple[Amount, Amount] | None = None
    expires: date | None = None

    @property
    def sized_by_value(self) -> bool:
        """Whether the size is the largest |Δ|, and not a number of cases."""
        return self.effect == "value" and all(STAGES[s].kind == "numeric" for s in self.stages)

    def covers(self, result: "CaseResult", comparison: "Comparison") -> bool:
        """Whether this entry is about a divergent comparison, whatever its size."""
        effect = FINITE if comparison.effect in improvements() else comparison.effect
        return self.is_about(result, comparison) and effect == self.effect

    def is_about(self, result: "CaseResult", comparison: "Comparison") -> bool:
        """Whether this entry speaks of a case and stage."""
        return (
            comparison.stage in self.stages
            and self.tag in (ANY, *result.tags)
            and (not self.cases or result.id in self.cases)
        )

    def concerns(self, names: Sequence[str]) -> bool:
        """Whether this entry is about a candidate, by its name or one that it derives from."""
        return bool({ANY, *names} & set(self.candidates))

    def expired(self, today: date) -> bool:
        """Whether the entry no longer holds."""
        return self.expires is not None and today > self.expires

    def exceeded_by(self, comparison: "Comparison") -> bool:
        """Whether a comparison alone is larger than the range allows."""
        return self.range is not None and self.sized_by_value and comparison.max_abs > self.range[1]


class DeclaredRow(Deviation, frozen=True, kw_only=True):
    """A declared deviation that concerns the candidate, and how it showed.

    `size` is the largest |Δ| (effect `value` of a numeric stage) or the number of cases; null if
    its cases did not run.
    """

    seen: bool
    seen_cases: Count
    size: Amount | None

    @property
    def entry(self) -> Deviation:
        """The deviation as it was declared."""
        return convert(self, Deviation, from_attributes=True)


class PolicyRow(Row, frozen=True):
    """What was acceptable.

    Only these stages are judged (all if empty), stages required and their least number, share of
    a budget that may be used, and how many cases must be compared at least (or half of those that
    ran, if that is less).
    """

    stages: tuple[StageName, ...] = ()
    require: tuple[StageName, ...] = ()
    coverage: Count = 0
    budget: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_cases: Count = 0


class Location(Row, frozen=True):
    """Where a candidate is defined."""

    file: str
    line: Positive

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class GoldenRow(Row, frozen=True):
    """Golden data that were used."""

    family: str
    cases: Count
    manifest_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    reference_commit: str | None


class Environment(Row, frozen=True, omit_defaults=True):
    """Versions, machine and determinism settings; empty if the audit was lost.

    `tolerances` are all numbers that decide a verdict, withdraw one or attribute a cause.
    """

    sdpo: str = ""
    python: str = ""
    torch: str = ""
    numpy: str = ""
    platform: str = ""
    processor: str = ""
    cpu_capability: str = ""
    determinism: dict[str, Any] = field(default_factory=dict)
    candidate_seeds: list[int] = field(default_factory=list)
    tolerances: dict[str, int | float] = field(default_factory=dict)
    goldens: list[GoldenRow] = field(default_factory=list)


class Seen(Row, frozen=True):
    """What a candidate did with the case of a bundle."""

    status: Status
    first_stage: StageName | None
    note: str
