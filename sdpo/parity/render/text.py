"""The report as text for a terminal or a CI log. The first line is contract."""

import math
from collections.abc import Sequence

from sdpo.parity.compare.statuses import RelationStatus, Verdict
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.report.judgement import (
    diagnosis,
    explanations,
    improvement_lines,
    judgement,
    number,
)
from sdpo.parity.report.report_rows import Place, TrainerEffect
from sdpo.parity.report.run_report import RunReport

_MOST_CASES = 8
_MOST_SURVIVORS = 6
_MOST_CONDITIONS = 3


def first_line(run: RunReport) -> str:
    """Verdict, candidate, and what a reader of one line needs; empty fields are left out."""
    fields = [run.verdict, f"candidate={run.candidate}"]
    if run.first_stage:
        fields.append(f"first={run.first_stage}")
    if run.verdict == Verdict.DIVERGENT and (row := run.first_row):
        fields.extend(_introduced(row.introduced or row.worst or {}))
    if run.verdict == Verdict.DIVERGENT and run.departs_only:
        fields.append(f"only={run.departs_only.dtype}")
    if run.started:
        covered = run.coverage.covered
        total = len(covered) + len(run.coverage.not_covered)
        fields.append(f"coverage={len(covered)}/{total}")
        fields.append(f"cases={run.compared_cases}/{len(run.cases)}")
    if run.explained_by:
        fields.append(f"explained_by={explanations(run)}")
    if run.message:
        fields.append(f'message="{one_line(run.message)}"')
    if run.repro:
        fields.append(f'repro="{run.repro}"')
    return " ".join(fields)


def error_line(candidate: str, message: str) -> str:
    """The first line where there is no verdict."""
    return f'ERROR candidate={candidate} message="{one_line(message)}"'


def _introduced(worst: Place) -> list[str]:
    """Error and budget of the worst element, where both are numbers, and the relative size."""
    values = [worst.get(name) for name in ("actual", "expected", "budget")]
    numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    if len(numbers) < len(values):
        return []
    actual, expected, budget = numbers
    found = [f"introduced={number(abs(actual - expected))}", f"budget={number(budget)}"]
    if (relative := worst.get("relative")) is not None:
        found.append(f"relative={number(relative)}")
    return found


def chosen_faults(run: RunReport, effect: TrainerEffect) -> list[str]:
    """Known faults of a scenario; of those it cannot tell apart, the ones named for the run."""
    labels = effect.explained_by
    return [label for label in labels if label in run.explained_by] or labels


def first_places(run: RunReport) -> str:
    """At which stages failing cases first depart, and how many at each; empty if none fails."""
    rows = [row for row in run.stages if row.first_in]
    return ", ".join(f"{row.name} in {row.first_in}" for row in rows)


def one_line(text: str) -> str:
    """A message without line breaks and double quotes."""
    return " ".join(text.split()).replace('"', "'")


def front(run: RunReport) -> str:
    """First line, diagnosis and reasons: what a reader needs who reads nothing else."""
    reasons = [f"  reason: {one_line(r)}" for r in run.reasons if r != run.message]
    return "\n".join([*_head(run), *reasons])


def _head(run: RunReport, folder: str = "") -> list[str]:
    """The first line and the diagnosis below it."""
    labelled = [(f"{label}:", one_line(said)) for label, said in diagnosis(run, folder)]
    return [first_line(run), *(f"  {label:<11} {said}" for label, said in labelled)]


