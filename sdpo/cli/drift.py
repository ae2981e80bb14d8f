"""`sdpo drift`: defaults of SDPO in verl's layers, here and elsewhere."""

from typing import Annotated

import typer


def drift(
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of Markdown.")
    ] = False,
) -> None:
    """Show every setting's default: verl's three layers, ours, TRL's and sdpo-rl's.

    verl's layers (dataclass, YAML, experiment scripts) come from the reference's provenance file,
    the others from importing the packages that are installed here; one that is not is a column that
    says so. Values that differ from what verl really runs are bold. Exit code: 0, or 3 if an
    installed package could not be read in full.

    Example: sdpo drift > drift.md
    """
    from sdpo.parity.drift.default_drift import drift as default_drift
    from sdpo.parity.drift.default_drift import markdown

    table = default_drift()
    print(table.json() if json_ else markdown(table))
    raise typer.Exit(3 if any(peer.broken for peer in table.peers) else 0)
