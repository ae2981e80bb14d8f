"""By what a candidate was judged, in sentences: its own precision, a dtype alone, improvements.

The same sentences stand in every rendering; they hold no text of the candidate.
"""

from sdpo.parity.compare.statuses import Verdict
from sdpo.parity.report.report_rows import ImprovementRow, PrecisionRow
from sdpo.parity.report.run_report import RunReport


def judgement(run: RunReport) -> list[str]:
    """What a reader must know of how the candidate was judged; empty for most."""
    sentences = [_precision(row) for row in run.precision]
    if run.verdict == Verdict.DIVERGENT and (only := run.departs_only):
        others = " and ".join(f"{count} {dtype} cases" for dtype, count in only.holds.items())
        sentences.append(
            f"departs in {only.dtype} alone: in {only.cases} of {only.of} such cases; all "
            f"of {others} hold, among them cases of the same kind"
        )
    return sentences


def _precision(row: PrecisionRow) -> str:
    """Where a candidate computes in less than it is given, and whose budgets judge it."""
    cases = f"{row.cases} of {row.of} {row.given} cases"
    if row.judged_by == row.computes_in:
        return (
            f"computes in {row.computes_in}: {cases} are judged by its budgets, since the "
            f"results do not follow changes of the logits that {row.computes_in} cannot hold"
        )
    values = " and ".join("loss" if name == "aggregate" else name for name in row.values)
    searched = " that were searched" if row.given == "float32" else ""
    return (
        f"computes its {values} in {row.computes_in} where it is given {row.given} (seen in "
        f"{cases}{searched}); judged by {row.judged_by}'s budgets"
    )


def improvement_lines(run: RunReport) -> list[str]:
    """The documented improvements that some cases fall under, one line each."""
    return [
        f"DECLARED {row.id} (built-in, {case_count(row)}): {row.reason}" for row in run.improvements
    ]


def case_count(row: ImprovementRow) -> str:
    """In how many cases an improvement was seen."""
    return "1 case" if len(row.cases) == 1 else f"{len(row.cases)} cases"
