"""The sentences that a report says of a run: verdict in short, summary, what a PASS covers.

`Backticks` mark names. No text of the candidate is put into a sentence.
"""

from collections.abc import Iterable

from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.report.judgement import judgement, number
from sdpo.parity.report.report_context import DeclaredRow
from sdpo.parity.report.run_report import RunReport

_OF_A_SCALAR = ("aggregate", "gradient")
"""What every callable shows: its loss and what follows from it."""

_RULES = {
    "reprompt": "Texts, ids and masks must be equal.",
    "loss": "Each number of the loss has a budget of its own: what rounding may do to it, derived "
    "from an oracle in higher precision.",
    "trainer": "Each stage of a trainer is compared with the reference at the trainer's own "
    "values before it, so that it is charged only with what it introduced.",
    "update": "Numbers of a whole update have as budget a small multiple of the reference's own "
    "rounding error, measured against a repetition in float64.",
}
"""How the cases of each family are judged."""

LEGEND = {
    Status.MATCH: "bit-equal",
    Status.PASS: "within the rounding budget",
    Status.DECLARED: "deviates as declared",
    Status.DIVERGENT: "further away than rounding explains",
    Status.ERROR: "the candidate failed",
    Status.NOT_COVERED: "not compared",
}


def headline(run: RunReport) -> str:
    """Say the verdict in one short sentence."""
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
    """Say what the report shows, in full sentences."""
    totals, counts = run.totals, run.totals.by_status
    if not run.compared:
        return ["Nothing was compared, so this report says nothing about the candidate's numbers."]
    compared = totals.cases - counts.get(Status.NOT_COVERED, 0)
    lines = [
        f"{_cases(compared, _origin(run) + ' ')} compared with the reference, stage by stage: "
        f"{totals.bit_equal} of {run.compared} comparisons "
        f"({totals.elements} elements) are bit-equal."
    ]
    if divergent := counts.get(Status.DIVERGENT, 0):
        lines.append(f"{_cases(divergent)} further from it than rounding explains.")
    if failed := counts.get(Status.ERROR, 0):
        lines.append(f"{_cases(failed)} without result, where the reference has one.")
    if uncovered := counts.get(Status.NOT_COVERED, 0):
        lines.append(f"{_cases(uncovered)} not covered (reasons below).")
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


def _cases(count: int, which: str = "") -> str:
    """A number of cases, with its verb."""
    return f"{count} {which}{'case is' if count == 1 else 'cases are'}"


def covers(run: RunReport) -> dict[str, str]:
    """Say what a PASS covers, and what it does not; empty if nothing was compared."""
    covered, missing = run.coverage.covered, run.coverage.not_covered
    if not covered:
        return {}
    families = {case.family for case in run.cases if case.status != Status.NOT_COVERED}
    return {
        "What a PASS covers.": f"{names(covered)}, on the {_origin(run)} cases. "
        + " ".join(rule for family, rule in _RULES.items() if family in families),
        "What it does not cover.": (f"The stages {names(missing)}. " if missing else "")
        + f"Inputs unlike the {_origin(run)} cases, other hardware and library versions than those "
        "listed below, speed and memory, and whether training with it makes a better model.",
    }


def _origin(run: RunReport) -> str:
    """Where the cases of a report come from."""
    if run.trainer:
        return "scripted"
    between = any("generated" in case.tags for case in run.cases)
    return "recorded and generated" if between else "recorded"


def names(stages: Iterable[str]) -> str:
    """Put the names of stages into a phrase."""
    quoted = [f"`{stage}`" for stage in stages]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def legend(run: RunReport) -> str:
    """Say what the statuses that occur mean."""
    present = {row.status for row in run.stages}
    return "; ".join(f"{status}: {text}" for status, text in LEGEND.items() if status in present)


def shows(run: RunReport) -> str:
    """Say what a callable shows of its loss, as the end of a sentence."""
    stages = [name for name in run.claims if name not in _OF_A_SCALAR]
    return f"shows only {names(run.claims)}" if stages else "returns only a scalar"


def searched(run: RunReport) -> str:
    """Say how far known faults were searched, where none explains the candidate."""
    search = run.explanation_search
    if not search or not search.faults or run.explained_by:
        return ""
    return (
        f"none of {search.faults} known faults, nor {search.pairs_tried} of "
        f"{search.pairs} pairs of them"
    )


def declared_size(entry: DeclaredRow) -> str:
    """Say how large a declared deviation is, and what it may be."""
    if entry.size is None or entry.range is None:
        return "-"
    least, most = entry.range
    return f"{number(entry.size)} in [{number(least)}, {number(most)}]"
