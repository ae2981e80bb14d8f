"""The releases that an index lists; no index is told from no package."""

import subprocess
from types import SimpleNamespace

import pytest

from sdpo.parity.watch import release_index
from sdpo.parity.watch.release_index import IndexUnreachableError, chosen_releases, releases_of
from sdpo.parity.watch.upstreams import Upstream, WatchError
from tests.helpers.stand_in_releases import offline_index, wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    for version in ("1.10", "1.9", "1.2", "2.0rc1"):
        wheel(tmp_path, version)
    for name, value in offline_index(tmp_path).items():
        monkeypatch.setenv(name, value)


def test_final_releases_are_listed_by_age(index):
    assert releases_of("standin") == ["1.2", "1.9", "1.10"]


def test_a_package_that_the_index_lacks_is_refused(index):
    with pytest.raises(WatchError, match="knows no 'no-such-package'"):
        releases_of("no-such-package")


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'",
        "WARNING: ... 'ReadTimeoutError(\"Read timed out. (read timeout=15)\")'",
    ],
)
def test_an_index_that_does_not_answer_is_no_unknown_package(monkeypatch, said):
    done = SimpleNamespace(returncode=1, stdout="", stderr=f"{said}\nERROR: No matching")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(IndexUnreachableError, match="cannot be reached"):
        releases_of("trl")


def test_without_pip_and_uv_nobody_can_ask(monkeypatch):
    monkeypatch.setattr(release_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(release_index, "uv_command", list)
    with pytest.raises(IndexUnreachableError, match="neither pip nor uv"):
        releases_of("trl")


def test_the_latest_in_the_range_are_chosen():
    available = ["1.0", "1.1", "1.2", "2.0"]
    assert chosen_releases(Upstream("p", "p"), available, 2) == ["1.2", "2.0"]
    assert chosen_releases(Upstream("p", "p", range="<2"), available, None) == available[:3]
    with pytest.raises(WatchError, match=r"p>3 matches none of its 4 releases, .* is 2.0"):
        chosen_releases(Upstream("p", "p", range=">3"), available, None)
