"""Audit a trainer of your own: `sdpo audit examples/audit_my_trainer.py:MyAdapter`.

`MyTrainer` stands for your code: a plain training loop of SDPO. `MyAdapter` is what the audit
needs: it feeds the loop with a scenario and writes down what happened. Trainers derived from
transformers' `Trainer` have less to do: `audit_my_hf_trainer.py`.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.loss.aggregate import aggregate
from sdpo.loss.divergence import divergence
from sdpo.loss.importance import importance
from sdpo.loss.support import log_probs, support, tail
from sdpo.parity import (
    STAGES,
    Generation,
    MicroBatch,
    NotCoveredError,
    OptimizerStep,
    Scenario,
    TrainerAdapter,
    TrainerRun,
    Update,
    attended_tokens,
    gradients_of,
    handed_tokenizer,
    scripted_batch,
    tiny_model,
    weights_of,
)
from sdpo.prompt.teacher_batch import Attempts, teacher_batch
from sdpo.settings.config import SDPOConfig


class MyTrainer:
    """A training loop for SDPO with top-k support and a teacher of averaged weights."""

    def __init__(self, model: nn.Module, scenario: Scenario):
        self.model, self.scenario = model, scenario
        self.teacher = copy.deepcopy(model).eval()
        arguments = dict(scenario.optimizer)
        optimizer = getattr(torch.optim, arguments.pop("name"))
        self.optimizer = optimizer(model.parameters(), **arguments)
        self.micro_batch_weight = 1 / scenario.accumulation

    def teacher_batch(self, generation: Generation, batch: dict[str, Tensor], tokenizer: Any):
        """Build teacher prompts, tokens and mask."""
        rows = range(len(generation.rollouts))
        rewards = torch.zeros(batch["responses"].shape)
        rewards[:, 0] = torch.tensor([rollout.reward for rollout in generation.rollouts])
        attempts = Attempts(
            [list(generation.conversation_of(row)) for row in rows],
            batch["responses"],
            batch["response_mask"],
            rewards,
            [row // generation.group_size for row in rows],
            [rollout.feedback for rollout in generation.rollouts],
        )
        return teacher_batch(attempts, tokenizer, SDPOConfig(**self.scenario.self_distillation))

    def logits(self, module: nn.Module, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
        """Compute the logits that predict the response tokens."""
        names = ("input_ids", "attention_mask", "position_ids")
        width = batch["responses"].size(1)
        out = module(**{name: batch[prefix + name] for name in names}, use_cache=False)
        return out.logits[:, -width - 1 : -1]

    def loss(
        self, student: Tensor, teacher: Tensor, batch: dict[str, Tensor], old: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the loss of a micro-batch, with the values on the way, by name."""
        config, tau = self.scenario.self_distillation, self.scenario.temperature
        own = log_probs(student, batch["responses"], temperature=tau)
        theirs = log_probs(teacher, batch["responses"], temperature=tau)
        top = {"distillation_topk": config["distillation_topk"], "temperature": tau}
        indices, s, t = support(student, teacher, **top)
        values = {"log_probs.student": own, "log_probs.teacher": theirs}
        values |= {"support.student": s, "support.teacher": t}
        if indices is not None:
            values["support.indices"] = indices
        add_tail = config["distillation_add_tail"]
        s, t = (tail(x, distillation_add_tail=add_tail) for x in (s, t))
        values |= {"tail.student": s, "tail.teacher": t}
        values["divergence"] = divergence(s, t, alpha=config["alpha"])
        values["importance"] = importance(
            values["divergence"],
            student_log_probs=own,
            old_log_probs=own.detach() if old is None else old,
            is_clip=config["is_clip"],
        )
        mask = batch["response_mask"] * batch["self_distillation_mask"][:, None]
        values["aggregate"] = aggregate(
            values["importance"], mask, loss_agg_mode=self.scenario.loss_agg_mode
        )
        return values

    def old_log_probs(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Compute log-probs at the weights that generated; None if the gradient is taken there."""
        if self.scenario.on_policy:
            return None
        with torch.no_grad():
            logits = self.logits(self.model, batch)
        return log_probs(logits, batch["responses"], temperature=self.scenario.temperature)

    def clip(self) -> float:
        """Clip the gradient and return its norm."""
        limit = self.scenario.grad_clip
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()

    def update_teacher(self) -> None:
        """Move the teacher a little towards the student."""
        rate = self.scenario.self_distillation["teacher_update_rate"]
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, rate)


class MyAdapter(TrainerAdapter):
    """Runs `MyTrainer` through a scenario."""

    name = "my_trainer"
    stages = STAGES
    trainer = MyTrainer

    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario."""
        refuse(scenario)
        trainer = self.trainer(tiny_model(scenario, folder), scenario)
        tokenizer = handed_tokenizer(scenario)
        run = TrainerRun(
            settings=dict(scenario.self_distillation),
            initial=weights_of(trainer.model),
            initial_teacher=weights_of(trainer.teacher),
            given={"tokenizer": tokenizer.padding_side},
        )
        tokenizer.padding_side = "left"
        for generation in scenario.generations:
            run.updates.append(self.update(trainer, generation, tokenizer))
        return run

    def update(self, trainer: MyTrainer, generation: Generation, tokenizer: Any) -> Update:
        """Learn from one generation."""
        scenario = trainer.scenario
        batch = scripted_batch(scenario, generation, tokenizer)
        built = trainer.teacher_batch(generation, batch, tokenizer)
        batch |= {f"teacher_{name}": value for name, value in built.tokens._asdict().items()}
        batch["self_distillation_mask"] = built.distillation_mask
        shown = ("feedback", "demonstration", "teacher_prompt")
        prompt: dict[str, list[Any]] = {stage: list(built.trace[stage]) for stage in shown}
        prompt["teacher_tokens"] = list(attended_tokens(*built.tokens))
        prompt["distillation_mask"] = built.distillation_mask.tolist()
        update = Update(prompt)
        old = trainer.old_log_probs(batch)
        rows = list(range(len(generation.rollouts)))
        size, span = scenario.micro_batch_size, scenario.micro_batch_size * scenario.accumulation
        for _ in range(scenario.num_iterations):
            for start in range(0, len(rows), span):
                parts = [rows[i : i + size] for i in range(start, start + span, size)]
                update.steps.append(self.step(trainer, batch, parts, old))
        trainer.update_teacher()
        update.teacher = weights_of(trainer.teacher)
        return update

    def step(
        self,
        trainer: MyTrainer,
        batch: dict[str, Tensor],
        parts: list[list[int]],
        old: Tensor | None,
    ) -> OptimizerStep:
        """Take one optimizer step."""
        trainer.optimizer.zero_grad()
        step = OptimizerStep()
        for rows in parts:
            part = {name: tensor[rows] for name, tensor in batch.items()}
            part_of_old = None if old is None else old[rows]
            step.micro_batches.append(self.micro_batch(trainer, rows, part, part_of_old))
        step.gradient = gradients_of(trainer.model)
        step.grad_norm = trainer.clip()
        if torch.tensor(step.grad_norm).isfinite():
            trainer.optimizer.step()
        step.parameters = weights_of(trainer.model)
        return step

    def micro_batch(
        self, trainer: MyTrainer, rows: list[int], batch: dict[str, Tensor], old: Tensor | None
    ) -> MicroBatch:
        """Do one forward and backward pass."""
        student = trainer.logits(trainer.model, batch)
        student.retain_grad()
        with torch.no_grad():
            teacher = trainer.logits(trainer.teacher, batch, "teacher_")
        values = trainer.loss(student, teacher, batch, old)
        (values["aggregate"] * trainer.micro_batch_weight).backward()
        assert student.grad is not None
        logits = {"student": student, "teacher": teacher, "gradient": student.grad}
        detached = ({k: v.detach() for k, v in side.items()} for side in (logits, values))
        inputs = batch if old is None else batch | {"old_log_probs": old}
        return MicroBatch(rows, inputs, *detached)


def refuse(scenario: Scenario) -> None:
    """Say what the loop cannot do, so that the report lists it."""
    settings = scenario.self_distillation
    cannot = {
        "LoRA": scenario.lora,
        "autocast": scenario.dtype != "float32",
        "sampled-token distillation": not settings["full_logit_distillation"],
        "full-vocabulary distillation": settings["distillation_topk"] is None,
        "a teacher of mixed logits": settings["teacher_regularization"] != "ema",
        "several processes": scenario.processes > 1,
        "dropout": scenario.dropout > 0,
        "hooks for a nudge": bool(scenario.nudge),
    }
    if unable := [name for name, needed in cannot.items() if needed]:
        raise NotCoveredError(f"my trainer has no {', '.join(unable)}")
