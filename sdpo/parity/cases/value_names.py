"""Names that two sides have for one thing: values of a micro-batch, settings of the reference.

A value has a name that begins with its stage (`log_probs.student`), and one of verl's
(`student_log_probs`), under which it is recorded: as `out.` and verl's name in a loss case, as
`u0.mb3.` and verl's name in an update.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class ValueName(NamedTuple):
    """One value of a micro-batch under the project's name and under verl's."""

    ours: str
    verl: str


VALUE_NAMES = (
    ValueName("log_probs.student", "student_log_probs"),
    ValueName("log_probs.teacher", "teacher_log_probs"),
    ValueName("support.indices", "student_topk_indices"),
    ValueName("support.student", "student_topk_log_probs"),
    ValueName("support.teacher", "teacher_topk_log_probs"),
    ValueName("support.student", "student_all_log_probs"),
    ValueName("support.teacher", "teacher_all_log_probs"),
    ValueName("tail.student", "student_support"),
    ValueName("tail.teacher", "teacher_support"),
    ValueName("divergence", "divergence"),
    ValueName("old_log_probs", "old_log_probs_used"),
    ValueName("importance", "per_token_loss"),
    ValueName("loss_mask", "loss_mask"),
    ValueName("aggregate", "loss"),
    ValueName("gradient", "grad_student_logits"),
    ValueName("entropy", "entropy"),
)
"""Of both kinds of support a micro-batch has one: the top-k entries, or the whole vocabulary."""


def by_our_names(values: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """The values that are under `prefix` and verl's names, under ours; others are left out."""
    return {ours: values[prefix + verl] for ours, verl in VALUE_NAMES if prefix + verl in values}


def verl_name(ours: str, *, topk: bool) -> str | None:
    """The name that verl has for a value, whose support is the top-k or everything, if any."""
    absent = "_all_log_probs" if topk else "_topk_log_probs"
    names = (name.verl for name in VALUE_NAMES if name.ours == ours and absent not in name.verl)
    return next(names, None)


def by_verl_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of one micro-batch under verl's names; what verl does not have is left out."""
    topk = "support.indices" in values
    named = {verl_name(ours, topk=topk): value for ours, value in values.items()}
    return {verl: value for verl, value in named.items() if verl is not None}


UPDATE_SETTINGS = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
    "teacher_regularization",
    "teacher_update_rate",
)
"""Loss and teacher."""

PROMPT_SETTINGS = (
    "success_reward_threshold",
    "dont_reprompt_on_self_success",
    "remove_thinking_from_demonstration",
    "include_environment_feedback",
    "environment_feedback_only_without_solution",
    "max_reprompt_len",
    "reprompt_truncation",
    "reprompt_template",
    "solution_template",
    "feedback_template",
)
"""Feedback, demonstrations and the teacher's prompt."""
