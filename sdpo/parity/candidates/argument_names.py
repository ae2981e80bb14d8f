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
INPUT_NAMES = {
    "student_logits": (
        *("student_logits", "s_logits", "logits_student", "student_scores", "student"),
        *("policy_logits", "logits", "student_input", "student_hidden", "student_hidden_states"),
    ),
    "teacher_logits": (
        *("teacher_logits", "t_logits", "logits_teacher", "teacher_scores", "teacher"),
        *("ref_logits", "target_logits", "teacher_input", "teacher_hidden"),
        "teacher_hidden_states",
    ),
    "student_weight": ("student_weight", "student_lm_head", "student_head", "student_head_weight"),
    "teacher_weight": ("teacher_weight", "teacher_lm_head", "teacher_head", "teacher_head_weight"),
    "responses": ("responses", "response_ids", "completion_ids", "token_ids", "tokens", "actions"),
    "labels": ("labels", "target", "targets", "true_labels"),
    "response_mask": ("response_mask", "completion_mask", "loss_mask", "token_mask", "mask"),
    "old_log_probs": ("old_log_probs", "old_logps", "old_logp", "old_per_token_logps"),
    "self_distillation_mask": ("self_distillation_mask", "row_mask", "sample_mask"),
    "rollout_is_weights": ("rollout_is_weights", "rollout_weights", "is_weights"),
}
"""What inputs are called; `labels` are the responses with -100 where nothing counts, and a hidden
state with its weight stands for logits."""
CONFIG_NAMES = ("config", "cfg", "args", "loss_config", "self_distillation_config")
ALIASES = {
    "add_tail": "distillation_add_tail",
    "beta": "alpha",
    "distillation_alpha": "alpha",
    "distillation_is_clip": "is_clip",
    "distillation_temperature": "temperature",
    "kl_top_k": "distillation_topk",
    "kl_topk": "distillation_topk",
    "temp": "temperature",
    "top_k_logits": "distillation_topk",
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


def setting_of(name: str) -> str:
    """Tell which setting a parameter of this name is, under verl's name; empty if none."""
    return name if name in LOSS_SETTINGS else ALIASES.get(name, "")
