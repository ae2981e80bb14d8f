"""Settings of the reference by what they act on, under its names."""

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
