"""By what a candidate was judged, in sentences: its own precision, a dtype alone, improvements.

The same sentences stand in every rendering; they hold no text of the candidate.
"""

from typing import Any

RUN = dict[str, Any]


def judgement(run: RUN) -> list[str]:
    """What a reader must know of how the candidate was judged; empty for most."""
    found = [precision(row) for row in run.get("precision", [])]
    if run["verdict"] == "DIVERGENT" and (only := run.get("departs_only")):
        others = " and ".join(f"{count} {dtype} cases" for dtype, count in only["holds"].items())
        found.append(
            f"departs in {only['dtype']} alone: in {only['cases']} of {only['of']} such cases; all "
            f"of {others} hold, among them cases of the same kind"
        )
    return found


def precision(row: dict[str, Any]) -> str:
    """Where a candidate computes in less than it is given, and whose budgets judge it."""
    cases = f"{row['cases']} of {row['of']} {row['given']} cases"
    if row["judged_by"] == row["computes_in"]:
        return (
            f"computes in {row['computes_in']}: {cases} are judged by its budgets, since the "
            f"results do not follow changes of the logits that {row['computes_in']} cannot hold"
        )
    values = " and ".join("loss" if name == "aggregate" else name for name in row["values"])
    searched = " that were searched" if row["given"] == "float32" else ""
    return (
        f"computes its {values} in {row['computes_in']} where it is given {row['given']} (seen in "
        f"{cases}{searched}); judged by {row['judged_by']}'s budgets"
    )


def improvement_lines(run: RUN) -> list[str]:
    """The documented improvements that some cases fall under, one line each."""
    return [
        f"DECLARED {row['id']} (built-in, {counted(row)}): {row['reason']}"
        for row in run.get("improvements", [])
    ]


def counted(row: dict[str, Any]) -> str:
    """In how many cases an improvement was seen."""
    return f"{len(row['cases'])} case{'s' * (len(row['cases']) != 1)}"
