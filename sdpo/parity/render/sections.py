"""What the Markdown and the HTML report say, section by section, as plain values.

Templates only lay these values out. Texts of the candidate (names, messages, values) stay separate
fields and are never put into a sentence: the templates quote them. In sentences written here,
`backticks` mark names. An empty section has an empty value, and templates leave it out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.explain.explanations import phrase
from sdpo.parity.render.stage_view import FAILING, permalink, stage_view
from sdpo.parity.render.text import (
    RUN,
    certificate,
    chosen,
    first_places,
    first_row,
    number,
    totals_line,
)
from sdpo.parity.report.counts import compared_in
from sdpo.parity.report.judgement import counted, judgement
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

KEPT = {
    "HOLDS": "holds",
    "VIOLATED": "violated",
    "INHERITED": "violated, as by the reference",
    "NOT_COVERED": "not covered",
    "ERROR": "the candidate failed",
}
"""What the statuses of a metamorphic relation mean."""

LEGEND = {
    "MATCH": "bit-equal",
    "PASS": "within the rounding budget",
    "DECLARED": "deviates as declared",
    "DIVERGENT": "further away than rounding explains",
    "ERROR": "the candidate failed",
    "NOT_COVERED": "not compared",
}


def sections(run: RUN) -> dict[str, Any]:
    """All sections of a report on one RUN document."""
    commit = reference_commit(run)
    message = run["message"] if run["verdict"] != "INCONCLUSIVE" else ""
    reasons = [reason for reason in run["reasons"] if reason != message]
    failing = [case for case in run["cases"] if case["status"] in FAILING]
    return {
        "candidate": run["candidate"],
        "kind": run["kind"],
        "verdict": run["verdict"],
        "headline": headline(run),
        "message": message,
        "summary": summary(run),
        "covers": covers(run),
        "stages": [stage_view(row, commit) for row in run["stages"]],
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
        "not_covered": grouped(c for c in run["cases"] if c["status"] == "NOT_COVERED"),
        "explained_by": explained_by(run, also=False),
        "also": explained_by(run, also=True),
        "cases_are": "scenarios" if run["trainer"] else "cases",
        "searched": searched(run),
        "bundles": [bundle(row) for row in run["bundles"]],
        "reasons": reasons[:MOST_REASONS],
        "more_reasons": max(0, len(reasons) - MOST_REASONS),
        "notes": run["notes"],
        "location": location(run),
        "environment": environment(run),
        "tolerances": tolerances(run),
        "repro": run["repro"],
    }


def reference_commit(run: RUN) -> str | None:
    """The commit of the reference that the golden data were recorded from."""
    goldens = run["environment"].get("goldens", [])
    return next((g["reference_commit"] for g in goldens if g["reference_commit"]), None)


def headline(run: RUN) -> str:
    """The verdict in one short sentence."""
    covered = len(run["coverage"]["covered"])
    of_all = f"{covered} of {len(run['stages'])} stages compared"
    match run["verdict"]:
        case "PASS":
            return f"{of_all}, all agree with the reference"
        case "DECLARED":
            return f"{of_all}, all agree with the reference or deviate as declared"
        case "DIVERGENT" if run["first_stage"]:
            how = ", inferred" if run["first_stage_inferred"] else ""
            return f"departs from the reference, first at `{run['first_stage']}`{how}"
        case "DIVERGENT":
            return "departs from its declared deviations"
        case "INCONCLUSIVE":
            return f"no verdict; {of_all}"
        case _ if compared_in(run):
            failed = run["totals"]["by_status"].get("ERROR", 0)
            return f"the candidate fails in {failed} of {run['totals']['cases']} cases; {of_all}"
        case _:
            return "the audit could not be carried out"


def summary(run: RUN) -> list[str]:
    """What the report shows, in full sentences."""
    totals, counts = run["totals"], run["totals"]["by_status"]
    if not compared_in(run):
        return ["Nothing was compared, so this report says nothing about the candidate's numbers."]
    compared = totals["cases"] - counts.get("NOT_COVERED", 0)
    lines = [
        f"{cases(compared, origin(run) + ' ')} compared with the reference, stage by stage: "
        f"{totals['bit_equal']} of {compared_in(run)} comparisons "
        f"({totals['elements']} elements) are bit-equal."
    ]
    if divergent := counts.get("DIVERGENT", 0):
        lines.append(f"{cases(divergent)} further from it than rounding explains.")
    if failed := counts.get("ERROR", 0):
        lines.append(f"{cases(failed)} without result, where the reference has one.")
    if uncovered := counts.get("NOT_COVERED", 0):
        lines.append(f"{cases(uncovered)} not covered (reasons below).")
    lines += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in judgement(run)]
    if divergent or failed:
        return lines
    if totals["bit_equal"] < compared_in(run):
        lines.append(
            "The other values stay within the rounding budget."
            if run["verdict"] != "DECLARED"
            else "The other values stay within the rounding budget or deviate as declared below."
        )
    if run["verdict"] == "INCONCLUSIVE":
        lines.append("This is no pass, for the reasons below.")
    return lines


def cases(count: int, which: str = "") -> str:
    """A number of cases, with its verb."""
    return f"{count} {which}{'case is' if count == 1 else 'cases are'}"


def covers(run: RUN) -> dict[str, str]:
    """What a PASS covers, and what it does not; empty if nothing was compared."""
    covered, missing = run["coverage"]["covered"], run["coverage"]["not_covered"]
    if not covered:
        return {}
    families = {case["family"] for case in run["cases"] if case["status"] != "NOT_COVERED"}
    return {
        "What a PASS covers.": f"{names(covered)}, on the {origin(run)} cases. "
        + " ".join(rule for family, rule in RULES.items() if family in families),
        "What it does not cover.": (f"The stages {names(missing)}. " if missing else "")
        + f"Inputs unlike the {origin(run)} cases, other hardware and library versions than those "
        "listed below, speed and memory, and whether training with it makes a better model.",
    }


def origin(run: RUN) -> str:
    """Where the cases of a report come from."""
    return "scripted" if run["trainer"] else "recorded"


def names(stages: Iterable[str]) -> str:
    """Stage names as a phrase."""
    quoted = [f"`{stage}`" for stage in stages]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def legend(run: RUN) -> str:
    """The meaning of the statuses that occur."""
    present = {row["status"] for row in run["stages"]}
    return "; ".join(f"{status}: {text}" for status, text in LEGEND.items() if status in present)


def first_divergence(run: RUN, commit: str | None) -> dict[str, Any] | None:
    """The first divergent stage: how it was found, its worst place, and the ladder."""
    row = first_row(run)
    if run["first_stage"] is None:
        return None
    rungs = [{"number": n, **rung} for n, rung in enumerate(run["ladder"], start=1)]
    return {
        "stage": run["first_stage"],
        "compares": STAGES[run["first_stage"]].compares,
        "source": STAGES[run["first_stage"]].source,
        "url": permalink(STAGES[run["first_stage"]], commit),
        "inferred": run["first_stage_inferred"],
        "observed": run["first_observed"],
        "shows": shows(run),
        "places": first_places(run),
        "row": stage_view(row, commit) if row else None,
        "ladder": rungs,
        "failing": row is not None and row["status"] == "ERROR",
        "departing": sum("departs" in rung["result"] for rung in rungs),
    }


def shows(run: RUN) -> str:
    """What a callable shows of its loss, as the end of a sentence."""
    stages = [name for name in run["claims"] if name not in OF_A_SCALAR]
    return f"shows only {names(run['claims'])}" if stages else "returns only a scalar"


def explained_by(run: RUN, *, also: bool) -> list[dict[str, str]]:
    """Known faults with their share of the diverging cases; those of few cases are `also`."""
    rows = [row for row in run["explanations"] if row["also"] == also]
    return [{"fault": row["fault"], "share": phrase(row)} for row in rows]


def effects(run: RUN) -> list[dict[str, Any]]:
    """What a trainer does differently in each scenario, and how much it matters."""
    rows = []
    for effect in run["trainer"]:
        figures = {name: number(effect[name]) for name in FIGURES}
        rows.append(
            figures
            | {
                "scenario": effect["scenario"],
                "description": effect["description"],
                "introduced": names(effect["introduced"]) if effect["introduced"] else "-",
                "explained_by": ", ".join(label.split()[0] for label in chosen(run, effect)),
            }
        )
    return rows


def relations(run: RUN) -> dict[str, Any]:
    """Metamorphic relations that were tested, and those that were not, by reason."""
    rows = run["invariants"]
    if not rows:
        return {}
    untested: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] == "NOT_COVERED":
            untested[row["note"]].append(row["name"])
    return {
        "tested": [relation(row) for row in rows if row["status"] != "NOT_COVERED"],
        "untested": [{"note": note, "names": names(which)} for note, which in untested.items()],
    }


def relation(row: dict[str, Any]) -> dict[str, Any]:
    """A metamorphic relation: what it says, and what candidate and reference make of it."""
    worst = row["worst"] or {}
    held = sum(row["cases"].values()) - row["cases"].get("NOT_COVERED", 0)
    return {
        "name": row["name"],
        "sentence": row["sentence"],
        "pain": row["pain"],
        "status": row["status"],
        "candidate": KEPT[row["status"]],
        "reference": KEPT[row["of_reference"]],
        "cases": f"{held} of {sum(row['cases'].values())}",
        "used": number(worst.get("used")),
        "value": worst.get("value", ""),
        "case": worst.get("case", ""),
        "note": row["note"],
    }


def searched(run: RUN) -> str:
    """How far known faults were searched, where none explains the candidate."""
    search = run["explanation_search"]
    if not search or not search["faults"] or run["explained_by"]:
        return ""
    return (
        f"none of {search['faults']} known faults, nor {search['pairs_tried']} of "
        f"{search['pairs']} pairs of them"
    )


def bundle(row: dict[str, Any]) -> dict[str, str]:
    """A replay bundle: its case, file and size."""
    before, after = (" × ".join(map(str, row[name])) for name in ("before", "after"))
    return {"case": row["case"], "file": row["file"], "before": before, "after": after}


def goldens(run: RUN) -> list[dict[str, Any]]:
    """The golden data used: families, cases, results, hash of the manifest, reference commit."""
    rows = []
    for family in run["environment"].get("goldens", []):
        statuses = Counter(c["status"] for c in run["cases"] if c["family"] == family["family"])
        results = ", ".join(f"{statuses[status]} {status}" for status in LEGEND if statuses[status])
        rows.append(family | {"results": results or "not audited"})
    return rows


def declared(run: RUN) -> list[dict[str, Any]]:
    """Declared deviations, and the documented improvements that some cases fall under."""
    rows = [
        {
            "id": entry["id"],
            "stages": ", ".join(entry["stages"]),
            "seen": f"{entry['seen_cases']} cases" if entry["seen"] else "no",
            "size": declared_size(entry),
            "reason": entry["reason"],
        }
        for entry in run["declared"]
    ]
    return rows + [
        {
            "id": row["id"],
            "stages": ", ".join(row["stages"]),
            "seen": counted(row),
            "size": "built-in",
            "reason": row["reason"],
        }
        for row in run["improvements"]
    ]


def declared_size(entry: dict[str, Any]) -> str:
    """Measured size of a declared deviation, and what it may be."""
    if entry["size"] is None or entry["range"] is None:
        return "-"
    least, most = entry["range"]
    return f"{number(entry['size'])} in [{number(least)}, {number(most)}]"


def grouped(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases that carry the same note, with their number and the first identifiers."""
    by_note: dict[str, list[str]] = defaultdict(list)
    for case in rows:
        by_note[case["note"]].append(case["id"])
    return [
        {"note": note, "count": len(ids), "ids": ids[:MOST_IDS], "more": len(ids) - MOST_IDS}
        for note, ids in by_note.items()
    ]


def location(run: RUN) -> str:
    """Where the candidate's source is."""
    found = run["location"]
    return f"{found['file']}:{found['line']}" if found else ""


def environment(run: RUN) -> list[tuple[str, str]]:
    """Versions, machine and determinism settings, flat."""
    pairs = []
    for key, value in run["environment"].items():
        if key == "tolerances":
            continue
        if isinstance(value, dict):
            pairs += [(f"{key}: {inner}", str(setting)) for inner, setting in value.items()]
        elif key != "goldens":
            items = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            pairs.append((key, items))
    return [*pairs, ("created", run["created"])] if run["created"] else pairs


def tolerances(run: RUN) -> list[tuple[str, str, str]]:
    """Each tolerance of the audit with what it allows, where this version still has it."""
    used: Mapping[str, float] = run["environment"].get("tolerances", {})
    return [(name, f"{value:g}", MEANINGS.get(name, "")) for name, value in used.items()]
