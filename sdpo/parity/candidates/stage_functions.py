"""A module or object with functions named as the stages: each is called on the reference's inputs.

Arguments are passed by name. A function takes any of the names listed for its stage:

| stage | arguments | returns |
|---|---|---|
| `log_probs` | `logits`, `responses`, `temperature` | `(B, T)`; called for each side |
| `support` | `student_logits`, `teacher_logits`, `distillation_topk`, `temperature` | indices (or None), student and teacher log-probs |
| `tail` | `log_probs`, `distillation_add_tail` | `(B, T, K+1)` or `(B, T, K)`; called for each side |
| `divergence` | `student`, `teacher`, `alpha` | `(B, T)` |
| `importance` | `per_token_loss`, `student_log_probs`, `old_log_probs`, `is_clip`, `rollout_is_weights` | `(B, T)` |
| `aggregate` | `per_token_loss`, `loss_mask`, `loss_agg_mode` | scalar |

The stages of the teacher prompt are listed in `recorded/teacher_prompts.py`.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sdpo.parity.cases.callables import call_by_name, location_of
from sdpo.parity.cases.checked_call import CandidateError, Location
from sdpo.parity.cases.loss_case import LossCase, reference_trace
from sdpo.parity.cases.returned_values import no_indices, no_tensor
from sdpo.parity.cases.stages import PROMPT_STAGES

_LOSS_STAGES = ("log_probs", "support", "tail", "divergence", "importance", "aggregate")
_EXPOSED = PROMPT_STAGES + _LOSS_STAGES


def _tensor_of(stage: str, value: Any) -> Tensor:
    """A stage's result as a tensor.

    Raises:
        CandidateError: it is none, or one whose numbers cannot be read here.
    """
    if problem := no_tensor(value):
        raise CandidateError(stage, f"returned {problem}; expected a tensor")
    return value.detach()


class StageFunctions:
    """The loss stages of a module or object."""

    kind = "stage functions"
    notes = ()

    def __init__(self, name: str, owner: Any) -> None:
        self.name, self.owner = name, owner
        self.location: Location | None = location_of(owner)
        self.stages = tuple(s for s in _EXPOSED if callable(getattr(owner, s, None)))
        places = {stage: location_of(getattr(owner, stage)) for stage in self.stages}
        self.locations = {stage: place for stage, place in places.items() if place is not None}
        self.loss_stages = tuple(s for s in self.stages if s in _LOSS_STAGES)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Value of every exposed stage, each from the reference's value of the stage before."""
        reference = reference_trace(case)
        values: dict[str, Tensor] = {}
        for stage in self.loss_stages:
            function = getattr(self.owner, stage)
            if stage == "support":
                values |= self.support(function, case)
                continue
            for name, offered in _offers(stage, case, reference).items():
                values[name] = _tensor_of(stage, call_by_name(stage, function, offered))
        return values

    def support(self, function: Callable[..., Any], case: LossCase) -> dict[str, Tensor]:
        """Result of the stage `support`: indices and both sides' log-probs."""
        if case.mode == "sampled":
            return {}
        result = call_by_name(
            "support",
            function,
            {
                "student_logits": case.student_logits.clone(),
                "teacher_logits": case.teacher_logits.clone(),
                "distillation_topk": case.config.distillation_topk,
                "temperature": case.config.temperature,
            },
        )
        if not isinstance(result, tuple) or len(result) != 3:
            raise CandidateError("support", "expected (indices or None, student, teacher)")
        indices, student, teacher = result
        sides = {
            "support.student": _tensor_of("support", student),
            "support.teacher": _tensor_of("support", teacher),
        }
        if indices is None and case.config.distillation_topk is None:
            return sides
        if indices is None:
            raise CandidateError("support", "returned no indices; distillation_topk needs them")
        chosen = _tensor_of("support", indices)
        if problem := no_indices(chosen, case.student_logits):
            raise CandidateError("support", f"returned {problem}")
        if case.config.distillation_topk is not None:
            return sides | {"support.indices": chosen}
        return {name: _in_vocabulary_order(value, chosen) for name, value in sides.items()}


def _in_vocabulary_order(values: Tensor, indices: Tensor) -> Tensor:
    """Values of the whole vocabulary, `(B, T, V)`, in its order; others stay as they are."""
    return values.gather(-1, indices.argsort(-1)) if values.shape == indices.shape else values


def _offers(
    stage: str, case: LossCase, reference: Mapping[str, Tensor]
) -> dict[str, dict[str, object]]:
    """For each value of a stage, the arguments it is computed from."""
    config = case.config
    if stage == "log_probs":
        common = {"responses": case.responses.clone(), "temperature": config.temperature}
        return {
            "log_probs.student": {"logits": case.student_logits.clone(), **common},
            "log_probs.teacher": {"logits": case.teacher_logits.clone(), **common},
        }
    if stage == "tail":
        if not case.mode.startswith("topk"):
            return {}
        flag = config.distillation_add_tail
        return {
            f"tail.{side}": {
                "log_probs": reference[f"support.{side}"].clone(),
                "distillation_add_tail": flag,
            }
            for side in ("student", "teacher")
        }
    if stage == "divergence":
        if case.mode == "sampled":
            return {}
        before = "tail" if case.mode.startswith("topk") else "support"
        sides = {side: reference[f"{before}.{side}"].clone() for side in ("student", "teacher")}
        return {"divergence": {**sides, "alpha": config.alpha}}
    if stage == "importance":
        return {
            "importance": {
                "per_token_loss": reference["divergence"].clone(),
                "student_log_probs": reference["log_probs.student"].clone(),
                "old_log_probs": case.old_log_probs,
                "is_clip": config.is_clip,
                "rollout_is_weights": case.rollout_is_weights,
            }
        }
    return {
        "aggregate": {
            "per_token_loss": reference["importance"].clone(),
            "loss_mask": reference["loss_mask"].clone(),
            "loss_agg_mode": config.loss_agg_mode,
        }
    }
