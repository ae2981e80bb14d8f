"""`ParityCallback`: every update of a real training, repeated by the reference and compared.

    SDPOTrainer(…, sdpo_config=SDPOConfig(audit_every=1))

A row per checked update goes to `parity.csv` and to TRL's log: distances of loss, gradient,
weights and teacher, what each may be, and the stage that moved first. With `audit_lockstep` a
second replica is trained by the reference alone from the same rollouts; its drift goes to
`drift.csv` and `drift.png`. `audit_coverage.check_audited` refuses what is not covered.

The trainer itself is only read: an audited run is bit-identical to one that is not.
"""

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from sdpo.lockstep import trainer_snapshot
from sdpo.lockstep.audit_coverage import check_audited, has_dropout
from sdpo.lockstep.drift_csv import RowFile, check_row, logged, plot_drift, unchecked_row
from sdpo.lockstep.reference_inputs import TEACHER_KEYS, update_rows
from sdpo.lockstep.reference_update import RepeatedUpdate, random_state
from sdpo.lockstep.repeated_updates import LockstepReplica, RecordedUpdate, repeat_update
from sdpo.lockstep.replica import Replica, State, Weights, refreshed, weights_of
from sdpo.lockstep.rollout_source import Source
from sdpo.lockstep.trainer_snapshot import StepInputs
from sdpo.lockstep.update_distances import (
    TEACHER_MOVED,
    Delta,
    budgets,
    deltas,
    farthest,
    first_moved,
    noise,
    scaled_loss,
    sizeless,
)
from sdpo.parity.cases.stage_trace import NO_STAGE, SCALED_LOSS, Moment, StageTrace
from sdpo.runtime.json_values import Json
from sdpo.runtime.malloc_trim import keep_freed_memory, return_freed_memory
from sdpo.settings.config import ConfigError

if TYPE_CHECKING:
    from sdpo.prompt.teacher_batch import PromptTrace
    from sdpo.trainer.sdpo_trainer import SDPOTrainer
    from sdpo.update.actor_update import Batch
    from sdpo.update.rollouts import Rollouts, TRLBatch

MEASURED_AT = (1, 2, 16, 128, 1024, 8192, 65536)
"""The checks at which budgets are measured anew, beside those that find a difference."""


class ParityWarning(UserWarning):
    """An update that the reference would have made differently."""


class _Counters(msgspec.Struct):
    """What a resumed run needs: updates so far, noise by kind, the present update's factors."""

    updates: int = 0
    noise: dict[str, float] = msgspec.field(default_factory=dict)
    rates: list[list[float]] = msgspec.field(default_factory=list)
    weights: list[float] = msgspec.field(default_factory=list)


