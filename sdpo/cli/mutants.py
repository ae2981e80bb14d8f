"""`sdpo mutants`: the self-test of the harness against the catalogue of known faults."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo.runtime.progress import progress_bars

if TYPE_CHECKING:
    from sdpo.parity.audit.self_test import MutantRow
    from sdpo.parity.faults.catalogue import Fault

_MOST_PROCESSES = 8


def mutants(
    only: Annotated[
        str, typer.Option(help="Only these faults, by id, separated by commas.", metavar="M01,M07")
    ] = "",
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
) -> None:
    """Audit every known fault of the loss as a candidate: each must be found, at its stage.

    Faults of the teacher prompt, the update and a trainer's step are not run but listed, with the
    test that plants them. Exit code: 0 all found, 4 a fault survives or is found at another stage,
    2 wrong usage.

    Example: sdpo mutants --only M07,M23
    """
    import json

    from sdpo.parity.audit.self_test import failures
    from sdpo.parity.faults.catalogue import BY_ID, CATALOGUE, LOSS_FAULTS

    asked = [id_.strip() for id_ in only.split(",") if id_.strip()]
    known = [fault.id for fault in LOSS_FAULTS]
    if unknown := [id_ for id_ in asked if id_ not in known]:
        elsewhere = [f"{id_} ({BY_ID[id_].proof})" for id_ in unknown if id_ in BY_ID]
        why = f"not in the loss: {'; '.join(elsewhere)}" if elsewhere else "see `sdpo mutants`"
        raise typer.BadParameter(f"{', '.join(unknown)}: no fault of the loss; {why}")
    rows = _run([id_ for id_ in known if not asked or id_ in asked])
    failed = failures(rows)
    outside = [fault for fault in CATALOGUE if not fault.in_loss and not asked]
    if json_:
        listed = [
            {"id": f.id, "name": f.name, "stage": f.stage, "source": f.source, "proof": f.proof}
            for f in outside
        ]
        document = {
            "schema_version": 1,
            "verdict": "FAILED" if failed else "PASS",
            "failures": failed,
            "faults": rows,
            "outside_the_loss": listed,
        }
        print(json.dumps(document))
    else:
        print(mutants_text(rows, outside, failed))
    raise typer.Exit(4 if failed else 0)


def _run(ids: list[str]) -> "list[MutantRow]":
    """Audit the faults with a progress bar on standard error."""
    from sdpo.parity.audit.self_test import self_test

    processes = min(os.cpu_count() or 1, _MOST_PROCESSES) if len(ids) > _MOST_PROCESSES else 1
    rows = []
    with progress_bars(transient=True) as bars:
        task = bars.add_task("known faults", total=len(ids))
        for row in self_test(ids, processes):
            rows.append(row)
            bars.advance(task)
    return rows


def mutants_text(
    rows: "Sequence[MutantRow]", outside: "Sequence[Fault]", failed: Sequence[str]
) -> str:
    """Write the self-test as text: verdict, matrix, survivors at bfloat16, faults not run."""
    killed = sum(row["killed"] for row in rows)
    verdict = f"FAILED {'; '.join(failed)}" if failed else "PASS"
    lines = [f"{verdict} killed={killed}/{len(rows)} faults of the loss", ""]
    lines.append(f"  {'fault':<58} {'stage':<10} {'found at':<32} {'killed':<6} bfloat16")
    lines.extend(_matrix_line(row) for row in rows)
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


def _matrix_line(row: "MutantRow") -> str:
    """Write one fault as a line: its stage, where it was found in each shape, whether killed."""
    stages = set(row["stages"].values())
    if len(stages) == 1:
        found = str(stages.pop() or "-")
    else:
        found = ", ".join(f"{shape}: {stage or '-'}" for shape, stage in row["stages"].items())
    killed = "yes" if row["killed"] else "NO"
    low = "yes" if row["bfloat16"] == "found" else "no"
    name = f"{row['id']:<5} {row['name']}"
    return f"  {name:<58} {row['stage']:<10} {found:<32} {killed:<6} {low}"
