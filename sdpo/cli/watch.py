"""`sdpo watch`: audits of releases, and which of them moved a deviation."""

import os
from pathlib import Path
from typing import Annotated

import typer


def watch(
    upstreams: Annotated[
        list[str],
        typer.Argument(
            metavar="UPSTREAM...",
            help="`trl==1.15.0,1.16.0` (releases of a package that is a candidate), `trl` (its "
            "latest), `trl>=1.13` (a range), `sdpo-rl@trl==1.15.0,1.16.0` (a candidate beside "
            "releases of another package; `FILE.py:attr@PACKAGE` too), `verl@CHECKOUT:A,B` or "
            "`verl@CHECKOUT:A..B` (commits of a checkout).",
        ),
    ],
    last: Annotated[
        int, typer.Option(min=1, help="Latest releases to audit where none are named.")
    ] = 4,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Halve the list of releases: audit those that show what moved where."
        ),
    ] = False,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="REQUIREMENT",
            help="A package for every environment, in place of the version that is installed "
            "here; repeatable.",
        ),
    ] = None,
    declared: Annotated[
        list[str] | None,
        typer.Option(help="Ledger that names deviations, by path or packaged name; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of history, page and reports.")] = Path(
        "reports/watch"
    ),
    page: Annotated[
        Path | None, typer.Option(help="File of the page, by default `watch.md` in that folder.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of environments, by default `sdpo/watch` in the user's cache."),
    ] = None,
) -> None:
    """Audit several releases and say which introduced, changed or removed each deviation.

    Each release gets an environment of its own, by uv where that is installed, with the same
    versions of everything else as here; environments are kept. The audits are appended to
    `history.jsonl`. Exit code: 0 nothing moved, 1 something did, 2 wrong usage, 3 a release could
    not be installed or judged.

    Example: sdpo watch trl sdpo-rl@trl==1.14.2,1.15.0,1.16.0
    """
    from sdpo.parity.watch.launch import PAGE, WatchOrder, watch_all
    from sdpo.parity.watch.release_audit import Workshop

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    workshop = Workshop(cache or home / "sdpo" / "watch", out / "audits", tuple(with_ or ()))
    order = WatchOrder(
        upstreams, workshop, out, page or out / PAGE, last, bisect, tuple(declared or ())
    )
    raise typer.Exit(watch_all(order))
