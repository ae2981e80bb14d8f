"""KL(teacher‖student) with the mean over tokens, in the shapes that people write."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def _divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    student = (student / temperature).log_softmax(-1)
    teacher = (teacher.detach() / temperature).log_softmax(-1)
    terms = teacher.exp() * (teacher - student)
    per_token = torch.where(teacher == -torch.inf, torch.zeros_like(terms), terms).sum(-1)
    kept = torch.where(mask.bool(), per_token, torch.zeros_like(per_token))
    return kept.sum() / (mask.sum() + 1e-8)


def renamed(t_logits, s_logits, mask, tau=1.0):
    return _divergence(s_logits, t_logits, mask, tau)


def with_labels(student_logits, teacher_logits, labels, temperature=1.0):
    return _divergence(student_logits, teacher_logits, labels != -100, temperature)


def without_mask(student_logits, teacher_logits):
    return _divergence(student_logits, teacher_logits, torch.ones(student_logits.shape[:2]))


def from_hidden_states(
    student_input, student_weight, teacher_input, teacher_weight, completion_mask
):
    student, teacher = student_input @ student_weight.T, teacher_input @ teacher_weight.T
    return _divergence(student, teacher, completion_mask)


@dataclass
class Settings:
    """An own configuration object."""

    tau: float
    verbose: bool = False


def with_settings(student_logits, teacher_logits, mask, settings: Settings):
    return _divergence(student_logits, teacher_logits, mask, settings.tau)


def in_a_mapping(s_logits, t_logits, mask):
    return {"loss": _divergence(s_logits, t_logits, mask), "tokens": mask.sum()}


class Module(nn.Module):
    """Settings are arguments of `__init__`."""

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student_logits, teacher_logits, responses, response_mask):
        return _divergence(student_logits, teacher_logits, response_mask, self.temperature)


class Plain:
    """The same without torch's class."""

    def __init__(self, tau: float, name: str = "plain"):
        self.tau, self.name = tau, name

    def __call__(self, s_logits, t_logits, mask):
        return _divergence(s_logits, t_logits, mask, self.tau)


def unknown(student_logits, teacher_logits, mask, gizmo, tau=1.0):
    return _divergence(student_logits, teacher_logits, mask, tau) * gizmo


CORRECT = {
    "renamed": "argument 's_logits' is taken as 'student_logits'",
    "with_labels": "argument",
    "without_mask": "",
    "from_hidden_states": "argument 'student_input' is taken as 'student_logits'",
    "with_settings": "argument 'settings' is taken as 'config'",
    "in_a_mapping": "argument 'mask' is taken as 'response_mask'",
    "Module": "",
    "Plain": "argument 's_logits' is taken as 'student_logits'",
}
"""The shapes, and a note that each gets; empty for none."""
