"""What the Markdown and the HTML report say, section by section, as plain values.

Templates only lay these values out. Texts of the candidate (names, messages, values) stay separate
fields and are never put into a sentence: the templates quote them. In the sentences of
`sentences.py` `backticks` mark names. An empty section has an empty value, and templates leave it
out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import structs

from sdpo.parity.compare.statuses import RelationStatus, Status, Verdict
from sdpo.parity.explain.explanation_rows import Explanation
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.render import sentences
from sdpo.parity.render.stage_view import FirstDivergence, StageView, first_divergence, stage_view
from sdpo.parity.render.text import certificate, chosen_faults, totals_line
from sdpo.parity.report.judgement import case_count, diagnosis, number
from sdpo.parity.report.report_rows import BundleRow, CaseRow, TrainerEffect
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.truth.tolerances import MEANINGS

_MOST_CASES = 20
_MOST_REASONS = 6
_MOST_IDS = 6

_RELATION_MEANING = {
    RelationStatus.HOLDS: "holds",
    RelationStatus.VIOLATED: "violated",
    RelationStatus.INHERITED: "violated, as by the reference",
    RelationStatus.NOT_COVERED: "not covered",
    RelationStatus.ERROR: "the candidate failed",
}
"""What the statuses of a metamorphic relation mean."""


@dataclass(frozen=True)
class ScenarioView:
    """What a trainer does differently in a scenario, with the stages and the known faults."""

    effect: TrainerEffect
    introduced: str
    explained_by: str


@dataclass(frozen=True)
class RelationView:
    """A metamorphic relation: what it says, and what candidate and reference make of it."""

    name: str
    sentence: str
    pain: str
    status: RelationStatus
    candidate: str
    reference: str
    cases: str
    used: str
    value: str
    case: str
    note: str


@dataclass(frozen=True)
class UntestedRelations:
    """Metamorphic relations that were not tested, all for one reason."""

    note: str
    names: str


@dataclass(frozen=True)
class RelationsSection:
    """The metamorphic relations that were tested, and the others by reason."""

    tested: list[RelationView]
    untested: list[UntestedRelations]


@dataclass(frozen=True)
class GoldenView:
    """Golden data: family, cases, hash of the manifest, reference commit, results."""

    family: str
    cases: int
    manifest_sha256: str
    reference_commit: str | None
    results: str


@dataclass(frozen=True)
class DeclaredView:
    """A declared deviation, or a documented improvement that some cases fall under."""

    id: str
    stages: str
    seen: str
    size: str
    reason: str


@dataclass(frozen=True)
class CaseGroup:
    """Cases that carry the same note: their number, the first identifiers, how many more."""

    note: str
    count: int
    ids: list[str]
    more: int


@dataclass(frozen=True)
class Sections:
    """All sections of a report on one run; the templates use them by these names."""

    candidate: str
    kind: str
    verdict: Verdict
    headline: str
    message: str
    summary: list[str]
    diagnosis: list[tuple[str, str]]
    covers: dict[str, str]
    stages: list[StageView]
    left_out: list[StageView]
    legend: str
    totals: str
    certificate: str
    first: FirstDivergence | None
    effects: list[ScenarioView]
    relations: RelationsSection | None
    goldens: list[GoldenView]
    declared: list[DeclaredView]
    failing: list[CaseRow]
    failing_count: int
    not_covered: list[CaseGroup]
    explained_by: list[Explanation]
    also: list[Explanation]
    cases_are: str
    searched: str
    bundles: list[BundleRow]
    reasons: list[str]
    more_reasons: int
    notes: list[str]
    location: str
    environment: list[tuple[str, str]]
    tolerances: list[tuple[str, str, str]]
    repro: str


def sections(run: RunReport) -> Sections:
    """Put together all sections of a report on one run."""
    commit = run.reference_commit
    views = [stage_view(row, commit) for row in run.stages]
    message = run.message if run.verdict != Verdict.INCONCLUSIVE else ""
    reasons = [reason for reason in run.reasons if reason != message]
    return Sections(
        candidate=run.candidate,
        kind=run.kind,
        verdict=run.verdict,
        headline=sentences.headline(run),
        message=message,
        summary=sentences.summary(run),
        diagnosis=diagnosis(run),
        covers=sentences.covers(run),
        stages=[view for view in views if view.status != Status.NOT_COVERED],
        left_out=[view for view in views if view.status == Status.NOT_COVERED],
        legend=sentences.legend(run),
        totals=totals_line(run),
        certificate=certificate(run),
        first=first_divergence(run, commit),
        effects=[_scenario(run, effect) for effect in run.trainer],
        relations=_relations(run.invariants),
        goldens=_goldens(run),
        declared=_declared(run),
        failing=run.failing_cases[:_MOST_CASES],
        failing_count=len(run.failing_cases),
        not_covered=_grouped(c for c in run.cases if c.status == Status.NOT_COVERED),
        explained_by=[row for row in run.explanations if not row.also],
        also=[row for row in run.explanations if row.also],
        cases_are="scenarios" if run.trainer else "cases",
        searched=sentences.searched(run),
        bundles=run.bundles,
        reasons=reasons[:_MOST_REASONS],
        more_reasons=max(0, len(reasons) - _MOST_REASONS),
        notes=run.notes,
        location=str(run.location) if run.location else "",
        environment=_environment(run),
        tolerances=_tolerances(run),
        repro=run.repro,
    )


def _scenario(run: RunReport, effect: TrainerEffect) -> ScenarioView:
    introduced = sentences.names(effect.introduced) if effect.introduced else "-"
    faults = ", ".join(label.split()[0] for label in chosen_faults(run, effect))
    return ScenarioView(effect, introduced, faults)


def _relations(rows: Sequence[RelationRow]) -> RelationsSection | None:
    """The metamorphic relations, those that were not tested by reason."""
    if not rows:
        return None
    untested: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.status == RelationStatus.NOT_COVERED:
            untested[row.note].append(row.name)
    return RelationsSection(
        [_relation(row) for row in rows if row.status != RelationStatus.NOT_COVERED],
        [UntestedRelations(note, sentences.names(names)) for note, names in untested.items()],
    )


def _relation(row: RelationRow) -> RelationView:
    worst = row.worst
    tested = sum(row.cases.values()) - row.cases.get(RelationStatus.NOT_COVERED, 0)
    return RelationView(
        name=row.name,
        sentence=row.sentence,
        pain=row.pain,
        status=row.status,
        candidate=_RELATION_MEANING[row.status],
        reference=_RELATION_MEANING[row.of_reference],
        cases=f"{tested} of {sum(row.cases.values())}",
        used=number(worst.used) if worst else "-",
        value=worst.value if worst else "",
        case=worst.case if worst else "",
        note=row.note,
    )


def _goldens(run: RunReport) -> list[GoldenView]:
    """The golden data used, with the results of their cases."""
    rows = []
    for golden in run.environment.goldens:
        statuses = Counter(case.status for case in run.cases if case.family == golden.family)
        present = (status for status in sentences.LEGEND if statuses[status])
        results = ", ".join(f"{statuses[status]} {status}" for status in present)
        rows.append(GoldenView(**structs.asdict(golden), results=results or "not audited"))
    return rows


def _declared(run: RunReport) -> list[DeclaredView]:
    """Declared deviations, and the documented improvements that some cases fall under."""
    declared = [
        DeclaredView(
            id=entry.id,
            stages=", ".join(entry.stages),
            seen=f"{entry.seen_cases} cases" if entry.seen else "no",
            size=sentences.declared_size(entry),
            reason=entry.reason,
        )
        for entry in run.declared
    ]
    improvements = [
        DeclaredView(row.id, ", ".join(row.stages), case_count(row), "built-in", row.reason)
        for row in run.improvements
    ]
    return declared + improvements


def _grouped(cases: Iterable[CaseRow]) -> list[CaseGroup]:
    """Group cases by their notes."""
    by_note: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_note[case.note].append(case.id)
    return [
        CaseGroup(note, len(ids), ids[:_MOST_IDS], len(ids) - _MOST_IDS)
        for note, ids in by_note.items()
    ]


def _environment(run: RunReport) -> list[tuple[str, str]]:
    """Versions, machine and determinism settings, flat."""
    pairs = []
    for key, value in msgspec.to_builtins(run.environment).items():
        if key == "tolerances":
            continue
        if isinstance(value, dict):
            pairs += [(f"{key}: {inner}", str(setting)) for inner, setting in value.items()]
        elif key != "goldens":
            items = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((key, items))
    return [*pairs, ("created", run.created)] if run.created else pairs


def _tolerances(run: RunReport) -> list[tuple[str, str, str]]:
    """Each tolerance of the audit with what it allows, where this version still has it."""
    used = run.environment.tolerances
    return [(name, f"{value:g}", MEANINGS.get(name, "")) for name, value in used.items()]
