"""Trainers derived from transformers' `Trainer`: build one on a scripted world, train, record."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdpo.parity.cases.callables import location_of
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording.adapter_base import (
    HFTrainer,
    Settings,
    TrainerHooks,
    TrainerParts,
)
from sdpo.parity.trainers.recording.fingerprints import (
    fingerprints_of_parts,
    fingerprints_of_script,
)
from sdpo.parity.trainers.recording.hooks import Watch, installed_versions
from sdpo.parity.trainers.recording.installed import as_candidate_errors, check_installed
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.recording.recorder import Recorder
from sdpo.parity.trainers.recording.scripted_world import Script, ScriptedReward
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import handed_tokenizer, tiny_model
from sdpo.parity.trainers.scenarios.training_record import TrainerRun
from sdpo.settings.config import SDPOConfig

SEED = 3
PATIENCE = 240
"""Seconds that a process waits for the others."""


class HFTrainerAdapter(TrainerHooks):
    """Base class of adapters of trainers derived from transformers' `Trainer`.

    The trainer must sample with `model.generate`; `compute_loss(model, inputs, …)` must do the
    forward pass and the loss of one micro-batch, and `inputs` hold `completion_ids` and
    `completion_mask`, as in TRL. For others override `run`.
    """

    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario with the real trainer class and record what it does.

        Raises:
            NotCoveredError: the trainer cannot express the scenario.
            CandidateError: a package is missing or too new, the trainer raised, or a hook did not
                fire.
        """
        check_installed(self)
        check_schedule(scenario)
        rank = rank_in(scenario)
        with quiet(), Watch(self.package) as watch:
            parts, script = make_parts(self, scenario, folder, rank)
            handed = fingerprints_of_parts(parts)
            trainer, settings = _build(self, parts)
            _locate(self, trainer)
            recorder = Recorder(self, trainer, script, watch)
            recorder.nudge.weights()
            recorder.attach()
            self.observe(trainer, recorder)
            _follow_callbacks(trainer, recorder)
            _train(self, trainer, recorder)
            recorder.close_update()
            watch.check()
        run = recorder.run
        check_complete(run, scenario)
        run.settings = dict(settings)
        run.given |= handed | fingerprints_of_script(script) | recorder.nudge.fingerprint
        run.notes.append(f"installed: {installed_versions(self.package)}")
        return run


class TrainingFailedError(CandidateError):
    """The trainer itself failed in a training that it should be able to do.

    `reached` is the stage before whose end it failed, `run` what was recorded so far.
    """

    def __init__(self, reached: str, message: str, run: TrainerRun | None = None) -> None:
        super().__init__("config", message)
        self.reached, self.run = reached, run


def _build(adapter: TrainerHooks, parts: TrainerParts) -> tuple[HFTrainer, Mapping[str, object]]:
    """Build the trainer, and read its effective settings.

    Raises:
        TrainingFailedError: the trainer raised.
        NotCoveredError: it has no setting for what the scenario needs.
    """
    try:
        with as_candidate_errors(adapter, "built"):
            return adapter.build(parts)
    except CandidateError as error:
        raise TrainingFailedError("accumulate", str(error)) from error


def _train(adapter: TrainerHooks, trainer: HFTrainer, recorder: Recorder) -> None:
    """Train.

    Raises:
        TrainingFailedError: the trainer raised.
        CandidateError: the script or a hook complained.
    """
    try:
        with as_candidate_errors(adapter, "trained"):
            trainer.train()
    except CandidateError as error:
        if not isinstance(error.__cause__, Exception):
            raise
        updates = recorder.run.updates
        learns = bool(updates) and bool(updates[-1].steps)
        reached = "accumulate" if learns else "teacher_prompt"
        raise TrainingFailedError(reached, str(error), recorder.run) from error


def rank_in(scenario: Scenario) -> int:
    """Find the number of this process among those of a scenario.

    Raises:
        NotCoveredError: the scenario has several, and this process was not started as one of them.
    """
    if scenario.processes == 1:
        return 0
    if int(os.environ.get("WORLD_SIZE", 0)) != scenario.processes:
        raise NotCoveredError(f"this is no process of {scenario.processes}")
    return int(os.environ.get("RANK", 0))


def _locate(adapter: TrainerHooks, trainer: HFTrainer) -> None:
    """Note where the trainer and its stages are defined."""
    adapter.location = location_of(type(trainer))
    locations = {stage: location_of(source) for stage, source in adapter.sources(trainer).items()}
    adapter.locations = {
        stage: location for stage, location in locations.items() if location is not None
    }


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


def make_parts(
    adapter: TrainerHooks, scenario: Scenario, folder: Path, rank: int = 0
) -> tuple[TrainerParts, Script]:
    """Make everything that a trainer is built from, and the script behind it."""
    model, tokenizer = tiny_model(scenario, folder), handed_tokenizer(scenario)
    script = Script(scenario, tokenizer.pad_token_id, rank)
    parameters = [p for p in model.parameters() if p.requires_grad]
    arguments = dict(scenario.optimizer)
    optimizer = getattr(torch.optim, arguments.pop("name"))(parameters, **arguments)
    parts = TrainerParts(
        scenario,
        SDPOConfig(**scenario.self_distillation),
        model,
        tokenizer,
        script.dataset(*adapter.feedback_columns),
        [ScriptedReward(script) for _ in scenario.reward_weights or (1.0,)],
        optimizer,
        _training_arguments(scenario, script, folder),
        folder,
    )
    return parts, script


def _training_arguments(scenario: Scenario, script: Script, folder: Path) -> Settings:
    """Make settings that all of TRL's online trainers take, for one run on a CPU without files."""
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


def _follow_callbacks(trainer: HFTrainer, recorder: Recorder) -> None:
    """Tell the recorder of the end of each step, after everybody else, and print nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class Follow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.end_step()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow())


def check_complete(run: TrainerRun, scenario: Scenario) -> None:
    """Check that every generation was learnt from as often as the scenario says.

    Raises:
        CandidateError: fewer or more micro-batches or steps.
    """
    passes = scenario.steps_per_generation * scenario.num_iterations
    expected = [[scenario.accumulation] * (passes // scenario.accumulation)]
    counts = [[len(step.micro_batches) for step in update.steps] for update in run.updates]
    if counts != expected * len(scenario.generations):
        raise CandidateError(
            "config",
            f"micro-batches of each optimizer step of each update: {counts}; expected "
            f"{expected * len(scenario.generations)}",
        )
