"""Whole actor updates through the fork's actor, its values under the names of the recording."""

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

from torch import Tensor, nn

from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, StageTrace
from sdpo.parity.cases.value_names import by_our_names
from sdpo.parity.live_fork.losses import LossCallError, watched_aggregation
from sdpo.parity.live_fork.modules import DP_ACTOR, live_function, live_module
from sdpo.parity.live_fork.one_process import one_process
from sdpo.parity.live_fork.settings import LiveActor, Settings, live_actor

SIDES = tuple(
    f"{side}_{kind}log_probs" for side in ("student", "teacher") for kind in ("", "topk_", "all_")
)
"""What the actor hands to the loss, under names that the recording has too."""

STUDENT_OUTPUTS = {"topk_indices": "student_topk_indices", "entropys": "entropy"}
"""Further outputs of the student's forward pass, and their names in the recording."""

STAGE_OF_WEIGHTS = {"actor": "optimizer", "teacher": "teacher_update"}
"""Stages that the weights after an update belong to, by the recording's name of the module."""

Tensors = dict[str, Tensor]
Metrics = dict[str, object]
Groups = list[list[list[int]]]


def live_update_actor(
    actor: Settings,
    distillation: Settings,
    student: nn.Module,
    optimizer: object,
    teacher: nn.Module | None,
    *,
    trust_region: bool = False,
) -> "WatchedActor":
    """The fork's actor with its teacher, watched.

    Args:
        actor: settings of the update, as recorded.
        distillation: settings of loss and teacher.
        student: the model that learns.
        optimizer: of its parameters.
        teacher: a model of its own, or None.
        trust_region: mix the teacher's logits with those of the student.
    """
    with one_process():
        made = live_actor(actor, distillation, student, optimizer)
        if teacher is not None:
            made.teacher_module = teacher
            if trust_region:
                kind = live_function(DP_ACTOR, "TrustRegionTeacher")
                made.teacher_module = kind(teacher, student, distillation["teacher_update_rate"])
    return WatchedActor(made)


def listed(metric: Any) -> list[float]:
    """A metric of the fork as a list: it logs one number, or one for each step."""
    return [float(entry) for entry in (metric if isinstance(metric, list) else [metric])]


def last_of(moments: Sequence[Moment], step: int) -> Moment:
    """The last micro-batch of an optimizer step."""
    return [moment for moment in moments if moment.step == step][-1]


