"""`sdpo mutants` on the command line: matrix, JSON and exit codes."""

import json

import pytest

from sdpo.cli import main
from sdpo.cli.mutants import mutants_text
from sdpo.parity.faults.catalogue import CATALOGUE, LOSS_FAULTS
from tests.helpers.run_documents import passing


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["mutants", *arguments])
    return stopped.value.code, capsys.readouterr().out


def test_matrix_of_some_faults(capsys):
    code, text = run(capsys, "--only", "M07,M23")
    assert code == 0
    assert text.splitlines()[0] == "PASS killed=2/2 faults of the loss"
    assert "M07   mean over all rows, masked rows too" in text


def test_one_json_document(capsys):
    code, text = run(capsys, "--only", "M01", "--json")
    document = json.loads(text)
    (row,) = document["faults"]
    assert (code, document["verdict"], document["failures"]) == (0, "PASS", [])
    assert row["stages"] == {
        "trace": "divergence",
        "logits": "divergence",
        "log-probs": "divergence",
    }
    assert row["killed"]
    assert row["at_its_stage"]


def test_faults_that_are_not_run_are_counted_apart():
    outside = [fault for fault in CATALOGUE if not fault.in_loss]
    text = mutants_text([], outside, [])
    assert text.splitlines()[0] == "PASS killed=0/0 faults of the loss"
    assert f"not run here ({len(outside)})" in text
    assert all(f"{f.id:<5} {f.name} [{f.stage}] {f.proof}" in text for f in outside)
    assert len(outside) + len(LOSS_FAULTS) == len(CATALOGUE)


@pytest.mark.parametrize("asked", ["M77x", "M24"])
def test_no_such_fault_of_the_loss(capsys, asked):
    code, text = run(capsys, "--only", asked)
    assert code == 2
    assert text.startswith("ERROR ")
    assert asked in text


def test_a_survivor_is_named_on_the_first_line(capsys, monkeypatch):
    monkeypatch.setattr("sdpo.parity.audit.self_test.judged_here", lambda *_: SURVIVED)
    code, text = run(capsys, "--only", "M23")
    assert code == 4
    assert text.startswith("FAILED M23 loss right, gradient zero survives killed=0/1")
    assert mutants_text([], [], []).startswith("PASS killed=0/0")


SURVIVED = passing()
