"""The page names what moved, in tables that add up."""

from msgspec import structs

from sdpo.parity.watch.page import by_upstream, page
from sdpo.parity.watch.release_audit import line_of, unaudited
from sdpo.parity.watch.upstreams import Upstream
from tests.helpers.stand_in_releases import run_that_shows

UPSTREAM = Upstream("mine", "p")


def line(release, sizes, committed=""):
    run = run_that_shows(sizes, holds=tuple({"T01", "T02"} - {case for case, _ in sizes}))
    return line_of(run, UPSTREAM, release, committed, {"p": release})


OLD, NEW = {("T01", "aggregate"): 0.5}, {("T01", "aggregate"): 0.5, ("T02", "optimizer"): 0.25}
BROKEN = unaudited(UPSTREAM, "1.10", "", "not installed", "no wheel of it | for this Python")


def rows(text, title):
    """The cells of the table below a heading cell."""
    lines = text.splitlines()
    start = next(n for n, at in enumerate(lines) if at.startswith(f"| {title}"))
    table = []
    for at in lines[start:]:
        if not at.startswith("|"):
            return table
        table.append([cell.strip() for cell in at.strip("|").split(" | ")])
    return table


def test_releases_stand_in_order_with_what_they_moved_and_what_could_not_be_judged():
    old = structs.replace(line("1.9", OLD), chosen=("q<2",))
    text = page([line("1.11", NEW), BROKEN, old], [])
    releases = rows(text, "release")
    assert [row[0] for row in releases[2:]] == ["1.9", "1.10", "1.11"]
    assert releases[3][1:] == [
        "not installed", "-", r"no wheel of it \| for this Python", "?", "-",
    ]  # fmt: skip
    told = (
        "- **1.11** or after 1.9 introduced `optimizer value` (`optimizer`): largest |Δ| 0 → 0.25"
    )
    assert f"{told} in T02" in text
    assert text.count("introduced") == 1
    deviations = rows(text, "deviation")
    assert deviations[2:] == [
        ["`aggregate value`", "`aggregate`", "-", "1.9 or before", "0.5", "?", "0.5"],
        ["`optimizer value`", "`optimizer`", "-", "1.11", "-", "?", "0.25"],
    ]
    assert "`sdpo watch mine@p==1.9,1.10,1.11 --with 'q<2'`" in text


def test_every_row_of_a_table_has_the_cells_of_its_head():
    text = page([line("1.9", OLD), BROKEN, line("1.11", NEW)], [])
    for title in ("release", "deviation"):
        head, *body = rows(text, title)
        assert {len(row) for row in body[1:]} == {len(head)}


def test_the_last_audit_that_judged_a_release_counts():
    failed = unaudited(UPSTREAM, "1.9", "", "not installed", "offline")
    ((only,),) = by_upstream([failed, line("1.9", OLD), failed])
    assert only.verdict == "DIVERGENT"
    ((only,),) = by_upstream([line("1.9", OLD), line("1.9", NEW)])
    assert len(only.departures) == 2
    ((only,),) = by_upstream([failed, structs.replace(failed, note="later")])
    assert only.note == "later"


def test_commits_stand_in_the_order_of_their_dates_and_are_shortened():
    lines = [
        line("b" * 40, OLD, "2030-01-02T00:00:00+01:00"),
        line("a" * 40, NEW, "2030-01-01T23:30:00+00:00"),
    ]
    text = page(lines, [])
    assert [row[0] for row in rows(text, "release")[2:]] == ["b" * 8, "a" * 8]
    assert "`sdpo watch mine@p:bbbbbbbb,aaaaaaaa`" in text


def test_where_nothing_moved_the_page_says_so():
    assert "No deviation moved between 1.9 and 1.10." in page(
        [line("1.9", OLD), line("1.10", OLD)], []
    )
    assert "Fewer than two releases could be judged" in page([line("1.9", OLD), BROKEN], [])
