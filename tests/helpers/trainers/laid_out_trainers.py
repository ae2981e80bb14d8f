"""Trainers that lay the teacher's tokens out otherwise, or run its passes otherwise."""

from typing import Any

import torch

from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update.actor_update import response_logits
from sdpo.update.rollouts import update_batch


class Laid(SDPOTrainer):
    """Changes the teacher's tensors of every generation."""

    def laid_out(self, ids, mask, places, prompt):
        """Ids, mask and positions `(B, L)` in another layout; `prompt` is its width."""
        raise NotImplementedError

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        names = [f"teacher_{name}" for name in ("input_ids", "attention_mask", "position_ids")]
        ids, mask, places = (batch[name] for name in names)
        width = ids.shape[1] - batch["completion_ids"].shape[1]
        return batch | dict(zip(names, self.laid_out(ids, mask, places, width), strict=True))


def counted(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


class PromptPaddedRight(Laid):
    """Padding stands between prompt and answer, masked, with positions that close up over it."""

    def laid_out(self, ids, mask, places, prompt):
        order = (1 - mask[:, :prompt]).argsort(dim=1, stable=True)
        ids = torch.cat([ids[:, :prompt].gather(1, order), ids[:, prompt:]], dim=1)
        mask = torch.cat([mask[:, :prompt].gather(1, order), mask[:, prompt:]], dim=1)
        return ids, mask, counted(mask)


class PaddingSeen(PromptPaddedRight):
    """The same, and the teacher attends to that padding."""

    def laid_out(self, ids, mask, places, prompt):
        ids, mask, _ = super().laid_out(ids, mask, places, prompt)
        mask[:, :prompt] = 1
        return ids, mask, counted(mask)


class PositionsRestart(Laid):
    """Positions of the answer begin at zero again."""

    def laid_out(self, ids, mask, places, prompt):
        return ids, mask, torch.cat([places[:, :prompt], counted(mask[:, prompt:])], dim=1)


class TokenizerDecides(PromptPaddedRight):
    """Pads the teacher's prompts on the side on which the tokenizer pads that it was handed."""

    def __init__(self, *args, **kwargs):
        self.side = kwargs["processing_class"].padding_side
        super().__init__(*args, **kwargs)

    def laid_out(self, ids, mask, places, prompt):
        if self.side == "left":
            return ids, mask, places
        return super().laid_out(ids, mask, places, prompt)


class SummedOverProcesses(SDPOTrainer):
    """Gradients of several processes are added, not averaged."""

    def _scale(self, inputs):
        return super()._scale(inputs) * self.accelerator.num_processes


class OldInside(SDPOTrainer):
    """Log-probs of the student are computed anew inside the loss, before the teacher's."""

    def _self_distillation_loss(self, model, inputs):
        with torch.no_grad():
            response_logits(model, update_batch(inputs))
        return super()._self_distillation_loss(model, inputs)


def row_by_row(teacher: Any, reverse: bool) -> Any:
    """Its answers, a row at a time and each without padding in front."""

    def logits(student, batch):
        names = [f"teacher_{name}" for name in ("input_ids", "attention_mask", "position_ids")]
        rows = list(range(len(batch["responses"])))
        found = {}
        for row in reversed(rows) if reverse else rows:
            kept = batch[names[1]][row].nonzero().flatten()
            first, width = kept[0], int(batch["response_mask"][row].sum())
            end = batch[names[0]].shape[1] - batch["responses"].shape[1] + width
            given = {n: batch[n][row : row + 1, first:end] for n in names}
            with torch.no_grad():
                answer = teacher.weights.module(
                    **{n.removeprefix("teacher_"): v for n, v in given.items()}, use_cache=False
                ).logits[:, -width - 1 : -1]
            missing = batch["responses"].shape[1] - width
            found[row] = torch.nn.functional.pad(answer, (0, 0, 0, missing))
        return torch.cat([found[row] for row in rows])

    return logits


class RowByRow(SDPOTrainer):
    """The teacher answers one row after the other."""

    reverse = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        teacher: Any = self.teacher
        teacher.logits = row_by_row(teacher, self.reverse)


class RowByRowBackwards(RowByRow):
    """The last row first."""

    reverse = True


class LiveTeacher(SDPOTrainer):
    """The student answers in place of the teacher."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        teacher: Any = self.teacher
        teacher.logits = lambda student, batch: self.answer(student, batch)

    @torch.no_grad()
    def answer(self, student, batch):
        return response_logits(student, batch, "teacher_")


class AsksTwice(SDPOTrainer):
    """The teacher is also asked something whose answer is not used."""

    def _self_distillation_loss(self, model, inputs):
        teacher: Any = self.teacher
        batch = update_batch(inputs)
        with torch.no_grad():
            other = {**batch, "teacher_input_ids": batch["teacher_input_ids"].clamp(max=7)}
            response_logits(teacher.weights.module, other, "teacher_")
        return super()._self_distillation_loss(model, inputs)


def adapter_of(trainer: type) -> OwnTrainer:
    """The adapter of our trainer, with another class in its place."""

    class Adapter(OwnTrainer):
        def build(self, parts):
            import sdpo.trainer.sdpo_trainer

            real = sdpo.trainer.sdpo_trainer.SDPOTrainer
            sdpo.trainer.sdpo_trainer.SDPOTrainer = trainer  # type: ignore[misc]
            try:
                return super().build(parts)
            finally:
                sdpo.trainer.sdpo_trainer.SDPOTrainer = real  # type: ignore[misc]

    return Adapter()
