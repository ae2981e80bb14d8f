"""Which checkout is run: found, whole, unmodified, and of which commit."""

import subprocess
import sys

import pytest

from sdpo.parity.live_fork.checkout import (
    COMMIT,
    NEEDED_FILES,
    Checkout,
    CheckoutError,
    find_checkout,
    find_verl,
    inspect_checkout,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the names of the files that are needed."""
    for name in NEEDED_FILES:
        path = tmp_path / "SDPO" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("self_distillation = 1\n")
    (tmp_path / "SDPO" / "verl" / "__init__.py").touch()
    monkeypatch.delenv("SDPO_VERL_CHECKOUT", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "nothing")
    return tmp_path / "SDPO"


def git(folder, *arguments):
    own = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *own, "-C", str(folder), *arguments], check=True, capture_output=True)


def committed(folder):
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return folder


def test_the_variable_names_the_checkout_and_it_comes_first_on_the_path(folder, monkeypatch):
    monkeypatch.setenv("SDPO_VERL_CHECKOUT", str(folder))
    assert find_checkout() == folder
    assert sys.path[0] == str(folder)


def test_a_verl_that_can_be_imported_is_found(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    assert find_checkout() == folder


def test_without_a_checkout_one_line_says_how_to_get_one(folder, monkeypatch):
    with pytest.raises(CheckoutError, match=r"^no checkout of verl found: git clone \S+lasgroup"):
        find_checkout()
    monkeypatch.setenv("SDPO_VERL_CHECKOUT", str(folder / "absent"))
    with pytest.raises(CheckoutError, match="absent is no folder"):
        find_checkout()


def test_half_a_checkout_names_the_missing_files(folder):
    (folder / NEEDED_FILES[1]).unlink()
    with pytest.raises(CheckoutError, match=f"no whole checkout.*, {NEEDED_FILES[1]} is missing"):
        find_checkout(folder)


def test_one_process_runs_one_checkout(folder, monkeypatch, tmp_path):
    other = tmp_path / "other" / "verl" / "__init__.py"
    loaded = type(sys)("verl")
    loaded.__file__ = str(other)
    monkeypatch.setitem(sys.modules, "verl", loaded)
    with pytest.raises(CheckoutError, match="one process runs one checkout"):
        find_checkout(folder)


def test_a_clean_checkout_has_a_commit_and_no_changes(folder):
    checkout = inspect_checkout(committed(folder))
    assert len(checkout.commit or "") == 40
    assert (checkout.changed, checkout.diff) == ((), "")
    assert "another one than recorded" in checkout.described()
    assert not checkout.is_recorded_commit


def test_a_modified_checkout_is_named_as_such(folder):
    committed(folder)
    (folder / NEEDED_FILES[1]).write_text("x = 2\n")
    (folder / "verl" / "new.py").touch()
    checkout = inspect_checkout(folder)
    assert set(checkout.changed) == {NEEDED_FILES[1], "verl/new.py"}
    assert "+x = 2" in checkout.diff
    assert f"modified: {NEEDED_FILES[1]}" in checkout.described()


def test_files_outside_of_the_package_are_no_changes(folder):
    committed(folder)
    (folder / "notes.txt").touch()
    assert inspect_checkout(folder).changed == ()


def test_a_plain_folder_in_another_repository_has_no_commit(folder):
    committed(folder.parent)
    checkout = inspect_checkout(folder)
    assert checkout.commit is None
    assert "commit unknown" in checkout.described()


def test_the_recorded_commit_unmodified_is_known_as_such(folder):
    assert Checkout(folder, COMMIT).is_recorded_commit
    assert not Checkout(folder, COMMIT, ("verl/a.py",)).is_recorded_commit
    assert Checkout(folder, COMMIT).described().startswith(f"commit {COMMIT[:12]}; the golden")


def test_a_verl_without_sdpo_is_not_taken_for_half_a_checkout(folder):
    (folder / "verl/trainer/config/sdpo.yaml").unlink()
    for name in NEEDED_FILES[1:]:
        (folder / name).write_text("x = 1\n")
    with pytest.raises(CheckoutError, match=r"is a verl without SDPO, another than lasgroup/SDPO"):
        find_checkout(folder)
    assert find_verl(folder) == folder


def test_a_folder_without_a_package_is_no_verl(tmp_path):
    with pytest.raises(CheckoutError, match="give the folder above `verl/`"):
        find_verl(tmp_path)
