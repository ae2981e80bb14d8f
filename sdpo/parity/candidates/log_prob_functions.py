"""A loss function that starts from log-probs, under the reference's names."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sdpo.parity.candidates.argument_names import LOG_PROB_ARGUMENTS
from sdpo.parity.candidates.loss_functions import LossFunction, present
from sdpo.parity.cases.callables import signature_of
from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.cases.fresh_inputs import as_called
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.reference.loss import log_probs_from_logits, topk_log_probs

NEEDED = {
    "sampled": LOG_PROB_ARGUMENTS[:2],
    "topk_tail": LOG_PROB_ARGUMENTS[2:4],
    "topk_renorm": LOG_PROB_ARGUMENTS[2:4],
    "full_vocab": LOG_PROB_ARGUMENTS[4:],
}
"""The arguments without which a function has nothing to compute from, by mode."""


def is_from_log_probs(function: Callable[..., Any]) -> bool:
    """Whether the parameters have the reference's log-prob names."""
    return any(name in signature_of(function).parameters for name in LOG_PROB_ARGUMENTS)


class FromLogProbs(LossFunction):
    """A function whose parameters have the reference's names, from `student_log_probs` on.

    Log-probs and support are computed by the reference, so that these stages are not covered; the
    teacher's arrive without gradient, as in the reference.
    """

    inputs = (*LOG_PROB_ARGUMENTS, "response_mask")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, "loss from log-probs", function)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Loss and gradient on fresh copies of the inputs."""
        self.refuse_what_is_lacking(case)
        leaf = case.student_logits.detach().clone().requires_grad_(True)
        values = case.call.all_laid_out(self.log_probs(case, leaf))
        for name in NEEDED[case.mode]:
            if not self.takes(name):
                raise NotCoveredError(f"takes no {name}, the case ({case.mode}) needs it")
        tensors = {name: value for name, value in values.items() if self.takes(name)}
        given = as_called(case)
        optional = self.optional_tensors(given)
        tensors["response_mask"] = given.response_mask
        arguments = {**tensors, **optional, **self.settings(case, self.passed)}
        for name in LOG_PROB_ARGUMENTS:
            parameter = self.parameters.get(name)
            if parameter is None or name in arguments:
                continue
            if parameter.default is parameter.empty:
                arguments[name] = None
        inputs = present(tensors | optional)
        return self.call_on(case, arguments, (), inputs, (leaf, None))

    @property
    def passed(self) -> tuple[str, ...]:
        """The settings that can be arguments: the temperature is already in the log-probs."""
        return tuple(name for name in LOSS_SETTINGS if name != "temperature")

    @property
    def needed(self) -> tuple[str, ...]:
        """The settings that the log-probs given do not say."""
        said = {"full_logit_distillation", "distillation_topk"}
        return tuple(name for name in self.passed if name not in said)

    def log_probs(self, case: LossCase, leaf: Tensor) -> dict[str, Tensor]:
        """Log-probs that the function starts from, with a graph to the student's logits `leaf`."""
        return log_prob_inputs(case, leaf)


def log_prob_inputs(case: LossCase, leaf: Tensor) -> dict[str, Tensor]:
    """The reference's log-probs on a case, with a graph to the student's logits `leaf`."""
    student = leaf / case.config.temperature
    teacher = case.teacher_logits / case.config.temperature
    values = {
        "student_log_probs": log_probs_from_logits(student, case.responses),
        "teacher_log_probs": log_probs_from_logits(teacher, case.responses),
    }
    if case.mode == "full_vocab":
        values["student_all_log_probs"] = student.log_softmax(-1)
        values["teacher_all_log_probs"] = teacher.log_softmax(-1)
    elif case.config.distillation_topk is not None and case.mode != "sampled":
        chosen, indices = topk_log_probs(
            student, case.config.distillation_topk, case.recorded.get("support.indices")
        )
        values["student_topk_log_probs"] = chosen
        values["teacher_topk_log_probs"], _ = topk_log_probs(
            teacher, case.config.distillation_topk, indices
        )
    return values