class ParityCallback(TrainerCallback):
    """Compares updates of a trainer with the reference while it trains; an `UpdateObserver`.

    Args:
        trainer: an `SDPOTrainer` with a teacher.
        every: check every n-th update; 0 for none (with `lockstep` alone).
        lockstep: train a replica by the reference alone.
        folder: where rows and plot go.

    Raises:
        ConfigError: the run has something that the comparison does not cover.
    """

    def __init__(self, trainer: "SDPOTrainer", *, every: int, lockstep: bool, folder: Path):
        check_audited(trainer)
        self.trainer, self.every, self.lockstep, self.folder = trainer, every, lockstep, folder
        self.main = trainer.accelerator.is_main_process
        folder.mkdir(parents=True, exist_ok=True)
        self.checks = RowFile(folder / "parity.csv", writes=self.main)
        self.drift = RowFile(folder / "drift.csv", writes=self.main)
        self.updates, self.seconds = 0, 0.0
        self.clock = time.perf_counter
        self.noise: dict[str, float] = {}
        self.draws = has_dropout(trainer.model)
        self.state: State | None = None
        self.trace: StageTrace | None = None
        self.scratch: Replica | None = None
        self.follower: LockstepReplica | None = None
        self.anchor = trainer_snapshot.anchor_of(trainer)
        self.source = Source(trainer)
        self.recorded = RecordedUpdate(self.anchor)
        self.fingerprint = torch.zeros(0)
        self.memory: dict[int, Weights] = {}

    @property
    def due(self) -> bool:
        """Whether the present update is to be checked."""
        return bool(self.every) and self.updates % self.every == 0

    # --- what the trainer tells -------------------------------------------------------------

    def on_rollouts(self, rollouts: "Rollouts", trace: "PromptTrace", batch: "TRLBatch") -> None:
        """Remember the state that a new update begins with."""
        if not self.trainer.model.training:
            return
        began = self.clock()
        self.recorded, self.trace = RecordedUpdate(self.anchor), None
        if self.lockstep and self.follower is None:
            origin = trainer_snapshot.state_of(self.trainer)
            self.follower = LockstepReplica(self.trainer, origin)
        if self.due:
            self.state = trainer_snapshot.state_of(self.trainer, self.state)
            self.trace = StageTrace()
            self.trace.put(Moment(), trainer_snapshot.comparable(trace))
        if self.due or self.lockstep:
            self._take(batch)
            self.fingerprint = trainer_snapshot.teacher_fingerprint(self.trainer)
        self.seconds += self.clock() - began

    def _take(self, batch: "TRLBatch") -> None:
        """Take the rows of the update as they arose, with the reference's teacher inputs."""
        taken, update = self.source.take(), self.recorded
        update.prompt_values, tensors = trainer_snapshot.expected_prompts(self.trainer, taken)
        if TEACHER_KEYS[0] not in tensors:  # the reference cannot render them
            tensors |= {name: batch[name] for name in TEACHER_KEYS}
        update.batch, update.sampled = taken.tensors | tensors, taken.sampled
        update.weights = trainer_snapshot.step_weights(self.trainer, update.batch)

    def on_micro_batch_begin(self, inputs: "TRLBatch") -> None:
        """Keep a micro-batch's inputs, and the generator's state if it draws."""
        if self.trace is None and not self.lockstep:
            return
        steps = self.recorded.steps
        if len(steps) == len(self.recorded.rates):
            steps.append(StepInputs())
        step = steps[-1]
        step.inputs.append(inputs)
        step.random.append((random_state() if self.draws else None, None))

    def on_micro_batch_end(
        self, batch: "Batch", values: dict[str, Tensor], scale: Tensor | float
    ) -> None:
        """Keep the stages' values of a micro-batch."""
        if self.trace is None and not self.lockstep:
            return
        began, step = self.clock(), self.recorded.steps[-1]
        if self.draws:
            step.random[-1] = (step.random[-1][0], random_state())
        if self.trace is not None:
            moment = self.recorded.moment
            self.trace.put(moment, {name: value.detach() for name, value in values.items()})
            fingerprint = trainer_snapshot.teacher_fingerprint(self.trainer)
            others = {
                SCALED_LOSS: values["aggregate"].item() * float(scale),
                TEACHER_MOVED: not torch.equal(fingerprint, self.fingerprint),
            }
            self.trace.put(moment, others, NO_STAGE)
        self.seconds += self.clock() - began

    def on_gradients(self, model: nn.Module) -> None:
        """Keep the gradient of an optimizer step, and the learning rates it is made at."""
        if not self.due and not self.lockstep:
            return
        began = self.clock()
        groups = trainer_snapshot.optimizer_of(self.trainer).param_groups
        self.recorded.rates.append([group["lr"] for group in groups])
        if self.trace is not None:
            named = model.named_parameters()
            gradient = {n: p.grad.detach() for n, p in named if p.grad is not None}
            number = len(self.recorded.rates) - 1
            self.memory[number] = refreshed(self.memory.get(number), gradient)
            self.trace.put(self.recorded.moment, self.memory[number], "accumulate")
        self.seconds += self.clock() - began

    # --- what the training loop tells -------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on with the files of an interrupted run, or begin new ones."""
        keep_freed_memory()
        for file in (self.checks, self.drift):
            file.resume(state.global_step)
        inside = self.trainer._buffered_inputs
        if state.global_step and inside is not None and self.lockstep:
            rows = trainer_snapshot.joined_rows(inside)
            self.recorded.batch = update_rows(rows)
            self.recorded.sampled = rows.get("sampling_per_token_logps")

    def on_step_end(self, args, state, control, **kwargs):
        """After an optimizer step, and after the teacher: compare if the update is done."""
        began = self.clock()
        done = self.trainer._step % trainer_snapshot.micro_batches_per_update(self.trainer) == 0
        if self.trace is not None:
            weights = weights_of(self.trainer.model, copied=not done)
            self.trace.put(self.recorded.moment, weights, "optimizer")
        if done:
            if self.trace is not None:
                teacher = trainer_snapshot.teacher_weights(self.trainer)
                self.trace.put(self.recorded.moment, teacher, "teacher_update")
                self._check(self.trace, state.global_step, began)
            elif self.due:
                self._not_checked(state.global_step)
            if self.follower is not None:
                drift = self.follower.follow(self.recorded)
                self.drift.append({"step": state.global_step, **drift})
            self.trace, self.recorded.steps = None, []
            self.updates += 1
        self.seconds += self.clock() - began

    def on_train_end(self, args, state, control, **kwargs):
        """Plot the drift."""
        return_freed_memory()
        if self.drift.rows and self.main:
            plot_drift(self.drift.rows, self.checks.rows, self.folder / "drift.png")

    # --- one update -------------------------------------------------------------------------

    def _check(self, trace: StageTrace, step: int, began: float) -> None:
        """Repeat an update by the reference and write down the distances."""
        assert self.state is not None
        self.scratch = self.scratch or trainer_snapshot.replica_of(self.trainer)
        replica = self.scratch.load(self.state)
        expected = repeat_update(self.trainer, self.recorded, replica, self.state)
        expected.trace.put(Moment(), self.recorded.prompt_values)
        used = trainer_snapshot.trained_on(self.trainer, self.recorded.steps)
        tokens = [used[name] for name in TEACHER_KEYS]
        mask = used["self_distillation_mask"]
        trace.put(Moment(), {"teacher_tokens": tokens, "distillation_mask": mask})
        distances = self._deltas(trace, expected)
        names = {delta.name for delta in distances}
        none = sizeless(expected)
        allowed = budgets(self.noise, names) | none
        first = first_moved(distances, allowed)
        done = sum(row["loss"] != "" for row in self.checks.rows)
        if first is not None or done + 1 in MEASURED_AT:
            # What rounding does changes as training goes on: measured anew now and then, and
            # before an update is called different.
            self.noise = self._noise(expected.trace)
            allowed = budgets(self.noise, names) | none
            first = first_moved(distances, allowed)
        self._write(trace, expected, distances, allowed, first, step, began)

    def _deltas(self, trace: StageTrace, expected: RepeatedUpdate) -> list[Delta]:
        """Measure all distances, each the greatest of all processes."""
        same_split = self.trainer.sdpo_config.micro_batch_semantics == "verl"
        distances = list(deltas(trace, expected, same_split=same_split))
        return farthest(gather_object([distances]))

    def _noise(self, expected: StageTrace) -> dict[str, float]:
        """Measure what the precision of the run alone moves each kind of value by."""
        assert self.state is not None
        assert self.scratch is not None
        self.scratch.optimizer.state.clear()  # makes room
        exact = trainer_snapshot.replica_of(self.trainer, exact=True).load(self.state)
        widened = repeat_update(self.trainer, self.recorded, exact, self.state, expected)
        distances = farthest(gather_object([list(deltas(expected, widened))]))
        return noise(distances, torch.finfo(torch.bfloat16).eps if self.trainer.args.bf16 else 0.0)

    def _write(
        self,
        trace: StageTrace,
        expected: RepeatedUpdate,
        distances: list[Delta],
        allowed: dict[str, float],
        first: Delta | None,
        step: int,
        began: float,
    ) -> None:
        local = [
            sum(scaled_loss(side.micro_batches(0, number)) for number in side.steps())
            for side in (trace, expected.trace)
        ]
        losses = torch.tensor(gather_object([local])).mean(0).tolist()
        cosine = min(agreement.cosine for agreement in expected.matches)
        row = check_row(step, losses, cosine, distances, allowed, first)
        row |= {"audited": self._audited(), "seconds": self.clock() - began}
        self.checks.append(row)
        metrics = self.trainer._metrics["train"]
        for name, value in logged(row).items():
            metrics[f"parity/{name}"].append(value)
        if first is not None and self.main:
            warnings.warn(
                f"step {step}: the reference would have made another update; {first.stage} moved "
                f"first ({first.name} of optimizer step {first.step}: {first.value:.3g}, allowed "
                f"{allowed[first.name]:.3g})",
                ParityWarning,
                stacklevel=2,
            )

    def _not_checked(self, step: int) -> None:
        """Write down that the beginning of an update is not known any more."""
        self.checks.append(unchecked_row(step))

    # --- checkpoints ------------------------------------------------------------------------

    def counters(self) -> dict[str, Json]:
        """Return what a resumed run needs to go on, as JSON."""
        update = self.recorded
        return msgspec.to_builtins(
            _Counters(self.updates, self.noise, update.rates, update.weights)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the lockstep replica and where it began, for a checkpoint; nothing without it."""
        return {} if self.follower is None else self.follower.tensors()

    def resume(self, counters: dict[str, Json], tensors: dict[str, Tensor]) -> None:
        """Go on as after `counters` and `tensors`; a replica that is not there is begun anew."""
        kept = msgspec.convert(counters, _Counters)
        self.updates, self.noise = kept.updates, kept.noise
        self.recorded.rates, self.recorded.weights = kept.rates, kept.weights
        lost = self.draws or self.trainer.sdpo_config.hybrid_lambda > 0
        if kept.rates and self.lockstep and lost:
            raise ConfigError(
                "the checkpoint lies inside an update, from where the lockstep replica of a run "
                "with dropout or a hybrid loss cannot go on: resume from a checkpoint between "
                "updates, or set audit_lockstep=False"
            )
        self.recorded.steps = [StepInputs() for _ in kept.rates]
        if tensors and self.lockstep:
            self.follower = LockstepReplica.from_tensors(self.trainer, tensors)

    def _audited(self) -> str:
        """Say what the gradient of a row consists of."""
        return "SDPO and TRL's GRPO" if self.trainer.sdpo_config.hybrid_lambda else "SDPO"
