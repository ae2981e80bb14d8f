"""One run of a trainer derived from transformers' `Trainer`: build, train, collect."""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sdpo.parity.cases.callables import location_of
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording import handed_over
from sdpo.parity.trainers.recording.adapter_base import Parts, TrainerAdapter, TrainerHooks
from sdpo.parity.trainers.recording.hooks import Watch, installed_versions
from sdpo.parity.trainers.recording.recorder import Recorder
from sdpo.parity.trainers.recording.scripted_world import Script, ScriptedReward
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import handed_tokenizer, tiny_model
from sdpo.parity.trainers.scenarios.training_record import TrainerRun
from sdpo.settings.config import SDPOConfig

SEED = 3
PATIENCE = 240
"""Seconds that a process waits for the others."""


def run_hf_trainer(adapter: TrainerHooks, scenario: Scenario, folder: Path) -> TrainerRun:
    """Train through a scenario and say what happened.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: a package is missing or too new, the trainer raised, or a hook did not fire.
    """
    check_installed(adapter)
    check_schedule(scenario)
    rank = rank_in(scenario)
    with quiet(), Watch(adapter.package) as watch:
        parts, script = parts_of(adapter, scenario, folder, rank)
        handed = handed_over.of_parts(parts)
        trainer, settings = build(adapter, parts)
        locate(adapter, trainer)
        recorder = Recorder(adapter, trainer, script, watch)
        recorder.nudge_weights()
        recorder.attach()
        adapter.observe(trainer, recorder)
        follow_callbacks(trainer, recorder)
        train(adapter, trainer, recorder)
        recorder.close_update()
        watch.check()
    check_complete(recorder.run, scenario)
    recorder.run.settings = dict(settings)
    recorder.run.given |= handed | handed_over.of_script(script)
    recorder.run.notes.append(f"installed: {installed_versions(adapter.package)}")
    return recorder.run


class TrainingFailedError(CandidateError):
    """The trainer itself failed in a training that it should be able to do.

    `reached` is the stage before whose end it failed, `run` what was recorded so far.
    """

    def __init__(self, reached: str, message: str, run: TrainerRun | None = None) -> None:
        super().__init__("config", message)
        self.reached, self.run = reached, run


def build(adapter: TrainerHooks, parts: Parts) -> tuple[Any, Mapping[str, Any]]:
    """The trainer and its effective settings.

    Raises:
        TrainingFailedError: the trainer raised.
        NotCoveredError: it has no setting for what the scenario needs.
    """
    try:
        with failures(adapter, "built"):
            return adapter.build(parts)
    except CandidateError as error:
        raise TrainingFailedError("accumulate", str(error)) from error


def train(adapter: TrainerHooks, trainer: Any, recorder: Recorder) -> None:
    """Train.

    Raises:
        TrainingFailedError: the trainer raised.
        CandidateError: the script or a hook complained.
    """
    try:
        with failures(adapter, "trained"):
            trainer.train()
    except CandidateError as error:
        if not isinstance(error.__cause__, Exception):
            raise
        updates = recorder.run.updates
        learns = bool(updates) and bool(updates[-1].steps)
        reached = "accumulate" if learns else "teacher_prompt"
        raise TrainingFailedError(reached, str(error), recorder.run) from error


def check_installed(adapter: TrainerAdapter) -> None:
    """Check the audited package, and what builds the tiny model and its data.

    Raises:
        CandidateError: it is not installed, or in a version that the adapter was not written for.
    """
    for name in ("transformers", "accelerate", "datasets", "peft"):
        if importlib.util.find_spec(name) is None:
            raise CandidateError(
                "config", f"an audit of trainers needs {name!r}: pip install 'sdpo[train]'"
            )
    if not adapter.package:
        return
    install = adapter.install or f"'{adapter.package}{adapter.versions}'"
    try:
        found = importlib.metadata.version(adapter.package)
    except importlib.metadata.PackageNotFoundError:
        raise CandidateError(
            "config",
            f"the package {adapter.package!r} is not installed: pip install {install}",
        ) from None
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(adapter.versions).contains(found, prereleases=True):
        raise CandidateError(
            "config",
            f"{adapter.package} {found} is installed, but its adapter was written for "
            f"{adapter.package}{adapter.versions}, so what its hooks would show is unknown: "
            f"pip install {install}",
        )


