"""`sdpo audit`: compare candidates with the reference, stage by stage."""

from pathlib import Path
from typing import Annotated

import typer


def audit(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CANDIDATE]...",
            help="What to audit: `sdpo` (our implementation, the default), `reference` (the "
            "transcription, against the recording), `FILE.py:attr` or `pkg.mod:attr` (a loss "
            "function from logits or from log-probs, or a module or object with functions named "
            "as the stages).",
        ),
    ] = None,
    stages: Annotated[
        str, typer.Option(help="Only these stages, separated by commas.", metavar="A,B")
    ] = "",
    goldens: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of golden data in place of the packaged one; repeatable."),
    ] = None,
    declared: Annotated[
        list[Path] | None,
        typer.Option(help="File of declared deviations in place of the packaged one; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("reports/audit"),
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="Print one line for each candidate.")] = False,
) -> None:
    """Compare candidates with the reference, stage by stage, and write the reports.

    Without an argument our own implementation is audited against the packaged golden data: the
    proof behind this project. Exit code: 0 PASS or DECLARED, 1 DIVERGENT, 2 ERROR or wrong usage,
    3 INCONCLUSIVE.

    Example: sdpo audit my_losses.py:sdpo_loss
    """
    from sdpo.parity.launch import audit_all

    code = audit_all(
        candidates or ["sdpo"],
        stages=[stage.strip() for stage in stages.split(",") if stage.strip()],
        goldens=goldens or [],
        declared=declared or [],
        out=out,
        as_json=json_,
        quiet=quiet,
    )
    raise typer.Exit(code)
