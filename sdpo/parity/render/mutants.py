"""The matrix of known faults as text. The first line is the verdict of the self-test."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdpo.parity.faults.catalogue import Fault

Row = Mapping[str, Any]


def text_of(rows: Sequence[Row], outside: Sequence[Fault], failed: Sequence[str]) -> str:
    """Verdict, matrix, survivors at bfloat16, and the faults outside the loss."""
    killed = sum(row["killed"] for row in rows)
    verdict = f"FAILED {'; '.join(failed)}" if failed else "PASS"
    lines = [f"{verdict} killed={killed}/{len(rows)} faults of the loss", ""]
    lines.append(f"  {'fault':<58} {'stage':<10} {'found at':<32} {'killed':<6} bfloat16")
    lines.extend(matrix_line(row) for row in rows)
    survivors = [row for row in rows if row["bfloat16"] != "found"]
    if survivors:
        lines += ["", f"  not seen at bfloat16 ({len(survivors)} of {len(rows)}):"]
        lines.extend(f"  {row['id']:<5} {row['bfloat16']}" for row in survivors)
    if outside:
        lines += [
            "",
            f"  outside the loss, not run here ({len(outside)}), with the test that plants each:",
        ]
        lines.extend(f"  {f.id:<5} {f.name} [{f.stage}] {f.proof}" for f in outside)
    return "\n".join(lines)


def matrix_line(row: Row) -> str:
    """One fault: its stage, the stage found in each shape, whether it was killed."""
    stages = set(row["stages"].values())
    if len(stages) == 1:
        found = str(stages.pop() or "-")
    else:
        found = ", ".join(f"{shape}: {stage or '-'}" for shape, stage in row["stages"].items())
    killed = "yes" if row["killed"] else "NO"
    low = "yes" if row["bfloat16"] == "found" else "no"
    name = f"{row['id']:<5} {row['name']}"
    return f"  {name:<58} {row['stage']:<10} {found:<32} {killed:<6} {low}"
