"""`sdpo replay`: run a failing case again, here or on another machine."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Written by `sdpo audit` to DIR/CANDIDATE/bundles."),
    ],
    candidate: Annotated[
        str,
        typer.Option(help="Run another loss function than the bundle's, such as the repaired one."),
    ] = "",
    log: Annotated[
        Path | None, typer.Option(help="File for what the candidate prints; else thrown away.")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
) -> None:
    """Run the case of a bundle again and say whether the verdict is the same as then.

    A bundle holds the tensors (safetensors), settings, environment and command of one failing case,
    shrunk to few rows, tokens and vocabulary entries. Only the candidate's own code is executed: it
    must be importable here under its name, or another one is given. The first line ends with
    `replay=same` or `replay=different`. Exit codes as of `sdpo audit`, by the verdict of now.

    Example: sdpo replay reports/audit/port.py-loss/bundles/P-L001.zip --candidate port.py:fixed
    """
    from sdpo.parity.audit.rejudge_and_replay import replay_one

    raise typer.Exit(replay_one(bundle, candidate, as_json=json_, log=log))
