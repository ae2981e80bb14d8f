"""`ParityCallback`: every update of a real training, repeated by the reference and compared.

    SDPOTrainer(…, sdpo_config=SDPOConfig(audit_every=1))

A row per checked update goes to `parity.csv` and to TRL's log: distances of loss, gradient,
weights and teacher, what each may be, and the stage that moved first. With `audit_lockstep` a
second replica is trained by the reference alone from the same rollouts; its drift goes to
`drift.csv` and `drift.png`.

Covered: one process, float32, pure SDPO. Whatever is not is refused, not skipped.
"""

import csv
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sdpo.config import ConfigError, SDPOConfig
from sdpo.parity.lockstep import (
    Record,
    Replica,
    Step,
    reference_prompts,
    reference_update,
    weights_of,
)
from sdpo.parity.stages import STAGES
from sdpo.parity.step_compare import (
    EXACT,
    Delta,
    budgets,
    cosine,
    deltas,
    first_moved,
    joined,
    moved,
    noise,
    relative,
)
from sdpo.rollouts import TEACHER_KEYS, update_batch

REPORTED = {"aggregate": "loss", "gradient": "gradient", "weights": "weights", "teacher": "teacher"}
SAMPLES = 64


class ParityWarning(UserWarning):
    """An update that the reference would have made differently."""


