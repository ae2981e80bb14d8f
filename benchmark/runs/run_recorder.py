"""Writes a run's records while it trains: a row for each step, evaluations, samples."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from sdpo.benchmark.runs.checkpoints import folder_of, seal
from sdpo.benchmark.runs.environment import peak_memory_mib
from sdpo.benchmark.runs.records import Evaluation, Metrics, RecordFile, Records, Sample
from sdpo.benchmark.runs.settings import RecordSettings, Settings
from sdpo.benchmark.scoring.pass_at_1 import Scored, Summary
from sdpo.prompt.teacher_batch import PromptTrace
from sdpo.update.actor_update import Batch
from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import Rollouts, TRLBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sdpo.trainer.sdpo_trainer import SDPOTrainer

# Depend on the clock, so they are no part of what a repetition must reproduce.
_CLOCK = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
_NEEDED_MIB = 64.0


class Recorder(TrainerCallback):
    """Writes the records of one run.

    Args:
        records: where to.
        settings: of the run.
        evaluation: measures pass@1; returns summary and results.
        checkpoints: folder of the checkpoints.
        advance: told after each step.
    """

    def __init__(
        self,
        records: Records,
        settings: Settings,
        evaluation: Callable[[], tuple[Summary, list[Scored]]],
        checkpoints: Path,
        advance: Callable[[Metrics], None],
    ):
        self.records, self.settings, self.evaluation = records, settings, evaluation
        self.checkpoints, self.advance = checkpoints, advance
        self.began = time.perf_counter()

    def measure(self, step: int) -> None:
        """Evaluate, unless this step was evaluated before."""
        if any(row["step"] == step for row in self.records.evals.read()):
            return
        began = time.perf_counter()
        summary, results = self.evaluation()
        self.records.evals.append(Evaluation(step=step, **summary, results=results))
        self.began += time.perf_counter() - began

    def on_train_begin(self, args, state, control, **kwargs):
        """Evaluate the model as it starts."""
        if state.is_world_process_zero and state.global_step == 0:
            self.measure(0)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Evaluate, before the step is logged and the checkpoint written."""
        step = state.global_step
        due = step % self.settings.eval.every == 0 or step == state.max_steps
        if due and state.is_world_process_zero:
            self.measure(step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write what the trainer logged for a step."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        step, row = {"step": state.global_step}, dict(logs)
        # TRL's own SDPO names it so.
        row.setdefault("reward", row.get("self_distillation/reward_mean"))
        clock = {name: row.pop(name) for name in _CLOCK if name in row}
        parity = {name: row.pop(name) for name in list(row) if name.startswith("parity/")}
        self.records.steps.append(step | row)
        if parity:
            self.records.parity.append(step | parity)
        seconds = time.perf_counter() - self.began
        self.began += seconds
        cost = {"seconds": seconds, "peak_memory_mib": peak_memory_mib(), **clock}
        self.records.cost.append(step | cost)
        self.advance(row)

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint as complete, once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(folder_of(self.checkpoints, state.global_step))
            free = shutil.disk_usage(self.checkpoints).free / 2**20
            if free < _NEEDED_MIB:
                raise OSError(
                    f"only {free:.0f} MiB are free for checkpoints and records; make room, then "
                    "the same command goes on from here"
                )


class TeacherLead(UpdateObserver):
    """Logs how far the teacher is ahead, for attempts that passed and for those that did not.

    It is ahead by its log-prob of the sampled tokens minus the student's. A useful teacher lowers
    failed attempts. Also writes samples of attempts with their teacher prompts.
    """

    def __init__(
        self,
        trainer: "SDPOTrainer",
        tokenizer: "PreTrainedTokenizerBase",
        samples: RecordFile[Sample],
        settings: RecordSettings,
    ):
        self.trainer, self.tokenizer = trainer, tokenizer
        self.samples, self.settings = samples, settings
        self.rewards: list[float] = []
        self.row = 0

    def on_rollouts(self, rollouts: Rollouts, trace: PromptTrace, batch: TRLBatch) -> None:
        """Note the rewards of a new generation, and write samples if they are due."""
        if not self.trainer.model.training:
            return
        rows = len(rollouts.prompts)
        first = self.trainer.accelerator.process_index * rows
        self.rewards = rollouts.rewards[first : first + rows].tolist()
        self.row = 0
        step = self.trainer.state.global_step
        if step % self.settings.samples_every == 0 and self.trainer.accelerator.is_main_process:
            self._write_samples(step + 1, rollouts, trace)

    def _write_samples(self, step: int, rollouts: Rollouts, trace: PromptTrace) -> None:
        """Write some attempts, failed ones first."""
        texts = self.tokenizer.batch_decode(rollouts.responses, skip_special_tokens=True)
        order = sorted(range(len(self.rewards)), key=lambda row: (self.rewards[row], row))
        for row in order[: self.settings.samples]:
            demonstrated = trace["demonstration"][row] is not None
            sample = Sample(
                step=step,
                prompt=rollouts.prompts[row],
                completion=texts[row],
                reward=self.rewards[row],
                feedback=rollouts.feedbacks[row],
                teacher_prompt=trace["teacher_prompt"][row][-1]["content"],
                help="demonstration" if demonstrated else "feedback",
            )
            if not trace["distillation_mask"][row]:
                sample["help"] = "none"
            self.samples.append(sample)

    def on_micro_batch_end(
        self, batch: Batch, values: dict[str, torch.Tensor], scale: torch.Tensor | float
    ) -> None:
        """Log how far the teacher is ahead on the rows of a micro-batch."""
        student, teacher = (values[f"log_probs.{side}"].detach() for side in ("student", "teacher"))
        mask = batch["response_mask"] * batch["self_distillation_mask"][:, None]
        ahead = ((teacher - student) * mask).sum(-1)
        first, size = self.row, len(ahead)
        self.row = (first + size) % max(1, len(self.rewards))
        rewards = torch.tensor(self.rewards[first : first + size])
        if len(rewards) != size:
            return
        helped = batch["self_distillation_mask"].bool().cpu()
        passed = rewards >= self.trainer.sdpo_config.success_reward_threshold
        metrics = self.trainer._metrics["train"]
        for name, rows in (("passed", passed & helped), ("failed", ~passed & helped)):
            if rows.any():
                metrics[f"teacher/ahead_on_{name}"].append(ahead.cpu()[rows].mean().item())
        divergence = values["divergence"].detach()
        if mask.any():
            value = (divergence * mask).sum() / mask.sum()
            metrics["teacher/divergence_per_token"].append(value.item())

    # --- checkpoints ------------------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint must remember, also one inside an update."""
        return {"rewards": self.rewards, "row": self.row}

    def resume(self, counters: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Continue after a checkpoint with these `counters`."""
        self.rewards, self.row = counters["rewards"], counters["row"]
