"""One benchmark run, from settings to a summary; started again it continues or does nothing.

| file in the run's folder | content |
|---|---|
| `run.json` | effective settings, data hash, versions, commit, isolation layers |
| `steps.jsonl` | a row for each step: loss, rewards, coverage, lengths, learning rate, … |
| `parity.jsonl` | a row for each audited step: distances to the reference, with budgets |
| `cost.jsonl` | seconds and peak memory of each step |
| `evals.jsonl` | pass@1 with interval, and every problem's completion, status and feedback |
| `samples.jsonl` | attempts with their feedback and teacher prompt |
| `checkpoints/` | what a killed run continues from; removed at the end |
| `model/`, `summary.json` | final weights and figures; their presence ends the run |
"""

import contextlib
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from sdpo.benchmark.problems.dataset import Dataset, Problem
from sdpo.benchmark.problems.prompts import load_data, training_rows
from sdpo.benchmark.runs.checkpoints import latest
from sdpo.benchmark.runs.environment import describe
from sdpo.benchmark.runs.records import Records, locked, read_json, write_json
from sdpo.benchmark.runs.settings import (
    RewardSettings,
    Settings,
    SettingsError,
    differences,
    digest,
)
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.pass_at_1 import Scored, Summary, evaluate

Advance = Callable[[dict[str, Any]], None]
FREE_MIB = 512.0


