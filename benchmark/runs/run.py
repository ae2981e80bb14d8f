"""Makes one benchmark run, from settings to a summary; started again it continues or does nothing.

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
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sdpo.benchmark.problems.dataset import Dataset, Problem
from sdpo.benchmark.problems.prompts import load_data, training_rows
from sdpo.benchmark.runs.checkpoints import latest
from sdpo.benchmark.runs.environment import describe
from sdpo.benchmark.runs.records import (
    Metrics,
    Records,
    RunFacts,
    RunSummary,
    locked,
    read_json,
    write_json,
)
from sdpo.benchmark.runs.settings import (
    RewardSettings,
    Settings,
    SettingsError,
    differences,
    digest,
)
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.pass_at_1 import PassAt1, Scored, Summary, evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from sdpo.benchmark.runs.methods import RewardFunction
    from sdpo.benchmark.runs.run_recorder import Recorder

Advance = Callable[[Metrics], None]
_FREE_MIB = 512.0
"""What a run needs for its checkpoints and records."""


def _claim(out: Path, settings: Settings) -> RunSummary | None:
    """Reserve a folder for this run; returns the summary if it is finished.

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
    if free < _FREE_MIB:
        raise SettingsError(f"only {free:.0f} MiB are free at {out}; a run needs {_FREE_MIB:.0f}")
    return read_json(out / "summary.json")


