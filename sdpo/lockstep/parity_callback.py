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
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from sdpo.lockstep import trainer_snapshot
from sdpo.lockstep.audit_coverage import check_audited, has_dropout
from sdpo.lockstep.drift_csv import RowFile, check_row, logged, plot_drift, unchecked_row
from sdpo.lockstep.malloc_trim import keep_freed_memory, return_freed_memory
from sdpo.lockstep.reference_update import (
    RepeatedUpdate,
    Surroundings,
    random_state,
    reference_update,
)
from sdpo.lockstep.replica import Replica, State, Weights, refreshed, weights_of
from sdpo.lockstep.rollout_source import TEACHER_KEYS, Source, update_rows
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
from sdpo.parity.cases.tensor_distances import distance
from sdpo.settings.config import ConfigError

if TYPE_CHECKING:
    from sdpo.prompt.teacher_batch import PromptTrace
    from sdpo.update.actor_update import Batch
    from sdpo.update.rollouts import Rollouts

SAMPLES = 64
MEASURED_AT = (1, 2, 16, 128, 1024, 8192, 65536)
"""The checks at which budgets are measured anew, beside those that find a difference."""


class ParityWarning(UserWarning):
    """An update that the reference would have made differently."""


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

    def __init__(self, trainer: Any, *, every: int, lockstep: bool, folder: Path):
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
        self.follower: Replica | None = None
        self.origin: State | None = None
        self.anchor = trainer_snapshot.anchor_of(trainer)
        self.source = Source(trainer)
        self.batch: dict[str, Tensor] = {}
        self.sampled: Tensor | None = None
        self.weights: list[float] = []
        self.expected_prompts: dict[str, Any] = {}
        self.fingerprint = torch.zeros(0)
        self.steps: list[StepInputs] = []
        self.memory: dict[int, Weights] = {}
        self.rates: list[list[float]] = []

    @property
    def due(self) -> bool:
        """Whether the present update is to be checked."""
        return bool(self.every) and self.updates % self.every == 0

    # --- what the trainer tells -------------------------------------------------------------

    def on_rollouts(
        self, rollouts: "Rollouts", trace: "PromptTrace", batch: dict[str, Any]
    ) -> None:
        """Remember the state that a new update begins with."""
        if not self.trainer.model.training:
            return
        began = self.clock()
        self.steps, self.rates, self.trace = [], [], None
        if self.lockstep and self.follower is None:
            self.origin = trainer_snapshot.state_of(self.trainer)
            self.follower = trainer_snapshot.replica_of(self.trainer).load(self.origin)
        if self.due:
            self.state = trainer_snapshot.state_of(self.trainer, self.state)
            self.trace = StageTrace()
            self.trace.put(Moment(), trainer_snapshot.comparable(trace))
        if self.due or self.lockstep:
            self._take(batch)
            self.fingerprint = self._fingerprint()
        self.seconds += self.clock() - began

    def _take(self, batch: dict[str, Any]) -> None:
        """The rows of the update as they arose, with the reference's teacher inputs."""
        taken = self.source.take()
        self.expected_prompts, tensors = trainer_snapshot.expected_prompts(self.trainer, taken)
        if TEACHER_KEYS[0] not in tensors:  # the reference cannot render them
            tensors |= {name: batch[name] for name in TEACHER_KEYS}
        self.batch, self.sampled = taken.tensors | tensors, taken.sampled
        self.weights = trainer_snapshot.step_weights(self.trainer, self.batch)

    def on_micro_batch_begin(self, inputs: dict[str, Any]) -> None:
        """Keep a micro-batch's inputs, and the generator's state if it draws."""
        if self.trace is None and not self.lockstep:
            return
        if len(self.steps) == len(self.rates):
            self.steps.append(StepInputs())
        step = self.steps[-1]
        step.inputs.append(inputs)
        step.random.append((random_state() if self.draws else None, None))

    def on_micro_batch_end(
        self, batch: "Batch", values: dict[str, Tensor], scale: Tensor | float
    ) -> None:
        """Keep the stages' values of a micro-batch."""
        if self.trace is None and not self.lockstep:
            return
        began, step = self.clock(), self.steps[-1]
        if self.draws:
            step.random[-1] = (step.random[-1][0], random_state())
        if self.trace is not None:
            self.trace.put(self._at(), {name: value.detach() for name, value in values.items()})
            others = {
                SCALED_LOSS: values["aggregate"].item() * float(scale),
                TEACHER_MOVED: not torch.equal(self._fingerprint(), self.fingerprint),
            }
            self.trace.put(self._at(), others, NO_STAGE)
        self.seconds += self.clock() - began

    def on_gradients(self, model: nn.Module) -> None:
        """Keep the gradient of an optimizer step, and the learning rates it is made at."""
        if not self.due and not self.lockstep:
            return
        began = self.clock()
        self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
        if self.trace is not None:
            named = model.named_parameters()
            gradient = {n: p.grad.detach() for n, p in named if p.grad is not None}
            number = len(self.rates) - 1
            self.memory[number] = refreshed(self.memory.get(number), gradient)
            self.trace.put(self._at(), self.memory[number], "accumulate")
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
            self.batch, self.sampled = update_rows(rows), rows.get("sampling_per_token_logps")

    def on_step_end(self, args, state, control, **kwargs):
        """After an optimizer step, and after the teacher: compare if the update is done."""
        began = self.clock()
        done = self.trainer._step % trainer_snapshot.micro_batches_per_update(self.trainer) == 0
        if self.trace is not None:
            weights = weights_of(self.trainer.model, copied=not done)
            self.trace.put(self._at(), weights, "optimizer")
        if done:
            if self.trace is not None:
                teacher = trainer_snapshot.teacher_weights(self.trainer)
                self.trace.put(self._at(), teacher, "teacher_update")
                self._check(self.trace, state.global_step, began)
            elif self.due:
                self._not_checked(state.global_step)
            if self.follower is not None:
                self._follow(state.global_step)
            self.trace, self.steps = None, []
            self.updates += 1
        self.seconds += self.clock() - began

    def on_train_end(self, args, state, control, **kwargs):
        """Plot the drift."""
        return_freed_memory()
        if self.drift.rows and self.main:
            plot_drift(self.drift.rows, self.checks.rows, self.folder / "drift.png")

    # --- one update -------------------------------------------------------------------------

    def _at(self) -> Moment:
        """The micro-batch that is processed, or was processed last."""
        return Moment(0, len(self.steps) - 1, len(self.steps[-1].inputs) - 1)

    def _check(self, trace: StageTrace, step: int, began: float) -> None:
        """Repeat an update by the reference and write down the distances."""
        assert self.state is not None
        self.scratch = self.scratch or trainer_snapshot.replica_of(self.trainer)
        expected = self._reference(self.scratch.load(self.state))
        expected.trace.put(Moment(), self.expected_prompts)
        used = trainer_snapshot.trained_on(self.trainer, self.steps)
        tokens = [used[name] for name in TEACHER_KEYS]
        mask = used["self_distillation_mask"]
        trace.put(Moment(), {"teacher_tokens": tokens, "distillation_mask": mask})
        found = self._deltas(trace, expected)
        names = {delta.name for delta in found}
        none = sizeless(expected)
        allowed = budgets(self.noise, names) | none
        first = first_moved(found, allowed)
        done = sum(row["loss"] != "" for row in self.checks.rows)
        if first is not None or done + 1 in MEASURED_AT:
            # What rounding does changes as training goes on: measured anew now and then, and
            # before an update is called different.
            self.noise = self._noise(expected.trace)
            allowed = budgets(self.noise, names) | none
            first = first_moved(found, allowed)
        self._write(trace, expected, found, allowed, first, step, began)

    def _reference(self, replica: Replica, against: StageTrace | None = None) -> RepeatedUpdate:
        """One update of a replica by the reference."""
        start, share = self.state or self.origin, 1 - self.trainer.sdpo_config.hybrid_lambda
        assert start is not None
        random = [before for step in self.steps for before, _ in step.random]
        around = Surroundings(
            rates=self.rates,
            share=share,
            weights=self.weights,
            random=[state for state in random if state is not None],
            before_step=self._before_step,
        )
        computed = trainer_snapshot.before_update(
            self.trainer, replica, self.batch, self.sampled, self.anchor
        )
        return reference_update(
            replica,
            self.batch | computed,
            trainer_snapshot.reference_config(self.trainer),
            **trainer_snapshot.sizes(self.trainer),
            surroundings=around,
            start=start,
            against=against,
        )

    def _before_step(self, model: nn.Module, number: int) -> None:
        """Add what is not SDPO, then average over processes."""
        if self.trainer.sdpo_config.hybrid_lambda:
            trainer_snapshot.add_grpo(self.trainer, model, self.steps[number])
        if self.trainer.accelerator.num_processes > 1:
            trainer_snapshot.average_gradients(self.trainer, model)

    def _deltas(self, trace: StageTrace, expected: RepeatedUpdate) -> list[Delta]:
        """All distances, each the greatest of all processes."""
        same_split = self.trainer.sdpo_config.micro_batch_semantics == "verl"
        found = list(deltas(trace, expected, same_split=same_split))
        return farthest(gather_object([found]))

    def _noise(self, expected: StageTrace) -> dict[str, float]:
        """What the precision of the run alone moves each kind of value by."""
        assert self.state is not None
        assert self.scratch is not None
        self.scratch.optimizer.state.clear()  # makes room
        exact = trainer_snapshot.replica_of(self.trainer, exact=True).load(self.state)
        found = farthest(gather_object([list(deltas(expected, self._reference(exact, expected)))]))
        return noise(found, torch.finfo(torch.bfloat16).eps if self.trainer.args.bf16 else 0.0)

    def _follow(self, step: int) -> None:
        """Let the lockstep replica make the same update, and write down how far it is away."""
        assert self.follower is not None
        assert self.origin is not None
        self._reference(self.follower)
        origin, teacher = self.origin, trainer_snapshot.teacher_weights(self.trainer)
        mine, theirs = (
            weights_of(m, copied=False) for m in (self.trainer.model, self.follower.student)
        )
        theirs_teacher = self.follower.teacher_weights(teacher)
        row = {
            "step": step,
            "weights": distance(mine, theirs, origin.student),
            "teacher": distance(teacher, theirs_teacher, origin.teacher),
        }
        self.drift.append(row)

    def _write(
        self,
        trace: StageTrace,
        expected: RepeatedUpdate,
        found: list[Delta],
        allowed: dict[str, float],
        first: Delta | None,
        step: int,
        began: float,
    ) -> None:
        own = [
            sum(scaled_loss(side.micro_batches(0, number)) for number in side.steps())
            for side in (trace, expected.trace)
        ]
        losses = torch.tensor(gather_object([own])).mean(0).tolist()
        cosine = min(agreement.cosine for agreement in expected.matches)
        row = check_row(step, losses, cosine, found, allowed, first)
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

    def counters(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON."""
        names = ("updates", "noise", "rates", "weights")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """The lockstep replica and where it began, for a checkpoint; nothing without it."""
        if self.follower is None or self.origin is None:
            return {}
        own = self.follower
        now = State.of(own.student, own.teacher_weights(self.origin.teacher), own.optimizer)
        return now.flat("replica") | self.origin.flat("origin")

    def resume(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on as after `counters` and `tensors`; a replica that is not there is begun anew."""
        for name, value in counters.items():
            setattr(self, name, value)
        lost = self.draws or self.trainer.sdpo_config.hybrid_lambda > 0
        if self.rates and self.lockstep and lost:
            raise ConfigError(
                "the checkpoint lies inside an update, from where the lockstep replica of a run "
                "with dropout or a hybrid loss cannot go on: resume from a checkpoint between "
                "updates, or set audit_lockstep=False"
            )
        self.steps = [StepInputs() for _ in self.rates]
        if tensors and self.lockstep:
            self.origin = State.from_flat(tensors, "origin")
            self.follower = trainer_snapshot.replica_of(self.trainer)
            self.follower.load(State.from_flat(tensors, "replica"))

    def _audited(self) -> str:
        """What the gradient of a row consists of."""
        return "SDPO and TRL's GRPO" if self.trainer.sdpo_config.hybrid_lambda else "SDPO"

    def _fingerprint(self) -> Tensor:
        """Some entries of every weight of the teacher."""
        weights = trainer_snapshot.teacher_weights(self.trainer).values()
        rows = [weight.detach().flatten() for weight in weights]
        return torch.cat([row[:: max(1, len(row) // SAMPLES)].float() for row in rows])
