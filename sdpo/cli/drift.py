"""`sdpo drift`: defaults of SDPO in verl's layers, here and elsewhere; checkouts of verl."""

from pathlib import Path
from typing import Annotated

import typer


def drift(
    checkouts: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkouts of verl, to compare with the recorded one instead."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of Markdown.")
    ] = False,
) -> None:
    """Show every setting's default: verl's three layers, ours, TRL's and sdpo-rl's.

    verl's layers (dataclass, YAML, experiment scripts) come from the reference's provenance file,
    the others from importing the packages that are installed here; one that is not is a column that
    says so. Values that differ from what verl really runs are bold. Exit code: 0, or 3 if an
    installed package could not be read in full.

    With checkouts of verl: the settings, functions and stages in which each differs from the
    recorded commit, found by running it. Exit code: 0, or 2 if one cannot be run.

    Example: sdpo drift > drift.md
    """
    if checkouts:
        raise typer.Exit(_compare(checkouts, json_))
    from sdpo.parity.drift.default_drift import drift as default_drift
    from sdpo.parity.drift.default_drift import markdown

    table = default_drift()
    print(table.json() if json_ else markdown(table))
    raise typer.Exit(3 if any(peer.broken for peer in table.peers) else 0)


def _compare(checkouts: list[Path], json_: bool) -> int:
    """Print what differs between checkouts; the exit code."""
    import msgspec

    from sdpo.parity.cases.failure import refuse
    from sdpo.parity.checkouts.checkout_tables import markdown
    from sdpo.parity.checkouts.compare_checkouts import see_checkouts
    from sdpo.parity.checkouts.settings_of import recorded_layers
    from sdpo.parity.live_fork.checkout import CheckoutError

    try:
        seen = see_checkouts(checkouts)
    except CheckoutError as error:
        return refuse(str(error), as_json=json_)
    if json_:
        print(msgspec.json.encode([checkout.description for checkout in seen]).decode())
    else:
        print(markdown(recorded_layers(), seen))
    return 0
