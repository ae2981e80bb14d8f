"""Benchmark runs: recorded whole, continued after a kill to the same end, never overwritten."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from sdpo.benchmark.embedded import pretrain, tokenizer
from sdpo.benchmark.embedded.recipe import PACKAGED
from sdpo.benchmark.problems.dataset import DataError
from sdpo.benchmark.runs import settings
from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.runs.run import run
from sdpo.benchmark.runs.settings import Settings, SettingsError
from sdpo.cli.interrupts import reported

SHORT = {
    "train.max_steps": 4,
    "train.per_device_train_batch_size": 8,
    "train.num_generations": 4,
    "train.max_completion_length": 40,
    "eval.limit": 4,
    "eval.every": 2,
    "eval.max_new_tokens": 40,
    "records.checkpoint_every": 1,
    "records.samples_every": 2,
}
SAME = ("steps", "evals", "samples", "parity")


def short(config: str = "sdpo", **changes: Any) -> Settings:
    return settings.load(config, [], SHORT | changes)


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same in every repetition."""
    names = [f"{name}.jsonl" for name in SAME if (folder / f"{name}.jsonl").is_file()]
    found = {name: (folder / name).read_bytes() for name in names}
    return found | {"weights": (folder / "model" / "model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A folder with the embedded architecture and tokenizer, and random weights."""
    from sdpo.settings.determinism import deterministic

    folder = tmp_path_factory.mktemp("model")
    with deterministic(3):
        model = pretrain.new_model(PACKAGED, tokenizer.build().get_vocab_size())
    pretrain.write_model(model, folder, PACKAGED)
    # It never ends a completion by itself, and never solves a problem.
    suited = {"train.max_completion_length": 12, "eval.max_new_tokens": 12}
    suited["sdpo.include_environment_feedback"] = True
    return {"model.name": str(folder), **suited}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, random_model):
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, run(short(**random_model), folder)


def test_a_run_records_everything(finished, random_model):
    folder, summary = finished
    records, facts = Records(folder), json.loads((folder / "run.json").read_text())
    assert [row["step"] for row in records.steps.read()] == [1, 2, 3, 4]
    assert [row["step"] for row in records.cost.read()] == [1, 2, 3, 4]
    assert [row["step"] for row in records.evals.read()] == [0, 2, 4]
    row = records.steps.read()[0]
    names = {"loss", "grad_norm", "learning_rate", "reward", "completions/mean_length"}
    assert names | {"self_distillation/reprompt_sample_fraction"} <= row.keys()
    evaluation = records.evals.read()[0]
    assert evaluation["low"] <= evaluation["pass_at_1"] <= evaluation["high"]
    assert len(evaluation["results"]) == 4
    sample = records.samples.read()[0]
    assert sample["help"] == "none" or "Correctly solve the original" in sample["teacher_prompt"]
    assert facts["settings"] == msgspec.to_builtins(short(**random_model))
    assert facts["data"]["data_sha256"]
    assert facts["environment"]["packages"]["torch"]
    assert facts["isolation"]
    assert summary["weights_sha256"]
    assert not (folder / "checkpoints").exists()


def test_a_finished_run_is_not_repeated(finished, random_model):
    folder, summary = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert run(short(**random_model), folder) == summary
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert before == after


def test_other_settings_are_refused_and_nothing_changes(finished, random_model):
    folder, _ = finished
    before = contents(folder)
    with pytest.raises(SettingsError, match="seed: 1 there, 9 now"):
        run(short(seed=9, **random_model), folder)
    assert contents(folder) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match=r"holds thesis\.txt and no run\.json"):
        run(short(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_data_without_tests_are_refused(tmp_path):
    file = tmp_path / "bare.jsonl"
    file.write_text('{"task_id": 601, "text": "Do it.", "code": "x = 1", "test_list": []}\n')
    with pytest.raises(DataError, match="problem 601 has no test"):
        run(short(**{"data.name": str(file)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_named(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SettingsError, match=r"train\.use_cpu asks for a GPU and there is none"):
        run(settings.load("published"), tmp_path / "out")


def test_a_full_disk_is_named_before_work_starts(tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10, 10, 0)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(SettingsError, match="only 0 MiB are free"):
        run(short(), tmp_path / "out")


def test_a_disk_that_fills_up_is_explained(capsys):
    with pytest.raises(typer.Exit), reported():
        raise OSError(errno.ENOSPC, "No space left on device", "steps.jsonl")
    said = capsys.readouterr().out
    assert "steps.jsonl" in said
    assert "make room, then the same command continues" in said


@pytest.mark.slow
def test_auditing_disturbs_nothing(tmp_path):
    # With feedback every failed attempt has a teacher.
    told = {"sdpo.include_environment_feedback": True}
    run(short("sdpo", **told), tmp_path / "plain")
    run(short("sdpo-audit", **told), tmp_path / "audited")
    plain, audited = contents(tmp_path / "plain"), contents(tmp_path / "audited")
    rows = Records(tmp_path / "audited").parity.read()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["parity/first_moved"] == 0 for row in rows)
    assert audited.pop("parity.jsonl")
    assert audited == plain