class ParityCallback(TrainerCallback):
    """Compares updates of a trainer with the reference while it trains.

    Args:
        trainer: an `SDPOTrainer` with a teacher.
        every: check every n-th update; 0 for none (with `lockstep` alone).
        lockstep: train a replica by the reference alone.
        folder: where rows and plot go.

    Raises:
        ConfigError: the run has something that the comparison does not cover.
    """

    def __init__(self, trainer: Any, *, every: int, lockstep: bool, folder: Path):
        check_covered(trainer)
        self.trainer, self.every, self.lockstep, self.folder = trainer, every, lockstep, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        self.drift: list[dict[str, Any]] = []
        self.updates, self.seconds = 0, 0.0
        self.noise: dict[str, float] = {}
        self.record: Record | None = None
        self.replicas: dict[str, Replica] = {}
        self.batch: dict[str, Tensor] = {}
        self.expected_prompts: dict[str, Any] = {}
        self.fingerprint = torch.zeros(0)
        self.rates: list[list[float]] = []

    # --- what the trainer tells -------------------------------------------------------------

    def rollouts(self, rollouts: Any, found: Any, batch: dict[str, Any]) -> None:
        """A new update begins: remember the state it begins with."""
        if not self.trainer.model.training:
            return
        began = time.perf_counter()
        trainer, due = self.trainer, self.every and self.updates % self.every == 0
        self.record = Record(weights_of(trainer.model)) if due else None
        self.rates = []
        if due:
            self.replicas |= {"single": self._replica(), "spare": self._replica()}
        if self.lockstep and "lockstep" not in self.replicas:
            self.replicas["lockstep"] = self._replica()
            self.origin = weights_of(trainer.model)
        if due or self.lockstep:
            self.batch = update_batch(batch)
            self._prompts(rollouts, found)
            self.fingerprint = self._fingerprint()
        self.seconds += time.perf_counter() - began

    def micro_batch(self, batch: dict[str, Tensor], trace: dict[str, Tensor], scale: Any) -> None:
        """A micro-batch was processed."""
        if self.record is None:
            return
        began = time.perf_counter()
        steps = self.record.steps
        if len(steps) == len(self.rates):
            steps.append(Step())
        step = steps[-1]
        values = {name: value.detach() for name, value in trace.items()}
        step.micro_batches.append(values)
        step.scaled_loss += values["aggregate"].item() * float(scale)
        step.teacher_moved |= not torch.equal(self._fingerprint(), self.fingerprint)
        self.seconds += time.perf_counter() - began

    def gradients(self, model: nn.Module) -> None:
        """All micro-batches of an optimizer step are done; nothing is clipped yet."""
        began = time.perf_counter()
        self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
        if self.record is not None:
            named = model.named_parameters()
            gradient = {n: p.grad.detach().clone() for n, p in named if p.grad is not None}
            self.record.steps[-1].gradient = gradient
        self.seconds += time.perf_counter() - began

    # --- what the training loop tells -------------------------------------------------------

    def on_step_end(self, args, state, control, **kwargs):
        """After an optimizer step, and after the teacher: compare if the update is done."""
        began = time.perf_counter()
        if self.record is not None:
            self.record.steps[-1].weights = weights_of(self.trainer.model)
        if self.trainer.schedule.ends_update(self.trainer._step):
            if self.record is not None:
                self.record.teacher = dict(self.trainer.teacher.state_dict())
                self._check(self.record, state.global_step, began)
            if self.lockstep:
                self._follow(state.global_step)
            self.record = None
            self.updates += 1
        self.seconds += time.perf_counter() - began

    def on_train_end(self, args, state, control, **kwargs):
        """Plot the drift."""
        if self.drift:
            plot_drift(self.drift, self.folder / "drift.png")

    # --- one update -------------------------------------------------------------------------

    def _check(self, record: Record, step: int, began: float) -> None:
        """Repeat an update by the reference and write down the distances."""
        expected, spare = self._reference(self.replicas.pop("single")), self.replicas.pop("spare")
        expected.prompts = self.expected_prompts
        same_split = self.trainer.sdpo_config.micro_batch_semantics == "verl"
        found = list(deltas(record, expected, same_split=same_split))
        names = {delta.name for delta in found}
        first = first_moved(found, budgets(self.noise, names))
        checks = len(self.rows) + 1
        if first is not None or checks & (checks - 1) == 0:
            # What rounding does changes as training goes on: measured anew at the checks 1, 2, 4,
            # 8 …, and before an update is called different.
            self.noise = noise(expected, self._reference(self._double(spare)))
            first = first_moved(found, budgets(self.noise, names))
        allowed = budgets(self.noise, names)
        self._write(record, expected, found, allowed, first, step, time.perf_counter() - began)

    def _reference(self, replica: Replica) -> Record:
        """One update of a replica by the reference."""
        trainer, schedule = self.trainer, self.trainer.schedule
        micro = trainer.args.per_device_train_batch_size
        mini = micro * schedule.gradient_accumulation_steps
        exact = trainer.sdpo_config.micro_batch_semantics == "exact"
        return reference_update(
            replica,
            self.batch,
            reference_config(trainer),
            mini_batch_size=mini,
            micro_batch_size=mini if exact else micro,
            epochs=schedule.num_iterations,
            rates=self.rates,
        )

    def _follow(self, step: int) -> None:
        """Let the lockstep replica make the same update, and write down how far it is away."""
        replica = self.replicas["lockstep"]
        self._reference(replica)
        mine, theirs = weights_of(self.trainer.model), weights_of(replica.student)
        own = dict(replica.teacher.named_parameters())
        teacher = self.trainer.teacher.state_dict()
        theirs_teacher = {name: own[name].detach() for name in teacher}
        row = {
            "step": step,
            "weights": relative(moved(mine, self.origin), moved(theirs, self.origin)),
            "teacher": relative(joined(teacher), joined(theirs_teacher)),
            "path": moved(theirs, self.origin).norm().item(),
        }
        self.drift.append(row)
        append_row(self.folder / "drift.csv", row, new=len(self.drift) == 1)

    def _write(
        self,
        record: Record,
        expected: Record,
        found: list[Delta],
        allowed: dict[str, float],
        first: Delta | None,
        step: int,
        seconds: float,
    ) -> None:
        losses = [sum(s.scaled_loss for s in side.steps) for side in (record, expected)]
        angles = [
            cosine(mine.gradient, theirs.gradient)
            for mine, theirs in zip(record.steps, expected.steps, strict=True)
        ]
        row: dict[str, Any] = {"step": step, "loss": losses[0], "reference_loss": losses[1]}
        row["delta_loss"] = abs(losses[0] - losses[1])
        row["gradient_cosine"] = min(angles)
        for name, label in REPORTED.items():
            row[f"{label}_relative"] = max(d.value for d in found if d.name == name)
            row[f"{label}_budget"] = allowed[name]
        row["first_moved"] = first.stage if first else ""
        row["first_value"] = first.name if first else ""
        row["first_step"] = first.step if first else ""
        row["seconds"] = seconds
        self.rows.append(row)
        append_row(self.folder / "parity.csv", row, new=len(self.rows) == 1)
        metrics = self.trainer._metrics["train"]
        for name, value in row.items():
            if isinstance(value, float) and name != "seconds":
                metrics[f"parity/{name}"].append(value)
        metrics["parity/first_moved"].append(STAGES[first.stage].number if first else 0)
        if first is not None:
            warnings.warn(
                f"step {step}: the reference would have made another update; {first.stage} moved "
                f"first ({first.name} of optimizer step {first.step}: {first.value:.3g}, allowed "
                f"{allowed[first.name]:.3g})",
                ParityWarning,
                stacklevel=2,
            )

    def _prompts(self, rollouts: Any, found: Any) -> None:
        """The reference's own teacher inputs, where it renders prompts as the trainer does."""
        trainer, config = self.trainer, self.trainer.sdpo_config
        self.expected_prompts = {}
        arguments = {**trainer._template_arguments(), **config.apply_chat_template_kwargs}
        unknown = arguments.keys() - {"enable_thinking"}
        if isinstance(rollouts.prompts[0], str) or unknown:
            return
        tensors, trace = reference_prompts(
            rollouts.responses,
            rollouts.response_mask,
            rollouts.rewards,
            rollouts.prompts,
            rollouts.feedbacks,
            getattr(trainer.processing_class, "tokenizer", trainer.processing_class),
            config,
            group_size=trainer.num_generations,
            template_kwargs=arguments,
        )
        self.expected_prompts = expected = comparable(trace)
        if self.record is not None:
            own = comparable(found.trace)
            self.record.prompts = {name: own[name] for name in expected}
        self.batch |= tensors

    def _replica(self) -> Replica:
        trainer = self.trainer
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        return Replica.of(trainer.model, trainer.teacher.state_dict(), optimizer)

    def _double(self, replica: Replica) -> Replica:
        """The same state in float64."""
        teacher = dict(replica.teacher.named_parameters())
        return Replica.of(replica.student, teacher, replica.optimizer, torch.float64)

    def _fingerprint(self) -> Tensor:
        """Some entries of every weight of the teacher."""
        rows = [p.detach().flatten() for p in self.trainer.teacher.parameters()]
        return torch.cat([row[:: max(1, len(row) // SAMPLES)].float() for row in rows])


def comparable(trace: dict[str, Any]) -> dict[str, Any]:
    """Stage values of the teacher prompt as plain values, under the stages' names."""
    found = {name: trace[name] for name in EXACT}
    tokens = found["teacher_tokens"]
    if isinstance(tokens, dict):
        found["teacher_tokens"] = [tokens[name] for name in TEACHER_KEYS]
    return found


def reference_config(trainer: Any) -> SDPOConfig:
    """The settings of a run as the reference needs them: TRL's where TRL's rule."""
    limit = trainer.args.max_grad_norm or sys.float_info.max
    config, temperature = trainer.sdpo_config, trainer.args.temperature
    return replace(config, temperature=temperature, grad_clip=limit)


def check_covered(trainer: Any) -> None:
    """Refuse what the comparison does not cover.

    Raises:
        ConfigError: naming all of it.
    """
    config, args = trainer.sdpo_config, trainer.args
    problems = {
        "hybrid_lambda above 0: the reference has no GRPO part": config.hybrid_lambda > 0,
        "lora_average='effective': the reference averages weights": config.lora_average
        == "effective",
        "loss_agg_mode='seq-mean-token-sum-norm': TRL's padded width is not the reference's": (
            config.loss_agg_mode == "seq-mean-token-sum-norm"
        ),
        "reprompt_truncation='error': the reference always fails with it": (
            config.reprompt_truncation == "error"
        ),
        "several processes: every rank would need the gradients of all": (
            trainer.accelerator.num_processes > 1
        ),
        "bf16 or fp16: float32 only": args.bf16 or args.fp16,
        "dropout in the student: the reference would draw other masks": has_dropout(trainer.model),
    }
    if found := [text for text, present in problems.items() if present]:
        raise ConfigError(
            "the parity callback does not cover " + "; ".join(found) + ". Set audit_every=0 and "
            "audit_lockstep=False, or change these settings"
        )


def has_dropout(model: nn.Module) -> bool:
    """Whether some module drops activations in training mode."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or getattr(module, "attention_dropout", 0) not in (0, None)
        for module in model.modules()
    )


def append_row(path: Path, row: dict[str, Any], *, new: bool) -> None:
    """Append to a CSV file, so that an interrupted run keeps its rows."""
    with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def plot_drift(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance between the trained model and its lockstep replica over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("weights", "student: ÷ way gone"), ("teacher", "teacher: ÷ its norm")):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], "o-", label=label)
    axes.set(xlabel="optimizer step", ylabel="distance to the reference", yscale="symlog")
    axes.set_yscale("symlog", linthresh=1e-9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
