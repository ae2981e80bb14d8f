"""Writes down what a `transformers.Trainer` does in a scripted training.

    generate ─► new update            prompts, demonstrations, masks
    compute_loss ─► new micro-batch   inputs and logits of student and teacher, by forward hooks
    clip_grad_norm_ ─► gradients      after the last micro-batch of a step, before clipping
    on_step_end ─► weights            the teacher's only when the next update's first micro-batch
                                      begins: whatever follows an optimizer step has then happened

Which pass is whose `forward_passes.py` says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.lockstep.replica import weights_of
from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.trainers.recording.adapter_base import TrainerHooks
from sdpo.parity.trainers.recording.forward_passes import (
    EITHER,
    NEITHER,
    STUDENT,
    TEACHER,
    Passes,
    ToBatch,
    side_of,
)
from sdpo.parity.trainers.recording.handed_over import fingerprint
from sdpo.parity.trainers.recording.hooks import Watch
from sdpo.parity.trainers.recording.scripted_world import Script
from sdpo.parity.trainers.recording.token_layout import MODEL_INPUTS
from sdpo.parity.trainers.recording.weights import gradients
from sdpo.parity.trainers.scenarios.tiny_model import nudge
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)

OLD_LOG_PROBS = ("old_per_token_logps", "old_log_probs")
DISTILLATION_MASK = ("self_distillation_mask",)
LOWER = 0.25
"""By which old log-probs are lowered: ratios grow by 1.28, less than the usual cap."""
FURTHER = ("rollout_is_weights", "response_mask")
WEIGHT = 0.5
"""Of every token, where the weights of rollouts are moved alone."""
HOOKS = (
    "model.generate",
    "Trainer.compute_loss",
    "forward pass of the student",
    "forward pass of the teacher",
    "Accelerator.clip_grad_norm_",
    "on_step_end",
)


class Recorder:
    """Records one run.

    Args:
        adapter: knows the trainer's teacher.
        trainer: built, not yet trained.
        script: the scripted world that it lives in.
        watch: holds the hooks.
    """

    def __init__(self, adapter: TrainerHooks, trainer: Any, script: Script, watch: Watch):
        self.adapter, self.trainer, self.script, self.watch = adapter, trainer, script, watch
        self.run = TrainerRun()
        self.micro: MicroBatch | None = None
        self.passes: Passes | None = None
        self.hooked: dict[int, nn.Module] = {}
        self.positions: Tensor | None = None
        self.closed = 0
        self.step_open = False
        self.logged = 0

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
            self.hook(module, self.forwarded)
            for name, part in module.named_modules():
                if name.endswith("rotary_emb"):
                    self.hook(part, self.placed)

    def __deepcopy__(self, memo: Any) -> "Recorder":
        """Itself: a copy of a model takes the hooks of the model along."""
        return self

    def nudge_weights(self) -> None:
        """Move a weight of student or teacher alone, if the scenario says so.

        Raises:
            NotCoveredError: they are one module.
        """
        sides = {"student": self.trainer.model, "teacher": self.adapter.teacher(self.trainer)}
        side = sides.get(self.script.scenario.nudge)
        if side is None:
            return
        if sides["student"] is sides["teacher"]:
            raise NotCoveredError("student and teacher are one module")
        before = fingerprint(side.state_dict())
        nudge(side)
        self.nudged(before, fingerprint(side.state_dict()))

    def nudged(self, before: str, after: str) -> None:
        """Note that a value was moved, by its fingerprints, if it was."""
        if before != after:
            self.run.given["nudge"] = self.run.given.get("nudge", "") + after

    def nudge_inputs(self, inputs: dict[str, Any]) -> None:
        """Move an input of the loss alone, if the scenario says so.

        Raises:
            NotCoveredError: the trainer does not pass it to `compute_loss`.
        """
        wanted = self.script.scenario.nudge
        if wanted in FURTHER:
            self.further_input(inputs, wanted)
        names = {"old_log_probs": OLD_LOG_PROBS, "distillation_mask": DISTILLATION_MASK}.get(wanted)
        if names is None:
            return
        given = [name for name in names if inputs.get(name) is not None]
        if not given:
            raise NotCoveredError(f"compute_loss is not given {' or '.join(names)}")
        for name in given:
            value, before = inputs[name].clone(), fingerprint(inputs[name])
            if wanted == "old_log_probs":
                value -= LOWER
            else:
                value[0] = 0
            inputs[name] = value
            self.nudged(before, fingerprint(value))

    def further_input(self, inputs: dict[str, Any], wanted: str) -> None:
        """Give an input that only other samplers and tools have, under the trainer's name of it.

        Raises:
            NotCoveredError: the trainer has none.
        """
        name = self.adapter.further_inputs.get(wanted)
        if name is None:
            raise NotCoveredError(f"the trainer has no input for {wanted}")
        mask = inputs["completion_mask"]
        usual = torch.ones(mask.shape) if wanted == "rollout_is_weights" else torch.ones_like(mask)
        if wanted == "rollout_is_weights":
            inputs[name] = usual * WEIGHT
        else:
            inputs[name] = usual.index_fill(1, torch.tensor([1]), 0)
        self.nudged(fingerprint(usual * mask), fingerprint(inputs[name] * mask))

    def hook(self, module: nn.Module, seen: Any) -> None:
        """Call `seen(module, args, kwargs, output)` after each forward pass of a module."""
        self.watch.undo.append(module.register_forward_hook(seen, with_kwargs=True).remove)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """The sampler is asked: an update begins with the first call of a generation."""
        self.watch.calls["model.generate"] += 1
        result = self.script.generate(*args, **kwargs)
        if self.script.generation == len(self.run.updates):
            self.run.updates.append(Update())
        return result

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Record everything that happens in the loss of one micro-batch."""
        self.watch.calls["Trainer.compute_loss"] += 1
        self.nudge_inputs(inputs)
        self.attach_to_models()
        micro = self.micro = self.open(inputs)
        passes = self.passes = self.passes_of(micro, inputs)
        loss = self._compute_loss(model, inputs, *args, **kwargs)
        self.answered(micro, passes)
        if self.adapter.returns_unscaled_loss:
            self.values({"aggregate": loss[0] if isinstance(loss, tuple) else loss})
        self.micro = None
        if inputs.get("self_distillation_mask") is not None:
            self.by_row("distillation_mask", micro, inputs["self_distillation_mask"].tolist())
        return loss

    def open(self, inputs: dict[str, Any]) -> MicroBatch:
        """Begin a micro-batch, and with it whatever else is due: a step, an update, the run."""
        if len(self.run.updates) > self.closed + 1:
            self.close_update()
        if not self.run.initial:
            self.run.initial = weights_of(self.trainer.model)
            self.run.initial_teacher = self.adapter.teacher_weights(self.trainer)
        steps = self.run.updates[-1].steps
        if not self.step_open:
            steps.append(OptimizerStep())
            self.step_open = True
        responses = inputs["completion_ids"]
        micro = MicroBatch([self.script.row_of(ids) for ids in responses.tolist()])
        steps[-1].micro_batches.append(micro)
        found = {"responses": responses, "response_mask": inputs["completion_mask"]}
        old = [inputs[name] for name in OLD_LOG_PROBS if inputs.get(name) is not None]
        found |= {"old_log_probs": old[0]} if old else {}
        micro.inputs.update({name: copied(value) for name, value in found.items()})
        return micro

    def passes_of(self, micro: MicroBatch, inputs: dict[str, Any]) -> Passes:
        """Room for the passes of a micro-batch."""
        completions = self.script.completions[self.script.generation]
        width, signal = inputs["completion_ids"].shape[1], inputs.get("self_distillation_mask")
        return Passes([completions[row] for row in micro.rows], width, signal)

    def placed(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The model turned positions into angles: those are in effect, whoever chose them."""
        self.positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)

    def forwarded(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A model answered: note it, if it is one side's answer."""
        if self.micro is None or self.passes is None:
            return
        side = side_of(self.adapter, self.trainer, module)
        with_gradient = torch.is_grad_enabled()
        if side == NEITHER:
            return
        given = dict(zip(MODEL_INPUTS, args, strict=False)) | kwargs
        given = {name: given[name] for name in MODEL_INPUTS if given.get(name) is not None}
        if side == STUDENT and not with_gradient:
            self.passes.add_aside(given)
            return
        logits = output.logits if hasattr(output, "logits") else output[0]
        assert self.positions is not None, "the tiny model always asks for positions"
        to_batch = self.passes.add(side, given, self.positions, logits)
        if side == EITHER:
            side = STUDENT if with_gradient else TEACHER
        self.watch.calls[f"forward pass of the {side}"] += 1
        if side == STUDENT and logits.requires_grad:
            self.follow(self.micro, logits, to_batch)

    def answered(self, micro: MicroBatch, passes: Passes) -> None:
        """The loss is done: put the passes of each side together."""
        passes.check_teacher()
        for side, start in ((STUDENT, ""), (TEACHER, "teacher_")):
            answer = passes.together(side)
            if answer is None:
                continue
            micro.logits.setdefault(side, answer.logits)  # a hook of the adapter comes first
            micro.inputs.update({start + name: value for name, value in answer.inputs.items()})
            if side == TEACHER:
                self.by_row("teacher_tokens", micro, answer.tokens)

    def follow(self, micro: MicroBatch, logits: Tensor, to_batch: ToBatch) -> None:
        """Record the gradient that comes back to some logits; of several uses the sum."""

        def arrived(gradient: Tensor) -> None:
            found = to_batch(gradient)
            before = micro.logits.get("gradient")
            micro.logits["gradient"] = found if before is None else before + found

        logits.register_hook(arrived)

    def clip(self, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        """All micro-batches of a step are done: record the gradients before they are clipped."""
        self.watch.calls["Accelerator.clip_grad_norm_"] += 1
        step = self.run.updates[-1].steps[-1]
        first = step.grad_norm is None
        if first:
            step.gradient = gradients(self.trainer.model)
            self.look_at_teacher()
        norm = self._clip(parameters, *args, **kwargs)
        step.grad_norm = float(norm) if first else step.grad_norm
        return norm

    def look_at_teacher(self) -> None:
        """Note the largest gradient on weights that are the teacher's alone."""
        teacher = self.adapter.teacher(self.trainer)
        if teacher is None or teacher is self.trainer.model:
            return
        found = [p.grad.abs().max().item() for p in teacher.parameters() if p.grad is not None]
        largest = torch.tensor([self.run.teacher_gradient or 0.0, *found]).max()
        self.run.teacher_gradient = largest.item()  # NaN if any is, which Python's max passes over

    def stepped(self) -> None:
        """The optimizer step, and what callbacks do after it, is done."""
        self.watch.calls["on_step_end"] += 1
        self.run.updates[-1].steps[-1].parameters = weights_of(self.trainer.model)
        self.step_open = False

    def close_update(self) -> None:
        """Read what the oldest update that is still open left behind."""
        update, history = self.run.updates[self.closed], self.trainer.state.log_history
        self.closed += 1
        update.teacher = self.adapter.teacher_weights(self.trainer)
        steps = [step for update in self.run.updates for step in update.steps]
        for entry in history[self.logged :]:
            if "train_runtime" not in entry and 0 < entry["step"] <= len(steps):
                logged = steps[entry["step"] - 1].logged
                logged |= {k: float(v) for k, v in entry.items() if is_number(v)}
        self.logged = len(history)

    # --- what the hooks of an adapter say ---------------------------------------------------

    def values(self, stages: Mapping[str, Tensor | None]) -> None:
        """Stage values of the micro-batch in progress; outside of one they are not recorded."""
        if self.micro is not None:
            found = {name: copied(v) for name, v in stages.items() if v is not None}
            self.micro.values.update(found)

    def prompts(self, stage: str, rows: Sequence[Any]) -> None:
        """A prompt stage of the generation that was sampled last, one value per row."""
        self.run.updates[-1].prompt[stage] = list(rows)

    def prompt(self, stage: str, value: Any) -> None:
        """A prompt stage of the next row of the generation that was sampled last."""
        self.run.updates[-1].prompt.setdefault(stage, []).append(value)

    def by_row(self, stage: str, micro: MicroBatch, found: Sequence[Any]) -> None:
        """A prompt stage of the rows of a micro-batch."""
        size = len(self.script.present.rollouts)
        rows = self.run.updates[-1].prompt.setdefault(stage, [None] * size)
        for row, value in zip(micro.rows, found, strict=True):
            rows[row] = value


def copied(tensor: Tensor) -> Tensor:
    """A copy without graph."""
    return tensor.detach().clone()


def is_number(value: Any) -> bool:
    """Whether a logged value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
