"""Stage `teacher_update`: how the self-teacher follows the student.

| `teacher_regularization` | rate | teacher |
|---|---|---|
| `ema` | above 0 | moving average of the student's weights, one step per actor update |
| `ema` | 0 | frozen: the initial weights for ever |
| `trust-region` | any | frozen weights; the *logits* lie between theirs and the live student's |

A teacher held in bfloat16 does not follow a slow average: an entry stays where it is as long as its
step rounds away. At rate 0.05, 43 % of the entries of the recorded model have not moved at all
after 20 steps, and the remaining gap is 0.586 instead of 0.95^20 = 0.358. Keep the averaged weights
in float32; `ema_stalls` says whether a dtype and a rate go together.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

TEACHER_REGULARIZATIONS = ("ema", "trust-region")


def trust_region_logits(reference_logits: Tensor, student_logits: Tensor, mix: float) -> Tensor:
    """Logits of the trust-region teacher: `reference + mix * (student - reference)`.

    Args:
        reference_logits: `(…, V)` of the frozen reference on the teacher's inputs, before
            temperature.
        student_logits: `(…, V)` of the live student on the teacher's inputs, before temperature.
        mix: share of the student, in [0, 1].

    Raises:
        ValueError: `mix` outside [0, 1].

    Source: `verl/workers/actor/dp_actor.py` 51-64 at 0e6d5106.
    """
    _check_rate(mix)
    return torch.lerp(reference_logits, student_logits, mix)


@torch.no_grad()
def ema_update(
    teacher_parameters: Iterable[Tensor], student_parameters: Iterable[Tensor], rate: float
) -> None:
    """Move every teacher parameter, in place, to `(1 - rate) * teacher + rate * student`.

    Args:
        teacher_parameters: tensors to change; floating.
        student_parameters: the same number and shapes, in the same order; any floating dtype.
        rate: share of the student, in [0, 1].

    Raises:
        ValueError: rate, number or shapes do not fit; nothing has been changed.

    Numerics: two roundings in the teacher's dtype, first of `teacher * (1 - rate)`, then of the
    sum. Another order (`lerp`) differs in the last bit.

    Source: `verl/workers/actor/dp_actor.py` 132-151 at 0e6d5106.
    """
    _check_rate(rate)
    teacher, student = list(teacher_parameters), list(student_parameters)
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"teacher ({len(teacher)} parameters) and student ({len(student)}) must have the same "
            "shapes in the same order: build the teacher as a copy of the student"
        )
    for target, source in zip(teacher, student, strict=True):
        target.mul_(1.0 - rate).add_(source.to(target.device), alpha=rate)


def ema_stalls(dtype: torch.dtype, rate: float, *, relative_gap: float = 0.01) -> bool:
    """Whether a teacher of this dtype can stop moving before it has reached the student.

    Args:
        dtype: floating dtype that the teacher's parameters are stored in.
        rate: share of the student per step, in [0, 1]; 0 moves nothing by design.
        relative_gap: distance to the student, relative to the teacher's value, that must still be
            closed.

    Returns:
        True if an entry at that distance may not move at all.

    Numerics: two roundings of at most half a unit in the last place each swallow a step of
    `rate * gap` up to about `eps` of the value, so gaps up to `eps / rate` can be frozen: 16 % for
    bfloat16 at rate 0.05, 2e-6 for float32.
    """
    _check_rate(rate)
    return rate > 0 and torch.finfo(dtype).eps / rate > relative_gap


def check_teacher(
    teacher_parameters: Iterable[Tensor] | None,
    student_parameters: Iterable[Tensor],
    *,
    teacher_regularization: str = "ema",
    teacher_update_rate: float = 0.05,
) -> None:
    """Check, before anything is changed, that the teacher can be updated as asked.

    Args:
        teacher_parameters: parameters of the teacher, or None if the student is its own teacher.
        student_parameters: parameters of the student.
        teacher_regularization: `ema` or `trust-region`.
        teacher_update_rate: share of the student, in [0, 1].

    Raises:
        ValueError: unknown regularization; rate outside [0, 1]; a trust region, or an average with
            a rate above 0, without teacher parameters of its own.
    """
    if teacher_regularization not in TEACHER_REGULARIZATIONS:
        raise ValueError(
            f"teacher_regularization must be one of {TEACHER_REGULARIZATIONS}, "
            f"not {teacher_regularization!r}"
        )
    _check_rate(teacher_update_rate)
    if teacher_regularization == "ema" and teacher_update_rate == 0:
        return
    remedy = "give a separate copy as teacher, or use ema with rate 0"
    if teacher_parameters is None:
        raise ValueError(f"{teacher_regularization} has no teacher: {remedy}")
    student = {id(parameter) for parameter in student_parameters}
    if any(id(parameter) in student for parameter in teacher_parameters):
        raise ValueError(f"{teacher_regularization}: the teacher shares the student's: {remedy}")


def teacher_update(
    teacher_parameters: Iterable[Tensor] | None,
    student_parameters: Iterable[Tensor],
    *,
    teacher_regularization: str = "ema",
    teacher_update_rate: float = 0.05,
    stepped: bool = True,
) -> None:
    """Update the teacher once, after all optimizer steps of an actor update.

    Args:
        teacher_parameters: parameters of the teacher, changed in place; None if the student is its
            own teacher.
        student_parameters: parameters of the student after the optimizer steps.
        teacher_regularization: `ema`; `trust-region` leaves the weights alone.
        teacher_update_rate: share of the student, in [0, 1]; 0 freezes the teacher.
        stepped: at least one optimizer step of this update was taken; otherwise nothing changes.

    Raises:
        ValueError: as `check_teacher` and `ema_update`; nothing has been changed. Intended
            difference: the reference finds a missing teacher only after the optimizer has stepped.

    Source: `verl/workers/actor/dp_actor.py` 132-151 at 0e6d5106.
    """
    teacher = None if teacher_parameters is None else list(teacher_parameters)
    student = list(student_parameters)
    check_teacher(
        teacher,
        student,
        teacher_regularization=teacher_regularization,
        teacher_update_rate=teacher_update_rate,
    )
    averages = teacher_regularization == "ema" and teacher_update_rate > 0
    if teacher is not None and averages and stepped:
        ema_update(teacher, student, teacher_update_rate)


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"the teacher's rate must be in [0, 1], not {rate}")
