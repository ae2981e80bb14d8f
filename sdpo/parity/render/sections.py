"""What the Markdown and the HTML report say, section by section, as plain values.

Templates only lay these values out. Texts of the candidate (names, messages, values) stay separate
fields and are never put into a sentence: the templates quote them. In sentences written here,
`backticks` mark names. An empty section has an empty value, and templates leave it out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import structs

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import RelationStatus, Status, Verdict
from sdpo.parity.relations.relation_rows import RelationRow
from sdpo.parity.render.stage_view import permalink, stage_view
from sdpo.parity.render.text import (
    certificate,
    chosen_faults,
    first_places,
    number,
    totals_line,
)
from sdpo.parity.report.judgement import case_count, judgement
from sdpo.parity.report.report_context import DeclaredRow
from sdpo.parity.report.report_rows import BundleRow, CaseRow
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.truth.tolerances import MEANINGS

OF_A_SCALAR = ("aggregate", "gradient")
"""What every callable shows: its loss and what follows from it."""

MOST_CASES = 20
MOST_REASONS = 6
MOST_IDS = 6

RULES = {
    "reprompt": "Texts, ids and masks must be equal.",
    "loss": "Each number of the loss has a budget of its own: what rounding may do to it, derived "
    "from an oracle in higher precision.",
    "trainer": "Each stage of a trainer is compared with the reference at the trainer's own "
    "values before it, so that it is charged only with what it introduced.",
    "update": "Numbers of a whole update have as budget a small multiple of the reference's own "
    "rounding error, measured against a repetition in float64.",
}
"""How the cases of each family are judged."""

FIGURES = (
    "gradient_ratio",
    "gradient_cosine",
    "gradient_distance",
    "parameters_distance",
    "teacher_distance",
    "logged_loss",
    "optimised_loss",
    "reference_loss",
)

RELATION_MEANING = {
    RelationStatus.HOLDS: "holds",
    RelationStatus.VIOLATED: "violated",
    RelationStatus.INHERITED: "violated, as by the reference",
    RelationStatus.NOT_COVERED: "not covered",
    RelationStatus.ERROR: "the candidate failed",
}
"""What the statuses of a metamorphic relation mean."""

LEGEND = {
    Status.MATCH: "bit-equal",
    Status.PASS: "within the rounding budget",
    Status.DECLARED: "deviates as declared",
    Status.DIVERGENT: "further away than rounding explains",
    Status.ERROR: "the candidate failed",
    Status.NOT_COVERED: "not compared",
}


def sections(run: RunReport) -> dict[str, Any]:
    """All sections of a report on one run."""
    commit = run.reference_commit
    message = run.message if run.verdict != Verdict.INCONCLUSIVE else ""
    reasons = [reason for reason in run.reasons if reason != message]
    failing = run.failing_cases
    return {
        "candidate": run.candidate,
        "kind": run.kind,
        "verdict": run.verdict,
        "headline": headline(run),
        "message": message,
        "summary": summary(run),
        "covers": covers(run),
        "stages": [stage_view(row, commit) for row in run.stages],
        "legend": legend(run),
        "totals": totals_line(run),
        "certificate": certificate(run),
        "first": first_divergence(run, commit),
        "effects": effects(run),
        "relations": relations(run),
        "goldens": goldens(run),
        "declared": declared(run),
        "failing": failing[:MOST_CASES],
        "failing_count": len(failing),
        "not_covered": grouped(c for c in run.cases if c.status == Status.NOT_COVERED),
        "explained_by": explained_by(run, also=False),
        "also": explained_by(run, also=True),
        "cases_are": "scenarios" if run.trainer else "cases",
        "searched": searched(run),
        "bundles": [bundle(row) for row in run.bundles],
        "reasons": reasons[:MOST_REASONS],
        "more_reasons": max(0, len(reasons) - MOST_REASONS),
        "notes": run.notes,
        "location": str(run.location) if run.location else "",
        "environment": environment(run),
        "tolerances": tolerances(run),
        "repro": run.repro,
    }


def headline(run: RunReport) -> str:
    """The verdict in one short sentence."""
    covered = len(run.coverage.covered)
    of_all = f"{covered} of {len(run.stages)} stages compared"
    match run.verdict:
        case Verdict.PASS:
            return f"{of_all}, all agree with the reference"
        case Verdict.DECLARED:
            return f"{of_all}, all agree with the reference or deviate as declared"
        case Verdict.DIVERGENT if run.first_stage:
            how = ", inferred" if run.first_stage_inferred else ""
            return f"departs from the reference, first at `{run.first_stage}`{how}"
        case Verdict.DIVERGENT:
            return "departs from its declared deviations"
        case Verdict.INCONCLUSIVE:
            return f"no verdict; {of_all}"
        case _ if run.compared:
            failed = run.totals.by_status.get(Status.ERROR, 0)
            return f"the candidate fails in {failed} of {run.totals.cases} cases; {of_all}"
        case _:
            return "the audit could not be carried out"


def summary(run: RunReport) -> list[str]:
    """What the report shows, in full sentences."""
    totals, counts = run.totals, run.totals.by_status
    if not run.compared:
        return ["Nothing was compared, so this report says nothing about the candidate's numbers."]
    compared = totals.cases - counts.get(Status.NOT_COVERED, 0)
    lines = [
        f"{cases(compared, origin(run) + ' ')} compared with the reference, stage by stage: "
        f"{totals.bit_equal} of {run.compared} comparisons "
        f"({totals.elements} elements) are bit-equal."
    ]
    if divergent := counts.get(Status.DIVERGENT, 0):
        lines.append(f"{cases(divergent)} further from it than rounding explains.")
    if failed := counts.get(Status.ERROR, 0):
        lines.append(f"{cases(failed)} without result, where the reference has one.")
    if uncovered := counts.get(Status.NOT_COVERED, 0):
        lines.append(f"{cases(uncovered)} not covered (reasons below).")
    lines += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in judgement(run)]
    if divergent or failed:
        return lines
    if totals.bit_equal < run.compared:
        lines.append(
            "The other values stay within the rounding budget."
            if run.verdict != Verdict.DECLARED
            else "The other values stay within the rounding budget or deviate as declared below."
        )
    if run.verdict == Verdict.INCONCLUSIVE:
        lines.append("This is no pass, for the reasons below.")
    return lines


def cases(count: int, which: str = "") -> str:
    """A number of cases, with its verb."""
    return f"{count} {which}{'case is' if count == 1 else 'cases are'}"


def covers(run: RunReport) -> dict[str, str]:
    """What a PASS covers, and what it does not; empty if nothing was compared."""
    covered, missing = run.coverage.covered, run.coverage.not_covered
    if not covered:
        return {}
    families = {case.family for case in run.cases if case.status != Status.NOT_COVERED}
    return {
        "What a PASS covers.": f"{names(covered)}, on the {origin(run)} cases. "
        + " ".join(rule for family, rule in RULES.items() if family in families),
        "What it does not cover.": (f"The stages {names(missing)}. " if missing else "")
        + f"Inputs unlike the {origin(run)} cases, other hardware and library versions than those "
        "listed below, speed and memory, and whether training with it makes a better model.",
    }


def origin(run: RunReport) -> str:
    """Where the cases of a report come from."""
    return "scripted" if run.trainer else "recorded"


def names(stages: Iterable[str]) -> str:
    """Stage names as a phrase."""
    quoted = [f"`{stage}`" for stage in stages]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def legend(run: RunReport) -> str:
    """The meaning of the statuses that occur."""
    present = {row.status for row in run.stages}
    return "; ".join(f"{status}: {text}" for status, text in LEGEND.items() if status in present)


def first_divergence(run: RunReport, commit: str | None) -> dict[str, Any] | None:
    """The first divergent stage: how it was found, its worst place, and the ladder."""
    row = run.first_row
    if run.first_stage is None:
        return None
    return {
        "stage": run.first_stage,
        "compares": STAGES[run.first_stage].compares,
        "source": STAGES[run.first_stage].source,
        "url": permalink(STAGES[run.first_stage], commit),
        "inferred": run.first_stage_inferred,
        "observed": run.first_observed,
        "shows": shows(run),
        "places": first_places(run),
        "row": stage_view(row, commit) if row else None,
        "ladder": run.ladder,
        "failing": row is not None and row.status == Status.ERROR,
        "departing": sum("departs" in rung.result for rung in run.ladder),
    }


def shows(run: RunReport) -> str:
    """What a callable shows of its loss, as the end of a sentence."""
    stages = [name for name in run.claims if name not in OF_A_SCALAR]
    return f"shows only {names(run.claims)}" if stages else "returns only a scalar"


def explained_by(run: RunReport, *, also: bool) -> list[dict[str, str]]:
    """Known faults with their share of the diverging cases; those of few cases are `also`."""
    rows = [row for row in run.explanations if row.also == also]
    return [{"fault": row.fault, "share": row.share} for row in rows]


def effects(run: RunReport) -> list[dict[str, str]]:
    """What a trainer does differently in each scenario, and how much it matters."""
    rows = []
    for effect in run.trainer:
        figures = {name: number(getattr(effect, name)) for name in FIGURES}
        rows.append(
            figures
            | {
                "scenario": effect.scenario,
                "description": effect.description,
                "introduced": names(effect.introduced) if effect.introduced else "-",
                "explained_by": ", ".join(label.split()[0] for label in chosen_faults(run, effect)),
            }
        )
    return rows


def relations(run: RunReport) -> dict[str, list[dict[str, str]]]:
    """Metamorphic relations that were tested, and those that were not, by reason."""
    rows = run.invariants
    if not rows:
        return {}
    untested: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.status == RelationStatus.NOT_COVERED:
            untested[row.note].append(row.name)
    return {
        "tested": [relation(row) for row in rows if row.status != RelationStatus.NOT_COVERED],
        "untested": [{"note": note, "names": names(which)} for note, which in untested.items()],
    }


def relation(row: RelationRow) -> dict[str, str]:
    """A metamorphic relation: what it says, and what candidate and reference make of it."""
    worst = row.worst
    tested = sum(row.cases.values()) - row.cases.get(RelationStatus.NOT_COVERED, 0)
    return {
        "name": row.name,
        "sentence": row.sentence,
        "pain": row.pain,
        "status": row.status,
        "candidate": RELATION_MEANING[row.status],
        "reference": RELATION_MEANING[row.of_reference],
        "cases": f"{tested} of {sum(row.cases.values())}",
        "used": number(worst.used) if worst else "-",
        "value": worst.value if worst else "",
        "case": worst.case if worst else "",
        "note": row.note,
    }


def searched(run: RunReport) -> str:
    """How far known faults were searched, where none explains the candidate."""
    search = run.explanation_search
    if not search or not search.faults or run.explained_by:
        return ""
    return (
        f"none of {search.faults} known faults, nor {search.pairs_tried} of "
        f"{search.pairs} pairs of them"
    )


def bundle(row: BundleRow) -> dict[str, str]:
    """A replay bundle: its case, file and size."""
    before, after = (" × ".join(map(str, shape)) for shape in (row.before, row.after))
    return {"case": row.case, "file": row.file, "before": before, "after": after}


def goldens(run: RunReport) -> list[dict[str, str | int | None]]:
    """The golden data used: families, cases, results, hash of the manifest, reference commit."""
    rows = []
    for golden in run.environment.goldens:
        statuses = Counter(case.status for case in run.cases if case.family == golden.family)
        results = ", ".join(f"{statuses[status]} {status}" for status in LEGEND if statuses[status])
        rows.append(structs.asdict(golden) | {"results": results or "not audited"})
    return rows


def declared(run: RunReport) -> list[dict[str, str]]:
    """Declared deviations, and the documented improvements that some cases fall under."""
    rows = [
        {
            "id": entry.id,
            "stages": ", ".join(entry.stages),
            "seen": f"{entry.seen_cases} cases" if entry.seen else "no",
            "size": declared_size(entry),
            "reason": entry.reason,
        }
        for entry in run.declared
    ]
    return rows + [
        {
            "id": row.id,
            "stages": ", ".join(row.stages),
            "seen": case_count(row),
            "size": "built-in",
            "reason": row.reason,
        }
        for row in run.improvements
    ]


def declared_size(entry: DeclaredRow) -> str:
    """Measured size of a declared deviation, and what it may be."""
    if entry.size is None or entry.range is None:
        return "-"
    least, most = entry.range
    return f"{number(entry.size)} in [{number(least)}, {number(most)}]"


@dataclass(frozen=True)
class CaseGroup:
    """Cases that carry the same note: their number, the first identifiers, how many more."""

    note: str
    count: int
    ids: list[str]
    more: int


def grouped(cases: Iterable[CaseRow]) -> list[CaseGroup]:
    """Group cases by their notes."""
    by_note: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_note[case.note].append(case.id)
    return [
        CaseGroup(note, len(ids), ids[:MOST_IDS], len(ids) - MOST_IDS)
        for note, ids in by_note.items()
    ]


def environment(run: RunReport) -> list[tuple[str, str]]:
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


def tolerances(run: RunReport) -> list[tuple[str, str, str]]:
    """Each tolerance of the audit with what it allows, where this version still has it."""
    used = run.environment.tolerances
    return [(name, f"{value:g}", MEANINGS.get(name, "")) for name, value in used.items()]
