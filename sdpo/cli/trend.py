"""`sdpo trend`: what a history of audits shows over time."""

from pathlib import Path
from typing import Annotated

import typer


def trend(
    history: Annotated[
        Path, typer.Argument(metavar="HISTORY.jsonl", help="Written by `sdpo audit --history`.")
    ],
    ratchet: Annotated[
        bool,
        typer.Option(
            "--ratchet", help="Compare with the tightest tolerances ever, not with the run before."
        ),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Alarms of every run, not only of the last one.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text.")
    ] = False,
) -> None:
    """Show the use of budgets over a history of audits; alarm if a tolerance was loosened.

    The last run of each candidate is compared with the one before. An alarm is: a constant of the
    budgets or the smallest detectable change of a stage grew, a stage is no longer covered or
    required, a deviation was declared, or its range or expiry was extended. Exit code: 0 nothing
    became looser, 1 an alarm, 2 no usable history.

    Example: sdpo audit port.py:loss --history parity.jsonl; sdpo trend parity.jsonl
    """
    import json

    import msgspec

    from sdpo.parity.report.history import HistoryError, read
    from sdpo.parity.report.trend import findings, text_of

    try:
        trends = findings(read(history), ratchet=ratchet, every=every)
    except HistoryError as error:
        print(f"ERROR {error}")
        raise typer.Exit(2) from error
    if json_:
        print(json.dumps({"schema_version": 1, "candidates": msgspec.to_builtins(trends)}))
    else:
        print(text_of(trends))
    raise typer.Exit(1 if any(trend.alarms for trend in trends) else 0)
