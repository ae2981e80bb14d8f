"""Logits of generated cases: ordinary ones, and those at which losses are known to go wrong."""

import torch
from torch import Tensor

SPREAD = 2.0
FAR = 30.0
PEAK = 12.0
Sides = tuple[Tensor, Tensor]
"""Logits `(B, T, V)` of student and teacher."""


def make_logits(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> Sides:
    """Draw the logits of both sides, as float32.

    Args:
        kind: `ordinary`; `tied`: half steps, so that many are equal; `nearly tied`: of these some
            differ by a rounding; `-inf`: an entry that the teacher, or both sides, cannot give;
            `far apart`: hundreds apart; `equal sides`; `peaked`: nearly all mass on an entry.
        shape: `(B, T, V)`.
        generator: of the random numbers.

    Raises:
        ValueError: another kind.
    """
    student = SPREAD * torch.randn(shape, generator=generator)
    teacher = 0.5 * student + SPREAD * torch.randn(shape, generator=generator)
    if kind == "ordinary":
        return student, teacher
    if kind in ("tied", "nearly tied"):
        return _tied(student, kind, generator), teacher
    if kind == "-inf":
        return _with_impossible_entries(student, teacher)
    if kind == "far apart":
        return FAR * student, FAR * teacher
    if kind == "equal sides":
        return student, student.clone()
    if kind == "peaked":
        return _peaked(student), _peaked(teacher)
    raise ValueError(f"logits {kind!r}: no such kind")


def _tied(logits: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Round to half steps; `nearly tied` moves every other one by a rounding of float32."""
    rounded = (2 * logits).round() / 2
    if kind == "tied":
        return rounded
    moved = torch.rand(logits.shape, generator=generator) < 0.5
    return torch.where(moved, rounded * (1 + 2.0**-23), rounded)


def _with_impossible_entries(student: Tensor, teacher: Tensor) -> Sides:
    """Forbid the likeliest entry of the teacher in every other token, and one of both sides."""
    student, teacher = student.clone(), teacher.clone()
    every_other = teacher[:, ::2]
    every_other.scatter_(-1, every_other.argmax(-1, keepdim=True), -torch.inf)
    if student.shape[-1] > 2:
        both = student.argmin(-1, keepdim=True)
        student.scatter_(-1, both, -torch.inf)
        teacher.scatter_(-1, both, -torch.inf)
    return student, teacher


def _peaked(logits: Tensor) -> Tensor:
    """Raise the likeliest entry."""
    return logits.scatter_add(
        -1, logits.argmax(-1, keepdim=True), torch.full((*logits.shape[:-1], 1), PEAK)
    )
