"""The report of an audit as one type: read, checked, written, and described by its JSON Schema."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import EXIT_CODES, FAILING, Status, Verdict
from sdpo.parity.explain.explanation_rows import (
    Diagnosis,
    Explanation,
    ExplanationSearch,
    OneDtypeOnly,
)
from sdpo.parity.relations.catalogue import RELATION_NAMES, gravest
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.report.report_context import DeclaredRow, Environment, Location, PolicyRow
from sdpo.parity.report.report_rows import (
    BundleRow,
    CaseRow,
    Coverage,
    ImprovementRow,
    PrecisionRow,
    Rung,
    Sensitivity,
    StageName,
    StageRow,
    Totals,
    TrainerEffect,
)
from sdpo.runtime.json_values import Row

SCHEMA_VERSION = 1
_LARGEST = 256 * 2**20
_AGREEING = {Status.MATCH, Status.PASS, Status.NOT_COVERED}

ExitCode = Annotated[
    int,
    Meta(ge=0, le=3, description="0 PASS or DECLARED, 1 DIVERGENT, 2 ERROR, 3 INCONCLUSIVE"),
]
StageRows = Annotated[list[StageRow], Meta(min_length=len(NAMES), max_length=len(NAMES))]


class ReportError(Exception):
    """A file that is no report; the message says why."""


class InconsistentReportError(ValueError):
    """Numbers of a report contradict each other; the message says which."""


class RunReport(Row, frozen=True, kw_only=True):
    """The audit of one candidate.

    Attributes:
        derives_from: the packaged trainers whose adapter the candidate's is or derives from: what
            is declared of them is declared of it.
        first_stage: the first departure, inferred where the candidate does not show it.
        explained_by: known faults, those that explain most cases first.
        explanations: the same faults, each with the diverging cases that it explains.
        explanation_search: null if nothing was to be explained.
        trainer: of a trainer, each scenario that it ran.
        invariants: each metamorphic relation; beside the verdict, not part of it. Empty only where
            the audit could not be carried out.
        precision: where the candidate computes in less precision than it is given.
        departs_only: the one dtype in which the candidate departs.
        beyond_goldens: claimed stages that the golden data hold nothing for; they are not required.
        lacks: what the loss cannot be asked; cases that need it are NOT_COVERED.
        diagnosis: what failing loss cases have in common, and how much the departure matters.
        stage_locations: where single stages are defined, as far as they are known to lie elsewhere.
        created: UTC, ISO 8601; empty if the audit was lost.
    """

    candidate: str
    kind: str
    derives_from: list[str] = field(default_factory=list)
    verdict: Verdict
    exit_code: ExitCode
    first_stage: StageName | None
    first_stage_inferred: bool
    first_observed: StageName | None
    message: str
    reasons: list[str]
    explained_by: list[str]
    explanations: list[Explanation]
    explanation_search: ExplanationSearch | None
    coverage: Coverage
    stages: StageRows
    cases: list[CaseRow]
    totals: Totals
    sensitivity: Sensitivity
    ladder: list[Rung]
    trainer: list[TrainerEffect]
    invariants: list[RelationRow]
    bundles: list[BundleRow]
    declared: list[DeclaredRow]
    improvements: list[ImprovementRow] = field(default_factory=list)
    precision: list[PrecisionRow] = field(default_factory=list)
    departs_only: OneDtypeOnly | None = None
    policy: PolicyRow
    claims: list[StageName]
    beyond_goldens: list[StageName] | UnsetType = UNSET
    lacks: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None
    doubts: list[str]
    notes: list[str]
    location: Location | None
    stage_locations: dict[StageName, Location]
    repro: str
    environment: Environment
    created: str
    seconds: Annotated[float, Meta(ge=0)]

    @property
    def started(self) -> bool:
        """Whether the audit came to judge anything, so that there is something to report."""
        return bool(self.cases) or self.verdict != Verdict.ERROR

    @property
    def empty(self) -> int:
        """Comparisons in which no element counts."""
        return sum(row.empty for row in self.stages)

    @property
    def compared(self) -> int:
        """Comparisons in which an element counts."""
        return self.totals.comparisons - self.empty

    @property
    def compared_cases(self) -> int:
        """Cases of which anything was compared."""
        return sum(case.status != Status.NOT_COVERED for case in self.cases)

    @property
    def first_row(self) -> StageRow | None:
        """The stage behind `first_stage`: the observed one where that is inferred."""
        name = self.first_observed if self.first_stage_inferred else self.first_stage
        return next((row for row in self.stages if row.name == name), None)

    @property
    def failing_cases(self) -> list[CaseRow]:
        """The cases that diverge or fail."""
        return [case for case in self.cases if case.status in FAILING]

    @property
    def reference_commit(self) -> str | None:
        """The commit of the reference that the golden data were recorded from."""
        commits = (golden.reference_commit for golden in self.environment.goldens)
        return next((commit for commit in commits if commit), None)

    def location_of(self, stage: str | None) -> Location | None:
        """Where the candidate computes a stage, as far as it is known."""
        return self.stage_locations.get(stage or "", self.location)

    def check(self) -> None:
        """Refuse a report whose parts contradict each other.

        Raises:
            InconsistentReportError: totals do not add up, the verdict does not follow from the
                stages, or the first stage not from what was observed.
        """
        for contradiction in self._contradictions():
            raise InconsistentReportError(f"report of {self.candidate}: {contradiction}")

    def _contradictions(self) -> Iterator[str]:
        for what, left, right in self._equalities():
            if left != right:
                yield f"{what}: {left} ≠ {right}"
        for row in self.invariants:
            if row.status != gravest(row.cases):
                yield f"invariant {row.name} is {row.status} with cases {dict(row.cases)}"
        if self._first_stage_is_wrong():
            yield (
                f"first stage {self.first_stage}, inferred: {self.first_stage_inferred}, with "
                f"{self.first_observed} observed"
            )
        statuses = {row.status for row in self.stages}
        allowed = _AGREEING | ({Status.DECLARED} if self.verdict == Verdict.DECLARED else set())
        passes = self.verdict in (Verdict.PASS, Verdict.DECLARED)
        if passes and (statuses - allowed or self.doubts or not self.compared):
            yield (
                f"{self.verdict} with stages {sorted(map(str, statuses))}, {len(self.doubts)} "
                f"doubts and {self.compared} comparisons"
            )

    def _first_stage_is_wrong(self) -> bool:
        """Whether the first stage lies behind what was observed, or was made up."""
        if not self.first_stage_inferred:
            return self.first_stage != self.first_observed
        if self.first_stage is None or self.first_observed is None:
            return True
        return NAMES.index(self.first_stage) > NAMES.index(self.first_observed)

    def _equalities(self) -> Iterator[tuple[str, Any, Any]]:
        """Name what must be equal, with both sides."""
        totals, rows, judged = self.totals, self.stages, self.policy.stages
        listed = [
            c for case in self.cases for c in case.comparisons if not judged or c.stage in judged
        ]
        names = [row.name for row in rows]
        covered = [row.name for row in rows if row.status != Status.NOT_COVERED]
        yield "stages", names, list(NAMES)
        yield "cases", totals.cases, len(self.cases)
        yield "cases by status", totals.by_status, dict(Counter(case.status for case in self.cases))
        yield "comparisons of stages", totals.comparisons, sum(r.comparisons for r in rows)
        yield "comparisons of cases", totals.comparisons, len(listed)
        if totals.empty is not None:
            yield "comparisons without element", totals.empty, self.empty
        yield "bit-equal values", totals.bit_equal, sum(r.bit_equal for r in rows)
        yield "elements", totals.elements, sum(c.compared for c in listed)
        yield "covered stages", self.coverage.covered, covered
        left = [name for name in names if name not in covered]
        yield "stages not covered", self.coverage.not_covered, left
        yield "explanations", self.explained_by, [row.fault for row in self.explanations]
        for row in self.explanations:
            yield f"cases of {row.fault}", row.explains, len(row.cases)
        if faults := self.sensitivity.faults:
            yield "known faults", faults.tested, faults.killed + len(faults.survivors)
        yield "exit code", self.exit_code, EXIT_CODES[self.verdict]
        of_stage = Counter(comparison.stage for comparison in listed)
        for row in rows:
            yield f"comparisons of {row.name}", row.comparisons, of_stage[row.name]
        if self.cases:
            yield "invariants", [row.name for row in self.invariants], list(RELATION_NAMES)


class Report(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `sdpo audit --json` prints and DIR/CANDIDATE/report.json holds.

    Two audits of the same give the same document apart from `created` and `seconds`. `error` says
    why no audit was started, or what could not be written. Runs that contradict themselves are
    refused.
    """

    schema_version: Literal[1]
    runs: list[RunReport]
    error: str = ""

    def __post_init__(self) -> None:
        for run in self.runs:
            run.check()

    def text(self, *, ascii_only: bool = False) -> str:
        """The document as JSON on one line."""
        return json.dumps(msgspec.to_builtins(self), ensure_ascii=ascii_only)


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        ReportError: unreadable, no JSON, of another version, not in the format, or contradicting
            itself.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ReportError(f"{path} is larger than {_LARGEST >> 20} MiB: no report")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise ReportError(
            f"{path} is no report of schema_version {SCHEMA_VERSION}: give a report.json of an "
            "audit"
        )
    try:
        return msgspec.convert(document, Report)
    except msgspec.ValidationError as error:
        raise ReportError(f"{path} is not in the format of a report: {error}") from error


def report_schema() -> str:
    """The JSON Schema of reports, draft 2020-12, as it is shipped in `report.schema.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | msgspec.json.schema(Report), indent=1, ensure_ascii=False) + "\n"
