"""`sdpo record`: record cases from a checkout of the fork, again, or compare random ones."""

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
    random: Annotated[
        int,
        typer.Option(
            min=0, help="Compare the fork with the transcription on so many cases of each family."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the first random case.")] = 0,
) -> None:
    """Record cases of the loss, of teacher prompts and of updates by the fork's real functions.

    Exit code: 0 recorded, or the same bits as before; 1 a recording differs, or was replaced, or a
    random case differs; 2 nothing could be recorded, and nothing was written.

    Example: sdpo record SDPO --check
    """
    if check + (out is not None) + (random > 0) != 1:
        raise typer.BadParameter("give one of --out DIR, --check and --random N")
    if out is None and (cases is not None or force_regen or allow_modified):
        raise typer.BadParameter("--cases, --force-regen and --allow-modified go with --out alone")
    if seed and not random:
        raise typer.BadParameter("--seed goes with --random alone")
    from sdpo.parity.record.launch import Order, carry_out, packaged_list

    order = Order(
        str(checkout),
        str(cases or packaged_list()),
        str(out or ""),
        force_regen,
        allow_modified,
        random,
        seed,
    )
    raise typer.Exit(carry_out(order))
