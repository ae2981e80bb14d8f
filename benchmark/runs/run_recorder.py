"""What a run writes while it trains: a row for each step, evaluations, samples, checkpoints."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from sdpo.benchmark.runs.checkpoints import folder_of, seal
from sdpo.benchmark.runs.environment import peak_memory_mib
from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.runs.settings import RecordSettings, Settings
from sdpo.benchmark.scoring.pass_at_1 import Scored, Summary
from sdpo.prompt.teacher_batch import PromptTrace
from sdpo.update.actor_update import Batch
from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import Rollouts

# Depend on the clock, so they are no part of what a repetition must reproduce.
CLOCK = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
NEEDED_MIB = 64.0


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
        advance: Callable[[dict[str, Any]], None],
    ):
        self.records, self.settings, self.evaluation = records, settings, evaluation
        self.checkpoints, self.advance = checkpoints, advance
        self.began = time.perf_counter()

    def measure(self, step: int) -> None:
        """Evaluate, unless this step was evaluated before."""
        if any(row["step"] == step for row in self.records.read("evals")):
            return
        began = time.perf_counter()
        summary, results = self.evaluation()
        self.records.append("evals", {"step": step, **summary, "results": results})
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
        clock = {name: row.pop(name) for name in CLOCK if name in row}
        parity = {name: row.pop(name) for name in list(row) if name.startswith("parity/")}
        self.records.append("steps", step | row)
        if parity:
            self.records.append("parity", step | parity)
        seconds = time.perf_counter() - self.began
        self.began += seconds
        cost = {"seconds": seconds, "peak_memory_mib": peak_memory_mib(), **clock}
        self.records.append("cost", step | cost)
        self.advance(row)

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint as complete, once every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(folder_of(self.checkpoints, state.global_step))
            free = shutil.disk_usage(self.checkpoints).free / 2**20
            if free < NEEDED_MIB:
                raise OSError(
                    f"only {free:.0f} MiB are free for checkpoints and records; make room, then "
                    "the same command goes on from here"
                )


class TeacherWatch(UpdateObserver):
    """Logs how far the teacher is ahead, for attempts that passed and for those that did not.

    It is ahead by its log-prob of the sampled tokens minus the student's. A useful teacher lowers
    failed attempts.
    """

    def __init__(self, trainer: Any, records: Records, settings: RecordSettings, reached: float):
        self.trainer, self.records, self.settings = trainer, records, settings
        self.reached = reached
        self.rewards: list[float] = []
        self.row = 0

    def on_rollouts(self, rollouts: Rollouts, trace: PromptTrace, batch: dict[str, Any]) -> None:
        """Note the rewards of a new generation, and write samples if they are due."""
        if not self.trainer.model.training:
            return
        rows = len(rollouts.prompts)
        first = self.trainer.accelerator.process_index * rows
        self.rewards = rollouts.rewards[first : first + rows].tolist()
        self.row = 0
        step = self.trainer.state.global_step
        if step % self.settings.samples_every == 0 and self.trainer.accelerator.is_main_process:
            tokenizer = self.trainer.processing_class
            texts = tokenizer.batch_decode(rollouts.responses, skip_special_tokens=True)
            for row in self._chosen(self.settings.samples):
                shown = trace["demonstration"][row]
                sample = {
                    "step": step + 1,
                    "prompt": rollouts.prompts[row],
                    "completion": texts[row],
                    "reward": self.rewards[row],
                    "feedback": rollouts.feedbacks[row],
                    "teacher_prompt": trace["teacher_prompt"][row][-1]["content"],
                    "help": "demonstration" if shown is not None else "feedback",
                }
                if not trace["distillation_mask"][row]:
                    sample["help"] = "none"
                self.records.append("samples", sample)

    def _chosen(self, count: int) -> list[int]:
        """Rows to show: failed attempts first."""
        order = sorted(range(len(self.rewards)), key=lambda row: (self.rewards[row], row))
        return order[:count]

    def on_micro_batch_end(
        self, batch: Batch, values: dict[str, torch.Tensor], scale: torch.Tensor | float
    ) -> None:
        """Log how far the teacher is ahead on the rows of a micro-batch."""
        own, theirs = values["log_probs.student"].detach(), values["log_probs.teacher"].detach()
        mask = batch["response_mask"] * batch["self_distillation_mask"][:, None]
        ahead = ((theirs - own) * mask).sum(-1)
        first, size = self.row, len(ahead)
        self.row = (first + size) % max(1, len(self.rewards))
        rewards = torch.tensor(self.rewards[first : first + size])
        if len(rewards) != size:
            return
        helped = batch["self_distillation_mask"].bool().cpu()
        passed = rewards >= self.reached
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
        """Go on as after `counters`."""
        self.rewards, self.row = counters["rewards"], counters["row"]
