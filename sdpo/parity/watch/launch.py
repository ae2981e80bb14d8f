"""A watch as a command: which releases, their audits, the history, the page, the exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from sdpo.parity.audit.load_candidate import TRAINERS, find
from sdpo.parity.cases.failure import refuse
from sdpo.parity.report.declared_deviations import LEDGERS, DeclaredError, load_for
from sdpo.parity.report.history import HistoryError, append_line, read_lines
from sdpo.parity.report.report_context import Deviation
from sdpo.parity.watch.bisection import bisect
from sdpo.parity.watch.changes import Change, changes
from sdpo.parity.watch.commits import commits_of
from sdpo.parity.watch.page import by_upstream, change_line, page
from sdpo.parity.watch.release_audit import Workshop, unaudited
from sdpo.parity.watch.release_index import (
    IndexUnreachableError,
    chosen_releases,
    releases_of,
)
from sdpo.parity.watch.sightings import sightings
from sdpo.parity.watch.upstreams import Upstream, WatchError, parse_upstream
from sdpo.parity.watch.watch_line import WatchLine
from sdpo.runtime.atomic_write import write_atomically

HISTORY, PAGE = "history.jsonl", "watch.md"
MOVED, UNJUDGED = 1, 3
UNLISTED = "latest"
"""Stands for the releases of a package whose index cannot be reached."""

Releases = Mapping[str, str]
"""Releases, oldest first, each with when it was committed; empty for versions."""


@dataclass(frozen=True)
class WatchOrder:
    """What the command was asked for.

    Attributes:
        upstreams: as the user wrote them.
        workshop: where releases are audited.
        out: folder of history and page.
        page: file of the page.
        last: how many of the latest releases are audited where none are named.
        halving: whether only those are audited that show where something moved.
        declared: ledgers, by path or packaged name; by default the candidates' packaged ones.
    """

    upstreams: Sequence[str]
    workshop: Workshop
    out: Path
    page: Path
    last: int
    halving: bool = False
    declared: Sequence[str] = ()


def watch_all(order: WatchOrder) -> int:
    """Audit releases, append them to the history, write the page, and return the exit code.

    It is 0 where nothing moved, 1 where a release introduced, changed or removed a deviation, 3
    where a release could not be judged, and 2 where nothing could be begun.
    """
    history = order.out / HISTORY
    try:
        upstreams = [parse_upstream(text) for text in order.upstreams]
        ledger = _ledger(order, upstreams)
        before = read_lines(history, WatchLine, "sdpo watch") if history.exists() else []
        listed = [_releases(upstream, order) for upstream in upstreams]
    except (WatchError, DeclaredError, HistoryError) as error:
        return refuse(str(error), False)
    lines: list[WatchLine] = []
    for upstream, releases in zip(upstreams, listed, strict=True):
        lines += _watch(upstream, releases, order, ledger)
    moved = [
        change for of_upstream in by_upstream(lines) for change in changes(of_upstream, ledger)
    ]
    for change in moved:
        print(change_line(change).replace("*", "").replace("`", ""))
    order.page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(order.page, page([*before, *lines], ledger))
    print(f"page: {order.page}; history: {history}")
    return _exit_code(lines, moved)


def _ledger(order: WatchOrder, upstreams: Sequence[Upstream]) -> list[Deviation]:
    """The declared deviations of all candidates."""
    candidates = dict.fromkeys(upstream.candidate for upstream in upstreams)
    packaged = [name for name in candidates if (LEDGERS / f"{name}.toml").exists()]
    return load_for(order.declared or packaged)


def _releases(upstream: Upstream, order: WatchOrder) -> Releases | None:
    """The releases of an upstream; None where an index is needed and none answers.

    Raises:
        WatchError: there is no such checkout, commit, package, or release in the range.
    """
    if upstream.checkout:
        return commits_of(upstream)
    if upstream.candidate == upstream.package and upstream.candidate not in TRAINERS:
        raise WatchError(
            f"{upstream.package!r} is no trainer that is known ({', '.join(TRAINERS)}): name the "
            f"candidate too, as my_adapter.py:Mine@{upstream.package}"
        )
    try:
        available = releases_of(upstream.package)
    except IndexUnreachableError:
        return dict.fromkeys(upstream.listed, "") if upstream.listed else None
    if upstream.listed:
        return dict.fromkeys(upstream.listed, "")
    if order.halving and not upstream.range:
        supported = SpecifierSet(_supported(upstream))
        available = [name for name in available if supported.contains(name)]
    last = None if order.halving or upstream.range else order.last
    return dict.fromkeys(chosen_releases(upstream, available, last), "")


def _supported(upstream: Upstream) -> str:
    """The releases that the packaged adapter of a candidate was written for, all without one."""
    if upstream.candidate not in TRAINERS:
        return ""
    adapter = find(TRAINERS[upstream.candidate])
    return adapter.versions if adapter.package == upstream.package else ""


def _watch(
    upstream: Upstream, releases: Releases | None, order: WatchOrder, ledger: Sequence[Deviation]
) -> list[WatchLine]:
    """Audit the releases of one upstream, and append each to the history.

    Without a list of releases one line says so, which the history does not keep.
    """
    if releases is None:
        why = f"the package index cannot be reached: name versions, as {upstream.package}==1.0"
        line = unaudited(upstream, UNLISTED, "", "not installed", why)
        _tell(line, ledger)
        return [line]
    names = list(releases)

    def audited(number: int) -> WatchLine:
        """Audit the release of a number."""
        line = order.workshop.audit(upstream, names[number], releases[names[number]])
        append_line(order.out / HISTORY, line)
        _tell(line, ledger)
        return line

    if not order.halving:
        return [audited(number) for number in range(len(names))]
    done: list[WatchLine] = []

    def judged(number: int) -> WatchLine | None:
        """Audit a release; None where it could not be judged."""
        done.append(audited(number))
        return done[-1] if done[-1].is_judged else None

    bisect(len(names), judged, lambda older, newer: bool(changes([older, newer], ledger)))
    return done


def _tell(line: WatchLine, ledger: Sequence[Deviation]) -> None:
    """Print the audit of a release in one line."""
    begun = f"{line.candidate} with {line.upstream} {line.short_release}:"
    if line.outcome != "audited":
        print(f"{begun} {line.outcome}: {line.note}", flush=True)
        return
    said = f"{line.verdict} first={line.first_stage} deviations={len(sightings(line, ledger))}"
    note = f" {line.note}" if not line.is_judged else ""
    print(f"{begun} {said} {line.seconds:.0f} s{note}", flush=True)


def _exit_code(lines: Sequence[WatchLine], moved: Sequence[Change]) -> int:
    """What the watch came to: a release that could not be judged comes before what moved."""
    if not all(line.is_judged for line in lines):
        return UNJUDGED
    return MOVED if moved else 0
