"""`sdpo record`: record cases from a checkout of the fork, or the packaged ones again."""

from pathlib import Path
from typing import Annotated

import typer


def record(
    checkout: Annotated[Path, typer.Argument(help="Folder of a checkout of lasgroup/SDPO.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the recording, golden data in their format.")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="TOML list of the cases (format: docs/audit.md); by default ours."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Record the packaged cases again and compare every bit."),
    ] = False,
    force_regen: Annotated[
        bool,
        typer.Option("--force-regen", help="Replace a recording that differs; fails once."),
    ] = False,
    allow_modified: Annotated[
        bool,
        typer.Option(
            "--allow-modified",
            help="Record from a modified checkout or another commit; the manifests say so.",
        ),
    ] = False,
) -> None:
    """Record cases of the loss, of teacher prompts and of updates by the fork's real functions.

    Exit code: 0 recorded, or the same bits as before; 1 a recording differs, or was replaced; 2
    nothing could be recorded, and nothing was written.

    Example: sdpo record SDPO --check
    """
    if check == (out is not None):
        raise typer.BadParameter("give either --out DIR or --check")
    if check and (cases is not None or force_regen):
        raise typer.BadParameter("--check compares the packaged cases: no --cases, --force-regen")
    from sdpo.parity.record.launch import record_all

    code = record_all(
        checkout,
        cases=cases,
        out=out,
        regenerate=force_regen,
        allow_modified=allow_modified,
    )
    raise typer.Exit(code)