def run(settings: Settings, out: Path, advance: Advance | None = None) -> RunSummary | None:
    """Train and evaluate, or continue a run that was cut off.

    Args:
        settings: from `sdpo.benchmark.runs.settings.load`.
        out: folder of the run.
        advance: told the log row of each step.

    Returns:
        The summary; in all but the first of several processes, None.

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
        return _claim(out, settings) or _work(settings, out, data, advance)


def _work(settings: Settings, out: Path, data: Dataset, advance: Advance) -> RunSummary | None:
    from sdpo.benchmark.runs.models import load_tokenizer
    from sdpo.settings.determinism import deterministic

    tokenizer = load_tokenizer(settings.model.name)
    train = data.only(settings.data.train_split).problems
    test = data.only(settings.data.eval_split).problems
    with (
        _quiet(),
        Executor(settings.reward.workers, timeout=settings.reward.timeout) as executor,
        deterministic(settings.seed, settings.threads) as determinism,
    ):
        trainer, recorder = _trainer(settings, out, tokenizer, train, test, executor, advance)
        if trainer.is_world_process_zero() and not (out / "run.json").is_file():
            facts = RunFacts(
                settings=msgspec.to_builtins(settings),
                digest=digest(settings),
                data=data.stamp,
                isolation=list(executor.isolation),
                determinism=determinism,
                environment=describe(),
            )
            write_json(out / "run.json", facts)
        _train(trainer, recorder, out)
        return _finish(trainer, recorder, out, settings)


def _trainer(
    settings: Settings,
    out: Path,
    tokenizer: "PreTrainedTokenizerBase",
    train: tuple[Problem, ...],
    test: tuple[Problem, ...],
    executor: Executor,
    advance: Advance,
) -> "tuple[Trainer, Recorder]":
    """Build the trainer with everything that observes it, and the recorder.

    Args:
        settings: of the run.
        out: folder of the run.
        tokenizer: of the model.
        train: problems to learn from.
        test: problems to evaluate on.
        executor: runs the tests of rewards and evaluations.
        advance: told the log row of each step.
    """
    from datasets import Dataset as Rows
    from transformers import PrinterCallback

    from sdpo.benchmark.runs.methods import TrainerParts, build_trainer
    from sdpo.benchmark.runs.models import adapter_config, load_model
    from sdpo.benchmark.runs.run_recorder import Recorder, TeacherLead
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    records = Records(out)

    def evaluation() -> tuple[Summary, list[Scored]]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        sections = settings.data, settings.eval
        return evaluate(model, tokenizer, test, executor, *sections, seed=settings.seed)

    recorder = Recorder(records, settings, evaluation, out / "checkpoints", advance)
    rows = training_rows(train, settings.data, _rows_needed(settings), settings.seed)
    parts = TrainerParts(
        model=load_model(settings.model),
        processing_class=tokenizer,
        train_dataset=Rows.from_list([dict(row) for row in rows]),
        reward_funcs=_rewards(settings.reward, executor),
        peft_config=adapter_config(settings.model),
        callbacks=[recorder],
    )
    trainer = build_trainer(_with_reward_weights(settings), out, parts)
    if isinstance(trainer, SDPOTrainer) and trainer.sdpo_config.enabled:
        lead = TeacherLead(trainer, tokenizer, records.samples, settings.records)
        trainer.observers.append(lead)
    trainer.remove_callback(PrinterCallback)
    # The recorder writes what the audit logs, so it comes after it.
    trainer.remove_callback(recorder)
    trainer.add_callback(recorder)
    return trainer, recorder


def _rows_needed(settings: Settings) -> int:
    """Count the problems that the run will meet: one for each group of each generation."""
    train = settings.train
    accumulation = train.get("gradient_accumulation_steps", 1)
    per_generation = train.get("steps_per_generation") or accumulation
    rows = train["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", "1"))
    per_step = -(-rows * accumulation // train["num_generations"])
    one_generation_ahead = -(-rows * per_generation // train["num_generations"])
    return train["max_steps"] * per_step + one_generation_ahead


def _rewards(reward: RewardSettings, executor: Executor) -> "list[RewardFunction]":
    from sdpo.benchmark.scoring.reward import FormatReward, MBPPReward

    tests = MBPPReward(all_or_nothing=reward.all_or_nothing, executor=executor)
    return [tests, FormatReward()] if reward.format_weight else [tests]


def _with_reward_weights(settings: Settings) -> Settings:
    weight = settings.reward.format_weight
    if not weight:
        return settings
    return replace(settings, train={**settings.train, "reward_weights": [1.0, weight]})


def _train(trainer: "Trainer", recorder: "Recorder", out: Path) -> None:
    """Train from the latest complete checkpoint, or from the start."""
    if trainer.is_world_process_zero():
        recorder.records.truncate(latest(out / "checkpoints")[1])
    trainer.accelerator.wait_for_everyone()
    folder, _ = latest(out / "checkpoints")
    trainer.train(resume_from_checkpoint=None if folder is None else str(folder))


def _finish(
    trainer: "Trainer", recorder: "Recorder", out: Path, settings: Settings
) -> RunSummary | None:
    """Write the final weights and the summary, and drop the checkpoints."""
    if not trainer.is_world_process_zero():
        return None
    recorder.measure(trainer.state.max_steps)
    unfinished = out / "model.part"
    trainer.save_model(str(unfinished))
    shutil.rmtree(out / "model", ignore_errors=True)
    unfinished.rename(out / "model")
    evaluations = recorder.records.evals.read()
    summary = RunSummary(
        method=settings.method,
        seed=settings.seed,
        steps=trainer.state.global_step,
        first=_pass_at_1(evaluations[0]),
        last=_pass_at_1(evaluations[-1]),
        training_seconds=sum(row["seconds"] for row in recorder.records.cost.read()),
        weights_sha256=_weights_digest(out / "model"),
    )
    write_json(out / "summary.json", summary)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return summary


def _pass_at_1(row: PassAt1) -> PassAt1:
    """Leave out of an evaluation what only its own row holds."""
    return PassAt1(
        pass_at_1=row["pass_at_1"],
        low=row["low"],
        high=row["high"],
        problems=row["problems"],
        samples=row["samples"],
    )


def _weights_digest(folder: Path) -> str:
    """Hash all weight files of a model folder."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(path.read_bytes())
    return weights.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' remarks on tokens and flags that the benchmark sets on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
    logging.set_verbosity(level)
