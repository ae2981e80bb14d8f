"""The names by which arguments of a loss function are known."""

from sdpo.parity.cases.loss_case import LOSS_SETTINGS

LOGITS_ARGUMENTS = ("student_logits", "teacher_logits", "responses", "response_mask")
OPTIONAL_TENSORS = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
LOG_PROB_ARGUMENTS = (
    "student_log_probs",
    "teacher_log_probs",
    "student_topk_log_probs",
    "teacher_topk_log_probs",
    "student_all_log_probs",
    "teacher_all_log_probs",
)
CONFIG_NAMES = ("config", "self_distillation_config")
ALIASES = {
    "add_tail": "distillation_add_tail",
    "topk": "distillation_topk",
    "top_k": "distillation_topk",
    "k": "distillation_topk",
    "full_logit": "full_logit_distillation",
    "agg_mode": "loss_agg_mode",
    "aggregation": "loss_agg_mode",
    "clip": "is_clip",
    "kl_alpha": "alpha",
    "tau": "temperature",
}
OFFERED = {
    *LOGITS_ARGUMENTS,
    *OPTIONAL_TENSORS,
    *LOG_PROB_ARGUMENTS,
    *CONFIG_NAMES,
    *LOSS_SETTINGS,
    *ALIASES,
}
"""Every name that a case has a value for."""
