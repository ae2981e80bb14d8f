"""Commits of a checkout are found, ordered and cloned; half a checkout is refused."""

import subprocess

import pytest

from sdpo.parity.live_fork.checkout import NEEDED_FILES, inspect_checkout
from sdpo.parity.watch.commits import clone_of, commits_of
from sdpo.parity.watch.environments import InstallError
from sdpo.parity.watch.upstreams import Upstream, WatchError


def git(folder, *arguments, day=1):
    own = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(folder)]
    dated = {"GIT_COMMITTER_DATE": f"2030-01-{day:02}T00:00:00+00:00", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["git", *own, *arguments], check=True, capture_output=True, text=True, env=dated
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """Four commits: nothing yet, then the files of the fork in three states."""
    folder = tmp_path / "SDPO"
    folder.mkdir()
    git(folder, "init", "-qb", "main")
    git(folder, "commit", "-qm", "nothing", "--allow-empty", day=1)
    for day in (2, 3, 4):
        for name in NEEDED_FILES:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"day = {day}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"day {day}", day=day)
        git(folder, "tag", f"v{day}")
    return folder


def of(folder, *names):
    return Upstream("verl", checkout=str(folder), listed=names)


def test_commits_come_in_the_order_of_history_each_once(checkout):
    hashes = [git(checkout, "rev-parse", tag) for tag in ("v2", "v3", "v4")]
    found = commits_of(of(checkout, "v2..v3", "main", "v3", hashes[0][:8]))
    assert list(found) == hashes
    assert [when[:10] for when in found.values()] == ["2030-01-02", "2030-01-03", "2030-01-04"]


def test_a_clone_holds_its_commit_and_the_checkout_stays_as_it_is(checkout, tmp_path):
    (checkout / NEEDED_FILES[0]).write_text("changed here\n")
    (commit,) = commits_of(of(checkout, "v3"))
    clone = clone_of(of(checkout, "v3"), commit, tmp_path / "cache")
    assert (clone / NEEDED_FILES[0]).read_text() == "day = 3\n"
    assert inspect_checkout(clone.resolve()).commit == commit
    assert (checkout / NEEDED_FILES[0]).read_text() == "changed here\n"
    assert git(checkout, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert clone_of(of(checkout, "v3"), commit, tmp_path / "cache") == clone


def test_a_clone_that_fails_leaves_nothing(checkout, tmp_path):
    with pytest.raises(InstallError, match="cannot be cloned"):
        clone_of(of(checkout), "0" * 40, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_clone_that_was_interrupted_is_made_anew(checkout, tmp_path):
    (commit,) = commits_of(of(checkout, "v2"))
    half = tmp_path / "cache" / f"{commit}.partial"
    half.mkdir(parents=True)
    (half / "left").touch()
    clone = clone_of(of(checkout, "v2"), commit, tmp_path / "cache")
    assert not (clone / "left").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["no-such"], "no-such"),
        (["no-such..main"], "no-such"),
        (["main~3"], r"is no whole checkout of lasgroup/SDPO, .*core_algos.py.* missing"),
    ],
)
def test_an_unknown_commit_or_half_a_checkout_is_one_line(checkout, names, words):
    with pytest.raises(WatchError, match=words) as refused:
        commits_of(of(checkout, *names))
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_repository_is_one_line(tmp_path):
    with pytest.raises(WatchError, match="cannot be watched: fatal: not a git repository"):
        commits_of(of(tmp_path, "main"))
    with pytest.raises(WatchError, match="No such file or directory"):
        commits_of(of(tmp_path / "nowhere", "main"))