def claim(out: Path, settings: Settings) -> dict[str, Any] | None:
    """Make a folder this run's own; returns the summary if it is finished.

    Raises:
        SettingsError: the folder holds a run with other settings, something else, or there is no
            room for checkpoints.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored = read_json(out / "run.json")
    if stored is None:
        others = sorted(path.name for path in out.iterdir() if path.name != ".lock")
        if others:
            raise SettingsError(
                f"{out} holds {', '.join(others[:3])} and no run.json: not a run's folder; give "
                "another --out"
            )
    elif changed := differences(stored["settings"], settings):
        raise SettingsError(
            f"{out} holds a run with other settings ({'; '.join(changed[:5])}); give another "
            "--out, or the same settings to continue"
        )
    free = shutil.disk_usage(out).free / 2**20
    if free < FREE_MIB:
        raise SettingsError(f"only {free:.0f} MiB are free at {out}; a run needs {FREE_MIB:.0f}")
    return read_json(out / "summary.json")


def run(settings: Settings, out: Path, advance: Advance | None = None) -> dict[str, Any]:
    """Train and evaluate, or go on with it.

    Args:
        settings: from `sdpo.benchmark.runs.settings.load`.
        out: folder of the run.
        advance: told the log row of each step.

    Returns:
        The summary; empty in all but the first of several processes.

    Raises:
        SettingsError, DataError, IsolationError: before any work.
        BusyError: another run works in the folder.
    """
    from sdpo.benchmark.runs.models import check_hardware

    check_hardware(settings)
    data = load_data(settings.data.name)
    advance = advance or (lambda row: None)
    if os.environ.get("RANK", "0") != "0":
        # The first of several processes has claimed the folder for all, or will stop them all.
        return read_json(out / "summary.json") or _work(settings, out, data, advance)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        return claim(out, settings) or _work(settings, out, data, advance)


def _work(settings: Settings, out: Path, data: Dataset, advance: Advance) -> dict[str, Any]:
    from sdpo.benchmark.runs.models import load_tokenizer
    from sdpo.settings.determinism import deterministic

    tokenizer = load_tokenizer(settings.model.name)
    train = data.only(settings.data.train_split).problems
    test = data.only(settings.data.eval_split).problems
    with (
        quiet(),
        Executor(settings.reward.workers, timeout=settings.reward.timeout) as executor,
        deterministic(settings.seed, settings.threads) as determinism,
    ):
        trainer, recorder = _trainer(settings, out, tokenizer, train, test, executor, advance)
        if trainer.is_world_process_zero() and not (out / "run.json").is_file():
            facts = {"data": data.stamp, "isolation": list(executor.isolation)}
            facts |= {"determinism": determinism, "environment": describe()}
            write_json(
                out / "run.json",
                {"settings": msgspec.to_builtins(settings), "digest": digest(settings), **facts},
            )
        _train(trainer, recorder, out, settings)
        return _finish(trainer, recorder, out, settings)


def _trainer(
    settings: Settings,
    out: Path,
    tokenizer: Any,
    train: tuple[Problem, ...],
    test: tuple[Problem, ...],
    executor: Executor,
    advance: Advance,
) -> tuple[Any, Any]:
    """The trainer with everything that watches it, and the recorder."""
    from datasets import Dataset as Rows
    from transformers import PrinterCallback

    from sdpo.benchmark.runs.methods import OURS, build_trainer
    from sdpo.benchmark.runs.models import adapter_config, load_model
    from sdpo.benchmark.runs.run_recorder import Recorder, TeacherWatch

    records = Records(out)

    def evaluation() -> tuple[Summary, list[Scored]]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        how = settings.data, settings.eval
        return evaluate(model, tokenizer, test, executor, *how, seed=settings.seed)

    recorder = Recorder(records, settings, evaluation, out / "checkpoints", advance)
    parts = {
        "model": load_model(settings.model),
        "processing_class": tokenizer,
        "train_dataset": Rows.from_list(
            training_rows(train, settings.data, _rows(settings), settings.seed)
        ),
        "reward_funcs": _rewards(settings.reward, executor),
        "peft_config": adapter_config(settings.model),
        "callbacks": [recorder],
    }
    trainer = build_trainer(_with_reward_weights(settings), out, parts)
    if settings.method in OURS[1:]:
        config = trainer.sdpo_config
        reached = config.success_reward_threshold
        trainer.observers.append(TeacherWatch(trainer, records, settings.records, reached))
    trainer.remove_callback(PrinterCallback)
    # The recorder writes what the audit logs, so it comes after it.
    trainer.remove_callback(recorder)
    trainer.add_callback(recorder)
    return trainer, recorder


def _rows(settings: Settings) -> int:
    """Problems that the run will meet: one for each group of each generation."""
    train = settings.train
    steps = train.get("steps_per_generation") or train.get("gradient_accumulation_steps", 1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = train["per_device_train_batch_size"] * train.get("gradient_accumulation_steps", 1)
    groups = -(-rows * processes // train["num_generations"])
    whole = -(-train["per_device_train_batch_size"] * steps * processes // train["num_generations"])
    return train["max_steps"] * groups + whole


def _rewards(reward: RewardSettings, executor: Executor) -> list[Any]:
    from sdpo.benchmark.scoring.reward import FormatReward, MBPPReward

    tests = MBPPReward(all_or_nothing=reward.all_or_nothing, executor=executor)
    return [tests, FormatReward()] if reward.format_weight else [tests]


def _with_reward_weights(settings: Settings) -> Settings:
    weight = settings.reward.format_weight
    if not weight:
        return settings
    return replace(settings, train={**settings.train, "reward_weights": [1.0, weight]})


def _train(trainer: Any, recorder: Any, out: Path, settings: Settings) -> None:
    """Train from the latest complete checkpoint, or from the start."""
    if trainer.is_world_process_zero():
        recorder.records.truncate((latest(out / "checkpoints") or (None, 0))[1])
    trainer.accelerator.wait_for_everyone()
    folder, _ = latest(out / "checkpoints") or (None, 0)
    trainer.train(resume_from_checkpoint=None if folder is None else str(folder))


def _finish(trainer: Any, recorder: Any, out: Path, settings: Settings) -> dict[str, Any]:
    """Write the final weights and the summary, and drop the checkpoints."""
    if not trainer.is_world_process_zero():
        return {}
    recorder.measure(trainer.state.max_steps)
    part = out / "model.part"
    trainer.save_model(str(part))
    shutil.rmtree(out / "model", ignore_errors=True)
    part.rename(out / "model")
    records = recorder.records
    evals, cost = records.read("evals"), records.read("cost")
    keys = ("pass_at_1", "low", "high", "problems", "samples")
    summary = {
        "method": settings.method,
        "seed": settings.seed,
        "steps": trainer.state.global_step,
        "first": {key: evals[0][key] for key in keys},
        "last": {key: evals[-1][key] for key in keys},
        "training_seconds": sum(row["seconds"] for row in cost),
        "weights_sha256": weights_digest(out / "model"),
    }
    write_json(out / "summary.json", summary)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return summary


def weights_digest(folder: Path) -> str:
    """Hash over all weight files of a model folder."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks on tokens and flags that the benchmark sets on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
    logging.set_verbosity(level)
