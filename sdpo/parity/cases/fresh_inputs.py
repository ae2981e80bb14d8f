"""Fresh tensors for a call of a loss: copies of a case's, in the form that the call asks for."""

from dataclasses import replace

from torch import Tensor

from sdpo.parity.cases.call_conditions import PLAIN_CALL
from sdpo.parity.cases.loss_case import LossCase

LOGITS = ("student_logits", "teacher_logits")
OTHERS = (
    "responses",
    "response_mask",
    "old_log_probs",
    "self_distillation_mask",
    "rollout_is_weights",
)


def as_called(case: LossCase) -> LossCase:
    """The case with fresh tensors, laid out as its call says.

    The student's logits require grad, the teacher's where the call says so.
    """
    call = case.call
    student = case.student_logits.detach().clone().requires_grad_(True)
    teacher = case.teacher_logits.detach().clone().requires_grad_(call.teacher_grad)
    others = {name: value for name in OTHERS if (value := getattr(case, name)) is not None}
    return replace(
        case,
        student_logits=call.laid_out(student),
        teacher_logits=call.laid_out(teacher),
        **{name: call.laid_out(value.clone()) for name, value in others.items()},
    )


def another(case: LossCase) -> LossCase:
    """Other values of the same shapes: rows and vocabulary turned round, called plainly."""

    def turned(tensor: Tensor) -> Tensor:
        return tensor.flip((0, -1)) if tensor.dim() == 3 else tensor.flip(0)

    tensors = {name: getattr(case, name) for name in (*LOGITS, *OTHERS)}
    given = {name: turned(value) for name, value in tensors.items() if value is not None}
    given["responses"] = case.student_logits.shape[-1] - 1 - given["responses"]
    return replace(case, id=f"{case.id}, turned", recorded={}, call=PLAIN_CALL, **given)
