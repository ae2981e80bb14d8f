"""A watch of releases that are made here: what it says, what it keeps, and how it ends."""

import json

import pytest

from sdpo.parity.report.history import read_lines
from sdpo.parity.watch import launch
from sdpo.parity.watch.environments import Environment, InstallError
from sdpo.parity.watch.launch import HISTORY, WatchOrder, watch_all
from sdpo.parity.watch.release_audit import AuditLostError, Workshop
from sdpo.parity.watch.release_index import IndexUnreachableError
from sdpo.parity.watch.upstreams import WatchError
from sdpo.parity.watch.watch_line import WatchLine
from tests.helpers.stand_in_releases import run_that_shows

OLD, NEW = {("T01", "aggregate"): 0.5}, {("T01", "optimizer"): 0.25}


class StandIns(Workshop):
    """Audits that are told by a table: |Δ| by case and stage, or why there is no audit."""

    table: dict

    def prepare(self, upstream, release):
        if isinstance(self.table[release], InstallError):
            raise self.table[release]
        return Environment(self.cache / release), {}


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Watches the stand-in package; gives the exit code and the releases that were audited."""

    def watch(table, *upstreams, index=list, **fields):
        audited = []

        def run(environment, candidate, folder, variables):
            release = environment.folder.name
            audited.append(release)
            shown = table[release]
            if isinstance(shown, AuditLostError):
                raise shown
            missing = {"T01"} - {case for case, _ in shown}
            return run_that_shows(shown, holds=tuple(missing))

        workshop = StandIns(tmp_path / "cache", tmp_path / "audits", run=run)
        object.__setattr__(workshop, "table", table)
        monkeypatch.setattr(launch, "releases_of", lambda _: index(table))
        listed = upstreams or ("x.py:f@standin==" + ",".join(table),)
        out = tmp_path / "out"
        order = WatchOrder(listed, workshop, out, out / "watch.md", **{"last": 4, **fields})
        return watch_all(order), audited

    return watch


def history(tmp_path):
    return read_lines(tmp_path / "out" / HISTORY, WatchLine, "sdpo watch")


def test_a_release_that_changes_a_deviation_is_reported_at_that_release(watched, tmp_path, capsys):
    code, audited = watched({"1.0": OLD, "1.1": OLD, "1.2": NEW, "1.3": NEW})
    told = capsys.readouterr().out.splitlines()
    assert (code, audited) == (1, ["1.0", "1.1", "1.2", "1.3"])
    assert told[0] == "x.py:f with standin 1.0: DIVERGENT first=None deviations=1 1 s"
    assert [line for line in told if "removed" in line or "introduced" in line] == [
        "1.2 removed aggregate value (aggregate): largest |Δ| 0.5 → 0 in T01",
        "1.2 introduced optimizer value (optimizer): largest |Δ| 0 → 0.25 in T01",
    ]
    assert "**1.2** introduced `optimizer value`" in (tmp_path / "out" / "watch.md").read_text()


def test_where_nothing_moved_the_exit_code_is_0(watched):
    assert watched({"1.0": OLD, "1.1": OLD})[0] == 0


@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        (InstallError("no wheel of it"), "not installed"),
        (AuditLostError("ended with 9"), "not audited"),
    ],
)
def test_a_release_without_an_audit_is_a_row_that_says_so_and_exit_code_3(
    watched, tmp_path, trouble, outcome
):
    code, _ = watched({"1.0": OLD, "1.1": trouble, "1.2": NEW})
    assert code == 3
    assert [line.outcome for line in history(tmp_path)] == ["audited", outcome, "audited"]
    page = (tmp_path / "out" / "watch.md").read_text()
    assert f"| 1.1 | {outcome} | - | {trouble} | ? | - |" in page
    assert "**1.2** or after 1.0 introduced" in page


def test_halving_finds_the_planted_release_in_log2_steps(watched, capsys):
    table = {f"1.{n}": OLD if n < 11 else NEW for n in range(16)}
    code, audited = watched(table, "x.py:f@standin", halving=True)
    assert code == 1
    assert len(audited) == 2 + 4
    assert "1.11 introduced optimizer value" in capsys.readouterr().out


def test_halving_takes_the_list_that_is_given(watched):
    table = {f"1.{n}": OLD if n < 3 else NEW for n in range(9)}
    _, audited = watched(table, halving=True)
    assert {"1.2", "1.3"} <= set(audited)
    assert len(audited) <= 2 + 3


def test_the_latest_releases_of_the_index_are_audited_where_none_are_named(watched):
    table = dict.fromkeys(["1.0", "1.1", "1.2", "1.3", "1.4"], OLD)
    assert watched(table, "x.py:f@standin")[1] == ["1.1", "1.2", "1.3", "1.4"]
    assert watched(table, "x.py:f@standin", last=1)[1] == ["1.4"]
    assert watched(table, "x.py:f@standin<1.2", last=1)[1] == ["1.0", "1.1"]


def test_the_history_is_only_appended_to_and_the_page_remembers_it(watched, tmp_path):
    watched({"1.0": OLD})
    first = (tmp_path / "out" / HISTORY).read_bytes()
    watched({"1.1": NEW})
    both = (tmp_path / "out" / HISTORY).read_bytes()
    assert both.startswith(first)
    assert [json.loads(line)["release"] for line in both.splitlines()] == ["1.0", "1.1"]
    assert "**1.1** introduced" in (tmp_path / "out" / "watch.md").read_text()


def unreachable(_):
    raise IndexUnreachableError


def unknown(_):
    raise WatchError("the package index knows no such package")


def test_offline_with_no_list_a_row_says_so(watched, tmp_path, capsys):
    watched({"1.0": OLD})
    assert watched({}, "x.py:f@standin", index=unreachable) == (3, [])
    page = (tmp_path / "out" / "watch.md").read_text()
    assert "| latest | not installed | - | the package index cannot be reached" in page
    assert len(history(tmp_path)) == 1
    assert "latest: not installed" in capsys.readouterr().out


def test_offline_a_list_is_tried_as_it_is(watched):
    table = {"1.0": OLD, "1.1": InstallError("offline")}
    assert watched(table, index=unreachable) == (3, ["1.0"])


@pytest.mark.parametrize(
    ("upstreams", "words"),
    [
        (("x.py:f@standin==1.0", "standin==1.0"), "'standin' is no trainer that is known"),
        (("x.py:f@standin==1.0", "x.py:f@standin=="), "names no version"),
        (("x.py:f@standin==1.0", "verl@/no/where:main"), "cannot be watched"),
        (("x.py:f@standin>7",), "matches none of its 1 releases"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_nothing_is_begun(
    watched, tmp_path, capsys, upstreams, words
):
    assert watched({"1.0": OLD}, *upstreams) == (2, [])
    told = capsys.readouterr().out
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_package_and_a_file_that_is_no_history_are_refused(watched, tmp_path, capsys):
    assert watched({"1.0": OLD}, index=unknown) == (2, [])
    assert "knows no such package" in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / HISTORY).write_text('{"schema_version": 2}\n')
    assert watched({"1.0": OLD}) == (2, [])
    assert "line 1: not a line of `sdpo watch`" in capsys.readouterr().out