def text_report(run: RunReport, folder: str = "") -> str:
    """First line, diagnosis, stage table, totals and reasons; the first line without an audit.

    `folder` is where the files of the report lie.
    """
    if not run.started:
        return first_line(run)
    lines = _head(run, folder)
    if run.first_stage_inferred:
        how = "by intervention" if run.ladder else "from the known fault that explains it"
        lines.append(f"  first stage inferred {how}; first observed at {run.first_observed}")
    if places := first_places(run):
        lines.append(f"  first departures by case: {places}")
    lines.append("")
    lines.append(
        f"  {'stage':<18} {'status':<11} {'compared':>8} {'bit-equal':>9} {'max |Δ|':>9} "
        f"{'max ULP':>9} {'of budget':>9} {'of value':>9}"
    )
    for row in run.stages:
        lines.append(
            f"  {row.name:<18} {row.status:<11} {row.compared:>8} "
            f"{row.bit_equal:>9} {number(row.max_abs):>9} {number(row.max_ulp):>9} "
            f"{number(row.budget_used):>9} {number(row.relative):>9}"
        )
    lines.append("")
    lines.append(f"  {totals_line(run)}")
    if (search := run.explanation_search) and not run.explained_by:
        lines.append(
            f"  no explanation among {search.faults} known faults and "
            f"{search.pairs_tried} of {search.pairs} pairs"
        )
    if sentence := certificate(run):
        lines.append(f"  {sentence}")
    lines.extend(_relation_lines(run.invariants))
    lines.extend(_effect_line(run, effect) for effect in run.trainer if effect.introduced)
    lines.extend(f"  {sentence}" for sentence in [*judgement(run), *improvement_lines(run)])
    lines.extend(f"  note: {note}" for note in run.notes)
    lines.extend(f"  reason: {one_line(reason)}" for reason in run.reasons)
    lines.extend(
        f"  {case.status} {case.id}: {one_line(case.note)}"
        for case in run.failing_cases[:_MOST_CASES]
    )
    return "\n".join(lines)


def totals_line(run: RunReport) -> str:
    """Counts of cases and comparisons, and the time.

    Comparisons in which no element counts (all tokens of a case are masked, say) are part of
    `comparisons` in `report.json`, and are said apart here.
    """
    return f"{case_counts(run)}; {comparison_counts(run)}; {run.seconds:.1f} s"


def case_counts(run: RunReport) -> str:
    """How many cases there are, and how many have each status."""
    return f"{run.totals.cases} cases ({status_counts(run)})"


def status_counts(run: RunReport) -> str:
    """How many cases have each status; `none` without any."""
    counts = run.totals.by_status.items()
    return ", ".join(f"{count} {status}" for status, count in counts) or "none"


def comparison_counts(run: RunReport) -> str:
    """How many comparisons were made, of how many elements, and how many are bit-equal."""
    totals = run.totals
    empty = f" ({run.empty} more have no element that counts)" if run.empty else ""
    return (
        f"{run.compared} comparisons of {totals.elements} elements, "
        f"{totals.bit_equal} bit-equal{empty}"
    )


def certificate(run: RunReport) -> str:
    """How many known faults the cases of the audit would have shown; empty if it was not asked."""
    row = run.sensitivity.faults
    if row is None:
        return ""
    least = "at least " if run.lacks else ""
    sentence = f"certificate: {least}{row.killed} of {row.tested} known faults show on these cases"
    if under := row.conditional:
        sentence += f", {under.killed} of {under.tested} under one of {under.conditions} conditions"
        worst = [f"{name} {shown}" for name, shown in under.least.items()][:_MOST_CONDITIONS]
        sentence += f" (least: {'; '.join(worst)})" if worst else ""
    if not (left := row.survivors):
        return sentence
    more = f" and {len(left) - _MOST_SURVIVORS} more" if len(left) > _MOST_SURVIVORS else ""
    return f"{sentence}; not {'; '.join(left[:_MOST_SURVIVORS])}{more}"


def _relation_lines(rows: Sequence[RelationRow]) -> list[str]:
    """How many metamorphic relations have each status, and those that the candidate violates."""
    if not rows:
        return []
    statuses = [row.status for row in rows]
    counts = {status: statuses.count(status) for status in RelationStatus}
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines = [f"  {len(rows)} invariants: {shown}"]
    for row in rows:
        if row.status in (RelationStatus.VIOLATED, RelationStatus.ERROR):
            worst = row.worst
            where = f" ({number(worst.used)} of the budget, {worst.case})" if worst else ""
            note = f": {one_line(row.note)}" if row.note else ""
            lines.append(f"  {row.status} invariant {row.name}{where}{note}")
    return lines


def _effect_line(run: RunReport, effect: TrainerEffect) -> str:
    """A scenario in which a trainer departs: where, and what it does to the gradient."""
    faults = "; ".join(chosen_faults(run, effect))
    return (
        f"  {effect.scenario} {effect.description}: {', '.join(effect.introduced)}"
        f"{f' [{faults}]' if faults else ''}; gradient: norm x {number(effect.gradient_ratio)}, "
        f"cosine {number(effect.gradient_cosine)}"
    )
