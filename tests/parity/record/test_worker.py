"""The process that records: what it refuses, what it writes, and what fails once."""

import json
import subprocess

import pytest

from sdpo.fixtures import load_family
from sdpo.parity.random_cases.compare_sides import Difference, FamilyComparison
from sdpo.parity.record import worker

CASES = """
[[loss]]
id = "A-001"
description = "usual settings"
tags = []
seed = 7
rows = 2
tokens = 3
vocabulary = 12
distillation_topk = 4
"""


@pytest.fixture
def order(stand_in, tmp_path, capsys):
    """Records a list of cases from the stand-in; gives the exit code and what was printed."""
    folder = stand_in()
    (tmp_path / "cases.toml").write_text(CASES)

    def carry_out(**changed):
        given = {
            "checkout": str(folder),
            "cases": str(tmp_path / "cases.toml"),
            "out": str(tmp_path / "out"),
            "regenerate": False,
            "allow_modified": True,
        }
        code = worker.main([json.dumps(given | changed)])
        return code, capsys.readouterr().out

    return carry_out


def test_cases_are_recorded_with_their_provenance(order, tmp_path):
    code, text = order()
    assert (code, text.count("\n")) == (0, 1)
    assert "1 cases recorded" in text
    family = load_family(tmp_path / "out", "loss")
    told = family.manifest["provenance"]
    assert told["reference_commit"] is None
    assert told["kernels"].keys() >= {"ATEN_CPU_CAPABILITY", "MKL_CBWR"}
    assert told["torch_num_threads"] == 1
    assert told["processor"]
    assert family.case("A-001").tensors()["out.per_token_loss"].shape == (2, 3)


def test_recording_again_says_that_nothing_changed(order):
    assert order()[0] == 0
    assert order() == (0, order()[1])
    assert "have the bits that are there" in order()[1]


def test_a_changed_recording_fails_and_is_replaced_only_when_asked_and_fails_once(order, tmp_path):
    order()
    (tmp_path / "cases.toml").write_text(CASES + "alpha = 0.25\n")
    code, text = order()
    assert code == 1
    assert text.startswith("A-001 differs in config, grad_abs_max, loss")
    assert load_family(tmp_path / "out", "loss").case("A-001").config["alpha"] == 0.5
    assert order(regenerate=True)[0] == 1
    assert load_family(tmp_path / "out", "loss").case("A-001").config["alpha"] == 0.25
    assert order()[0] == 0


def test_random_cases_that_differ_are_counted_and_fail(order, monkeypatch):
    differing = FamilyComparison("loss", 2, 9, differences=[Difference(5, ("loss",), "the case")])

    def compared(count, seed, progress):
        assert (count, seed) == (2, 4)
        return [FamilyComparison("loss", 2, 9), *([differing] if fails else [])]

    monkeypatch.setattr(worker, "compare_families", compared)
    fails = False
    assert order(out="", random=2, seed=4) == (0, order(out="", random=2, seed=4)[1])
    fails = True
    code, text = order(out="", random=2, seed=4)
    assert (code, "1 differ" in text, "seeds 5" in text) == (1, True, True)


def test_a_modified_checkout_is_recorded_only_when_allowed(order, tmp_path):
    folder = tmp_path / "SDPO"
    own = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*own, *command], check=True)
    (folder / "verl" / "new.py").touch()
    code, text = order(allow_modified=False)
    assert (code, text.count("\n")) == (2, 1)
    assert "modified: verl/new.py" in text
    assert not (tmp_path / "out").exists()
    assert order()[0] == 0
    told = load_family(tmp_path / "out", "loss").manifest["provenance"]
    assert told["modified"] == ["verl/new.py"]
    assert len(told["diff_sha256"]) == 64


@pytest.mark.parametrize(
    ("changed", "text", "words"),
    [
        ({"checkout": "/nowhere"}, CASES, "no checkout of verl found"),
        ({}, CASES + "alhpa = 1\n", "did you mean 'alpha'"),
        ({}, CASES + "loss_agg_mode = 'sum'\n", "the fork refuses case A-001"),
        ({"cases": "/nowhere.toml"}, CASES, "No such file"),
    ],
)
def test_what_cannot_be_recorded_is_one_line_and_nothing_is_written(
    order, tmp_path, changed, text, words
):
    (tmp_path / "cases.toml").write_text(text)
    code, told = order(**changed)
    assert (code, told.count("\n")) == (2, 1)
    assert words in told
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_nothing_is_written(order, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "write_recording", full)
    code, told = order()
    assert (code, told.count("\n")) == (2, 1)
    assert "No space left on device; the disk is full" in told
