"""Environments are made once, from what is installed, and never used half made."""

import json

import pytest

from sdpo.parity.watch import environments
from sdpo.parity.watch.environments import (
    COMPLETE,
    InstallError,
    environment_of,
    folder_of,
)
from tests.helpers.stand_in_releases import offline_index, wheel


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """An index of two releases, of which one needs what there is not."""
    wheel(tmp_path / "index", "1.0")
    wheel(tmp_path / "index", "1.1", needs="no-such-package>=7")
    for name, value in offline_index(tmp_path / "index").items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "installer",
    ["uv", pytest.param("pip", marks=pytest.mark.slow)],  # copies pip itself
)
def test_a_release_is_installed_and_taken_from_the_cache_afterwards(
    tmp_path, monkeypatch, installer
):
    if installer == "uv" and not environments.uv_command():
        pytest.skip("uv is not installed")
    if installer == "pip":
        monkeypatch.setattr(environments, "uv_command", list)
    made = environment_of(["standin==1.0"], tmp_path / "cache")
    assert made.versions(["standin", "", "torch"]) == {"standin": "1.0"}
    assert json.loads((made.folder / COMPLETE).read_text())["requirements"] == ["standin==1.0"]

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(environments, "_make", fail)
    assert environment_of(["standin==1.0"], tmp_path / "cache") == made


@pytest.mark.parametrize("uv", [True, False])
def test_a_folder_holds_what_is_named_alone_and_is_made_once(tmp_path, monkeypatch, uv):
    if not uv:
        monkeypatch.setattr(environments, "uv_command", list)
    made = folder_of(["standin==1.1"], tmp_path / "cache")
    assert [path.name for path in made.glob("*.dist-info")] == ["standin-1.1.dist-info"]
    monkeypatch.setattr(environments, "_install_alone", None)
    assert folder_of(["standin==1.1"], tmp_path / "cache") == made


def test_a_folder_that_cannot_be_filled_is_not_kept(tmp_path):
    with pytest.raises(InstallError, match="no-such-package"):
        folder_of(["no-such-package"], tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_one_whose_making_was_interrupted_is_made_anew(tmp_path, monkeypatch):
    makings = []

    def half(environment, requirements):
        makings.append(requirements)
        environment.python.parent.mkdir(parents=True)
        environment.python.touch()
        (environment.folder / f"left by {len(makings)}").touch()
        if len(makings) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_make", half)
    with pytest.raises(KeyboardInterrupt):
        environment_of(["a"], tmp_path)
    made = environment_of(["a"], tmp_path)
    assert len(makings) == 2
    assert {path.name for path in made.folder.iterdir()} == {"bin", "left by 2", COMPLETE}


def test_other_packages_are_another_environment_and_their_order_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_make", lambda environment, _: environment.folder.mkdir())
    folders = [
        environment_of(requirements, tmp_path).folder
        for requirements in (["a==1", "b"], ["b", "a==1"], ["a==2", "b"])
    ]
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.parametrize(
    ("requirement", "words"),
    [("standin==1.1", "no-such-package"), ("standin==3.0", "standin==3.0")],
)
def test_what_does_not_install_is_one_line_and_leaves_nothing(tmp_path, requirement, words):
    with pytest.raises(InstallError, match=words) as refused:
        environment_of([requirement], tmp_path / "cache")
    assert "\n" not in str(refused.value)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
