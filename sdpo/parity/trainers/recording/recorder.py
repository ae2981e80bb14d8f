"""Record what a `transformers.Trainer` does in a scripted training.

    generate ─► new update            prompts, demonstrations, masks
    compute_loss ─► new micro-batch   inputs and logits of student and teacher, by forward hooks
    clip_grad_norm_ ─► gradients      after the last micro-batch of a step, before clipping
    on_step_end ─► weights            the teacher's only when the next update's first micro-batch
                                      begins: whatever follows an optimizer step has then happened

`forward_passes.py` decides which pass is whose.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.parity.trainers.recording.adapter_base import HFTrainer, LossInputs, TrainerHooks
from sdpo.parity.trainers.recording.forward_passes import (
    EITHER,
    NEITHER,
    STUDENT,
    TEACHER,
    Passes,
    ToBatch,
    side_of,
)
from sdpo.parity.trainers.recording.hooks import Watch
from sdpo.parity.trainers.recording.nudges import OLD_LOG_PROBS, Nudge
from sdpo.parity.trainers.recording.scripted_world import Script
from sdpo.parity.trainers.recording.token_layout import MODEL_INPUTS
from sdpo.parity.trainers.recording.weights import gradients_of, weights_of
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)

HOOKS = (
    "model.generate",
    "Trainer.compute_loss",
    "forward pass of the student",
    "forward pass of the teacher",
    "Accelerator.clip_grad_norm_",
    "on_step_end",
)


class Recorder:
    """Records one run in `run`.

    Args:
        adapter: knows the trainer's teacher.
        trainer: built, not yet trained.
        script: the scripted world that it lives in.
        watch: holds the hooks.

    Attributes:
        micro: the micro-batch in progress; None outside of a loss.
        passes: the forward passes of that micro-batch.
        positions: the position ids of the latest forward pass, as the model used them.
        closed_updates: updates whose teacher has been read.
    """

    def __init__(self, adapter: TrainerHooks, trainer: HFTrainer, script: Script, watch: Watch):
        self.adapter, self.trainer, self.script, self.watch = adapter, trainer, script, watch
        self.nudge = Nudge(adapter, trainer, script.scenario)
        self.run = TrainerRun()
        self.micro: MicroBatch | None = None
        self.passes: Passes | None = None
        self.hooked: dict[int, nn.Module] = {}
        self.positions: Tensor | None = None
        self.closed_updates = 0
        self.step_open = False
        self.log_entries_read = 0

    # --- hooks ------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks in place that every trainer needs."""
        trainer, watch = self.trainer, self.watch
        watch.replace(trainer.model, "generate", self.generate)
        self._compute_loss = trainer.compute_loss
        watch.replace(trainer, "compute_loss", self.compute_loss)
        self._clip = trainer.accelerator.clip_grad_norm_
        watch.replace(trainer.accelerator, "clip_grad_norm_", self.clip)
        self.attach_to_models()
        for name in HOOKS:
            watch.expect(name)

    def attach_to_models(self) -> None:
        """Listen to student and teacher, also to a teacher that the trainer has made anew."""
        for module in (self.trainer.model, self.adapter.teacher(self.trainer)):
            if module is None or id(module) in self.hooked:
                continue
            self.hooked[id(module)] = module
            self.hook(module, self.note_forward_pass)
            for name, part in module.named_modules():
                if name.endswith("rotary_emb"):
                    self.hook(part, self.note_positions)

    def __deepcopy__(self, memo: Any) -> "Recorder":
        """Itself: a copy of a model takes the hooks of the model along."""
        return self

    def hook(self, module: nn.Module, seen: Callable[..., None]) -> None:
        """Call `seen(module, args, kwargs, output)` after each forward pass of a module."""
        self.watch.undo.append(module.register_forward_hook(seen, with_kwargs=True).remove)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Answer as the sampler; an update begins with the first call of a generation."""
        self.watch.calls["model.generate"] += 1
        result = self.script.generate(*args, **kwargs)
        if self.script.generation == len(self.run.updates):
            self.run.updates.append(Update())
        return result

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Record everything that happens in the loss of one micro-batch."""
        self.watch.calls["Trainer.compute_loss"] += 1
        self.nudge.inputs(inputs)
        self.attach_to_models()
        micro = self.micro = self.begin_micro_batch(inputs)
        passes = self.passes = self.passes_of(micro, inputs)
        loss = self._compute_loss(model, inputs, *args, **kwargs)
        self.note_answers(micro, passes)
        if self.adapter.returns_unscaled_loss:
            self.values({"aggregate": loss[0] if isinstance(loss, tuple) else loss})
        self.micro = None
        if inputs.get("self_distillation_mask") is not None:
            self.prompts_of("distillation_mask", micro, inputs["self_distillation_mask"].tolist())
        return loss

    def begin_micro_batch(self, inputs: LossInputs) -> MicroBatch:
        """Begin a micro-batch, and the step, update or run whose first one it is."""
        if len(self.run.updates) > self.closed_updates + 1:
            self.close_update()
        if not self.run.initial:
            self.run.initial = weights_of(self.trainer.model, trained_only=True)
            self.run.initial_teacher = self.adapter.teacher_weights(self.trainer)
        steps = self.run.updates[-1].steps
        if not self.step_open:
            steps.append(OptimizerStep())
            self.step_open = True
        responses = inputs["completion_ids"]
        micro = MicroBatch([self.script.row_of(ids) for ids in responses.tolist()])
        steps[-1].micro_batches.append(micro)
        batch = {"responses": responses, "response_mask": inputs["completion_mask"]}
        old = [inputs[name] for name in OLD_LOG_PROBS if inputs.get(name) is not None]
        batch |= {"old_log_probs": old[0]} if old else {}
        micro.inputs.update({name: _copied(value) for name, value in batch.items()})
        return micro

    def passes_of(self, micro: MicroBatch, inputs: LossInputs) -> Passes:
        """Make the container for the forward passes of a micro-batch."""
        completions = self.script.completions[self.script.generation]
        width, signal = inputs["completion_ids"].shape[1], inputs.get("self_distillation_mask")
        return Passes([completions[row] for row in micro.rows], width, signal)

    def note_positions(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note the position ids that a model's rotary embedding got, whoever chose them."""
        self.positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)

    def note_forward_pass(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note a forward pass, if it is an answer of student or teacher."""
        if self.micro is None or self.passes is None:
            return
        side = side_of(self.adapter, self.trainer, module)
        with_gradient = torch.is_grad_enabled()
        if side == NEITHER:
            return
        model_inputs = dict(zip(MODEL_INPUTS, args, strict=False)) | kwargs
        model_inputs = {
            name: model_inputs[name] for name in MODEL_INPUTS if model_inputs.get(name) is not None
        }
        if side == STUDENT and not with_gradient:
            self.passes.add_other_student_pass(model_inputs)
            return
        logits = output.logits if hasattr(output, "logits") else output[0]
        assert self.positions is not None, "the tiny model always asks for positions"
        to_batch = self.passes.add(side, model_inputs, self.positions, logits)
        if side == EITHER:
            side = STUDENT if with_gradient else TEACHER
        self.watch.calls[f"forward pass of the {side}"] += 1
        if side == STUDENT and logits.requires_grad:
            self.record_gradient(self.micro, logits, to_batch)

    def note_answers(self, micro: MicroBatch, passes: Passes) -> None:
        """Put the passes of each side together, once the loss is computed."""
        passes.check_teacher()
        for side, start in ((STUDENT, ""), (TEACHER, "teacher_")):
            answer = passes.together(side)
            if answer is None:
                continue
            micro.logits.setdefault(side, answer.logits)  # a hook of the adapter comes first
            micro.inputs.update({start + name: value for name, value in answer.inputs.items()})
            if side == TEACHER:
                self.prompts_of("teacher_tokens", micro, answer.tokens)

    def record_gradient(self, micro: MicroBatch, logits: Tensor, to_batch: ToBatch) -> None:
        """Record the gradient that arrives at some logits, added up over their uses."""

        def arrived(gradient: Tensor) -> None:
            of_batch = to_batch(gradient)
            before = micro.logits.get("gradient")
            micro.logits["gradient"] = of_batch if before is None else before + of_batch

        logits.register_hook(arrived)

    def clip(self, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the gradients of a step before they are clipped."""
        self.watch.calls["Accelerator.clip_grad_norm_"] += 1
        step = self.run.updates[-1].steps[-1]
        first = step.grad_norm is None
        if first:
            step.gradient = gradients_of(self.trainer.model)
            self.note_teacher_gradient()
        norm = self._clip(parameters, *args, **kwargs)
        step.grad_norm = float(norm) if first else step.grad_norm
        return norm

    def note_teacher_gradient(self) -> None:
        """Note the largest gradient found on weights that are the teacher's alone."""
        teacher = self.adapter.teacher(self.trainer)
        if teacher is None or teacher is self.trainer.model:
            return
        sizes = [p.grad.abs().max().item() for p in teacher.parameters() if p.grad is not None]
        largest = torch.tensor([self.run.teacher_gradient or 0.0, *sizes]).max()
        self.run.teacher_gradient = largest.item()  # NaN if any is, which Python's max passes over

    def end_step(self) -> None:
        """Record the weights after an optimizer step and what callbacks do after it."""
        self.watch.calls["on_step_end"] += 1
        self.run.updates[-1].steps[-1].parameters = weights_of(
            self.trainer.model, trained_only=True
        )
        self.step_open = False

    def close_update(self) -> None:
        """Read the teacher and the logged values of the oldest update that is not closed."""
        update, history = self.run.updates[self.closed_updates], self.trainer.state.log_history
        self.closed_updates += 1
        update.teacher = self.adapter.teacher_weights(self.trainer)
        steps = [step for update in self.run.updates for step in update.steps]
        for entry in history[self.log_entries_read :]:
            if "train_runtime" not in entry and 0 < entry["step"] <= len(steps):
                logged = steps[entry["step"] - 1].logged
                logged |= {k: float(v) for k, v in entry.items() if _is_number(v)}
        self.log_entries_read = len(history)

    # --- what the hooks of an adapter say ---------------------------------------------------

    def values(self, stages: Mapping[str, Tensor | None]) -> None:
        """Record stage values of the micro-batch in progress; outside of one they are ignored."""
        if self.micro is not None:
            copies = {name: _copied(v) for name, v in stages.items() if v is not None}
            self.micro.values.update(copies)

    def prompts(self, stage: str, rows: Sequence[Any]) -> None:
        """Record a prompt stage of the latest generation, one value per row."""
        self.run.updates[-1].prompt[stage] = list(rows)

    def prompt(self, stage: str, value: Any) -> None:
        """Record a prompt stage of the next row of the latest generation."""
        self.run.updates[-1].prompt.setdefault(stage, []).append(value)

    def prompts_of(self, stage: str, micro: MicroBatch, values: Sequence[Any]) -> None:
        """Record a prompt stage of the rows of a micro-batch."""
        size = len(self.script.present.rollouts)
        rows = self.run.updates[-1].prompt.setdefault(stage, [None] * size)
        for row, value in zip(micro.rows, values, strict=True):
            rows[row] = value


def _copied(tensor: Tensor) -> Tensor:
    """Copy a tensor without its graph."""
    return tensor.detach().clone()


def _is_number(value: Any) -> bool:
    """Whether a logged value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