class WatchedActor:
    """Notes what passes through the fork's actor.

    Attributes:
        tensors: values under the names of the recording, `u0.mb0.loss` and so on.
        moments: per update its micro-batches.
        grad_norms: per update the gradient's norm at each optimizer step.
        groups: of the last update, per optimizer step the rows of each dynamic micro-batch.
    """

    def __init__(self, actor: LiveActor) -> None:
        self.actor = actor
        self.tensors: Tensors = {}
        self.moments: list[list[Moment]] = []
        self.grad_norms: list[list[float]] = []
        self.groups: Groups = []
        self._update = self._micro_batch = self._step = self._rows = 0
        self._outputs: list[Mapping[str, Tensor]] = []
        self._real_forward = actor._forward_micro_batch
        self._real_step = actor._optimizer_step
        self._real_loss = live_function(DP_ACTOR, "compute_self_distillation_loss")
        self._real_groups = live_function(DP_ACTOR, "prepare_dynamic_batch")

    def update(self, batch: Mapping[str, Tensor], temperature: float) -> Metrics:
        """One update on a batch; the metrics that the fork logs.

        Raises:
            LossCallError: the loss does not call the aggregation once.
        """
        self._micro_batch = self._step = 0
        self._rows, self.groups = len(next(iter(batch.values()))), []
        self.moments.append([])
        data = live_module("verl").DataProto.from_dict(
            tensors={name: tensor.clone() for name, tensor in batch.items()},
            meta_info={"temperature": temperature},
        )
        code = live_module(DP_ACTOR)
        with (
            one_process(),
            mock.patch.object(self.actor, "_forward_micro_batch", self._forward),
            mock.patch.object(self.actor, "_optimizer_step", self._optimizer_step),
            mock.patch.object(code, "compute_self_distillation_loss", self._loss),
            mock.patch.object(code, "prepare_dynamic_batch", self._dynamic_batch),
        ):
            metrics = self.actor.update_policy(data)
        teacher = self.actor.teacher_module
        modules = {
            "actor": self.actor.actor_module,
            "teacher": getattr(teacher, "ref_module", teacher),
        }
        for label, module in modules.items():
            for name, value in ({} if module is None else module.state_dict()).items():
                self._put(label, name, value)
        self._update += 1
        self.grad_norms.append(listed(metrics["actor/grad_norm"]))
        return metrics

    def trace(self) -> StageTrace:
        """All values by their places."""
        trace = StageTrace()
        for name, tensor in self.tensors.items():
            update, part, value = name.split(".", 2)
            moments = self.moments[int(update.removeprefix("u"))]
            if part.startswith("mb"):
                moment = moments[int(part.removeprefix("mb"))]
                trace.put(moment, by_our_names({value: tensor}))
            elif part.startswith("mini"):
                moment = last_of(moments, int(part.removeprefix("mini")))
                trace.put(moment, {value.removeprefix("grad."): tensor}, "accumulate")
            else:
                trace.put(moments[-1], {value: tensor}, STAGE_OF_WEIGHTS[part])
        for moments, norms in zip(self.moments, self.grad_norms, strict=True):
            for step, norm in enumerate(norms):
                trace.put(last_of(moments, step), {GRAD_NORM: norm}, NO_STAGE)
        return trace

    def _put(self, label: str, name: str, value: Tensor | None) -> None:
        if value is not None:
            self.tensors[f"u{self._update}.{label}.{name}"] = value.detach().clone()

    def _forward(self, *arguments: object, **further: object) -> Mapping[str, Tensor]:
        self._outputs = [*self._outputs[-1:], self._real_forward(*arguments, **further)]
        return self._outputs[-1]

    def _loss(self, **arguments: Any) -> tuple[Tensor, object]:
        """The fork's loss of a micro-batch, with what goes in and out of it noted."""
        with watched_aggregation() as calls:
            returned = self._real_loss(**arguments)
        if len(calls.matrices) != 1:
            raise LossCallError(
                "compute_self_distillation_loss called agg_loss "
                f"{len(calls.matrices)} times; expected once"
            )
        label = f"mb{self._micro_batch}"
        self._micro_batch += 1
        moments = self.moments[-1]
        of_step = sum(moment.step == self._step for moment in moments)
        moments.append(Moment(self._update, self._step, of_step))
        values: dict[str, Tensor | None] = {name: arguments.get(name) for name in SIDES}
        values |= {
            "old_log_probs_used": arguments["old_log_probs"],
            "per_token_loss": calls.matrices[0],
            "loss_mask": calls.masks[0],
            "loss": returned[0],
        }
        student = self._outputs[-2]  # then the teacher's
        values |= {name: student.get(theirs) for theirs, name in STUDENT_OUTPUTS.items()}
        for name, value in values.items():
            self._put(label, name, value)
        return returned

    def _optimizer_step(self) -> Tensor:
        for name, parameter in self.actor.actor_module.named_parameters():
            self._put(f"mini{self._step}", f"grad.{name}", parameter.grad)
        self._step += 1
        return self._real_step()

    def _dynamic_batch(self, *arguments: object, **further: object) -> object:
        """The fork's groups of a mini-batch, noted as rows of the whole batch."""
        micro_batches, rows = self._real_groups(*arguments, **further)
        size = self.actor.config.ppo_mini_batch_size
        first = len(self.groups) % -(-self._rows // size) * size
        self.groups.append([[first + row for row in group] for group in rows])
        return micro_batches, rows