def rank_in(scenario: Scenario) -> int:
    """Number of this process among those of a scenario.

    Raises:
        NotCoveredError: the scenario has several, and this process was not started as one of them.
    """
    found = {name: int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE")}
    if scenario.processes > 1 and found["WORLD_SIZE"] != scenario.processes:
        raise NotCoveredError(f"this is no process of {scenario.processes}")
    return found["RANK"] if scenario.processes > 1 else 0


def locate(adapter: TrainerHooks, trainer: Any) -> None:
    """Note where the trainer and its stages are defined."""
    adapter.location = location_of(type(trainer))
    places = {stage: location_of(source) for stage, source in adapter.sources(trainer).items()}
    adapter.locations = {stage: place for stage, place in places.items() if place is not None}


def check_schedule(scenario: Scenario) -> None:
    """Check that every optimizer step lies in one generation, and that groups have one size.

    Raises:
        NotCoveredError: otherwise; neither TRL's settings nor the record can express it.
    """
    passes = scenario.steps_per_generation * scenario.num_iterations
    if passes % scenario.accumulation:
        raise NotCoveredError(
            f"accumulation={scenario.accumulation} does not divide steps_per_generation * "
            f"num_iterations = {passes}, so an optimizer step would span generations"
        )
    sizes = {generation.group_size for generation in scenario.generations}
    if len(sizes) > 1 or min(sizes) < 2:
        raise NotCoveredError(
            f"groups of {sorted(sizes)} rollouts: num_generations is one number, at least 2"
        )


def parts_of(
    adapter: TrainerHooks, scenario: Scenario, folder: Path, rank: int = 0
) -> tuple[Parts, Script]:
    """Everything that a trainer is built from, and the script behind it."""
    model, tokenizer = tiny_model(scenario, folder), handed_tokenizer(scenario)
    script = Script(scenario, tokenizer.pad_token_id, rank)
    parameters = [p for p in model.parameters() if p.requires_grad]
    arguments = dict(scenario.optimizer)
    optimizer = getattr(torch.optim, arguments.pop("name"))(parameters, **arguments)
    parts = Parts(
        scenario,
        SDPOConfig(**scenario.self_distillation),
        model,
        tokenizer,
        script.dataset(*adapter.feedback_columns),
        [ScriptedReward(script) for _ in scenario.reward_weights or (1.0,)],
        optimizer,
        training_arguments(scenario, script, folder),
        folder,
    )
    return parts, script


def training_arguments(scenario: Scenario, script: Script, folder: Path) -> dict[str, Any]:
    """Settings that all of TRL's online trainers take, for one run on a CPU without any files."""
    passes = scenario.steps_per_generation * scenario.num_iterations
    weights = list(scenario.reward_weights)
    return ({"reward_weights": weights} if weights else {}) | {
        "output_dir": str(folder / "output"),
        "per_device_train_batch_size": scenario.micro_batch_size,
        "gradient_accumulation_steps": scenario.accumulation,
        "steps_per_generation": scenario.steps_per_generation,
        "num_iterations": scenario.num_iterations,
        "num_generations": scenario.generations[0].group_size,
        "max_completion_length": script.max_completion_length,
        "max_steps": len(scenario.generations) * passes // scenario.accumulation,
        "temperature": scenario.temperature,
        "max_grad_norm": scenario.grad_clip,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "bf16": scenario.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": SEED,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "save_strategy": "no",
        "ddp_timeout": PATIENCE,
        "disable_tqdm": True,
    }


def follow_callbacks(trainer: Any, recorder: Recorder) -> None:
    """Tell the recorder of the end of each step, after everybody else, and print nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class Follow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.stepped()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())


def check_complete(run: TrainerRun, scenario: Scenario) -> None:
    """Check that every generation was learnt from as often as the scenario says.

    Raises:
        CandidateError: fewer or more micro-batches or steps.
    """
    passes = scenario.steps_per_generation * scenario.num_iterations
    expected = [[scenario.accumulation] * (passes // scenario.accumulation)]
    found = [[len(step.micro_batches) for step in update.steps] for update in run.updates]
    if found != expected * len(scenario.generations):
        raise CandidateError(
            "config",
            f"micro-batches of each optimizer step of each update: {found}; expected "
            f"{expected * len(scenario.generations)}",
        )


@contextlib.contextmanager
def failures(adapter: TrainerAdapter, what: str) -> Iterator[None]:
    """Whatever the trainer raises, `SystemExit` included, is its failure; Ctrl-C is the user's.

    Raises:
        CandidateError: the trainer raised.
        NotCoveredError: passed on.
    """
    try:
        yield
    except (NotCoveredError, CandidateError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        raise CandidateError(
            "config",
            f"{adapter.name} needs the package {error.name!r}, which is not installed: "
            f"pip install {adapter.install or error.name}",
        ) from error
    except BaseException as error:
        text = " ".join(str(error).split())
        raise CandidateError(
            "config",
            f"{adapter.name} could not be {what}: {type(error).__name__}: {text or 'no message'}; "
            f"versions: {installed_versions(adapter.package)}",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep standard output for the report: what a trainer prints goes to standard error."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), unlogged(), unsent():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Errors alone from transformers' log, and no bars; nothing to do where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def unsent() -> Iterator[None]:
    """Nothing is told to anybody; nothing to do where huggingface_hub is not installed.

    TRL's trainers send their use from a thread of its own, which looks up names and opens TLS
    connections while training changes the environment; glibc allows no such reading beside writing.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
