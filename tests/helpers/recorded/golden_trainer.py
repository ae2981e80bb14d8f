"""A recorded update case through `SDPOTrainer.train()`: the real loop, with recorded rollouts.

Only generation is replaced (`_generate_and_score_completions`), and the weights are the recorded
ones. Everything after it is the trainer's own path: row order, loss, accumulation, clipping,
skipped steps, optimizer, teacher.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from sdpo.parity.cases.value_names import by_verl_names
from sdpo.parity.recorded.updates import own_config
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.trainer.teacher_inputs import ROW
from sdpo.update.actor_update import Batch
from sdpo.update.observer import UpdateObserver
from tests.helpers.recorded import update_cases as cases
from tests.helpers.trainers import tiny_trainer


class Recorded(SDPOTrainer):
    """Uses recorded rollouts in place of generated ones."""

    batches: Iterator[dict[str, Any]]

    def _generate_and_score_completions(self, inputs):
        return next(self.batches)


class Recorder(UpdateObserver):
    """Collects what the trainer does, under the golden names."""

    def __init__(self):
        self.recorded: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.update, self.micro, self.mini = 0, 0, 0

    def on_micro_batch_end(
        self, batch: Batch, values: dict[str, Tensor], scale: Tensor | float
    ) -> None:
        for name, value in by_verl_names(values).items():
            self.recorded[f"u{self.update}.mb{self.micro}.{name}"] = value.detach().clone()
        self.losses.append(values["aggregate"].item() * float(scale))
        self.micro += 1

    def on_gradients(self, model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            key = f"u{self.update}.mini{self.mini}.grad.{name}"
            assert parameter.grad is not None
            self.recorded[key] = parameter.grad.clone()
        self.mini += 1

    def end_update(self, actor: torch.nn.Module, teacher: torch.nn.Module) -> None:
        for label, module in (("actor", actor), ("teacher", teacher)):
            for name, value in module.state_dict().items():
                self.recorded[f"u{self.update}.{label}.{name}"] = value.clone()
        self.update, self.micro, self.mini = self.update + 1, 0, 0


def rollouts_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """A recorded batch in the form that TRL's generation returns, teacher's inputs added."""
    width = batch["responses"].shape[1]
    attention, response_mask = batch["attention_mask"], batch["response_mask"]
    found: dict[str, Any] = {
        "prompt_ids": batch["input_ids"][:, :-width],
        "prompt_mask": attention[:, :-width],
        "completion_ids": batch["responses"],
        "completion_mask": attention[:, -width:],
        "tool_mask": response_mask,
        "advantages": torch.zeros(len(attention)),
        "num_items_in_batch": response_mask.sum(),
        ROW: torch.arange(len(attention)),
    }
    taken = ("self_distillation_mask", "old_log_probs", "rollout_is_weights", "ref_log_prob")
    names = [name for name in batch if name.startswith("teacher_") or name in taken]
    return found | {name: batch[name] for name in names}


def settings(case_id: str, folder: Path) -> dict[str, Any]:
    """TRL's settings for a case's mini-batches, micro-batches and epochs."""
    actor = cases.case(case_id).config["actor"]
    shape = cases.recorded(case_id)["u0.in.responses"].shape
    micro = actor["ppo_micro_batch_size_per_gpu"]
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": actor["ppo_mini_batch_size"] // micro,
        "steps_per_generation": shape[0] // micro,
        "num_iterations": actor["ppo_epochs"],
        "num_generations": shape[0],
        "max_completion_length": shape[1],
        "max_grad_norm": actor["grad_clip"],
        "temperature": cases.case(case_id).config["temperature"],
        "num_train_epochs": len(cases.case(case_id).entry["results"]),
        "max_steps": -1,
        "logging_nan_inf_filter": False,
    }


def build(
    case_id: str, folder: Path, kind: type = Recorded, **changes: Any
) -> tuple[Any, Recorder]:
    golden = cases.case(case_id)
    actor, teacher, optimizer = cases.build(golden)
    config = own_config(golden)
    changes = {"sdpo_config": config} | changes
    trainer = kind(
        model=actor,
        args=tiny_trainer.arguments(folder, **settings(case_id, folder)),
        processing_class=tiny_trainer.tokenizer(),
        reward_funcs=[tiny_trainer.Alternating()],
        train_dataset=Dataset.from_dict({"prompt": ["unused"]}),
        optimizers=(optimizer, None),
        **changes,
    )
    assert teacher is not None
    trainer.teacher.weights.module.load_state_dict(teacher.state_dict())
    trainer.batches = (rollouts_of(batch) for batch, _ in cases.updates(golden))
    recorder = Recorder()
    trainer.observers.append(recorder)
    return trainer, recorder


def run(case_id: str, folder: Path, kind: type = Recorded, **changes: Any) -> cases.Run:
    """Train through a case and return what came out, under the golden names."""
    trainer, recorder = build(case_id, folder, kind, **changes)
    after = trainer.after_optimizer_step

    def end_of_update() -> None:
        after()
        if trainer.schedule.ends_update(trainer._step):
            recorder.end_update(trainer.model, trainer.teacher.weights.module)

    trainer.after_optimizer_step = end_of_update
    trainer.train()
    run = cases.Run(recorder.recorded)
    losses = iter(recorder.losses)
    norms = iter([row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row])
    for _, result in zip(range(recorder.update), cases.case(case_id).entry["results"], strict=True):
        steps = result["micro_batches_per_optimizer_step"]
        run.metrics.append(
            {
                "actor/pg_loss": sum(next(losses) for _ in range(sum(steps))),
                "actor/grad_norm": [next(norms) for _ in steps],
            }
        )
    return run


__all__ = ["Recorded", "Recorder", "SDPOConfig", "build", "cases", "run"]
