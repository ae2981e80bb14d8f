"""Stand-in: the loss and its aggregation."""

from sdpo.reference import loss

SETTINGS = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
)
ARGUMENTS = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
LOG_PROBS = ("topk_log_probs", "all_log_probs")


def agg_loss(loss_mat, loss_mask, loss_agg_mode, batch_num_tokens=None):
    return loss.agg_loss(loss_mat, loss_mask, loss_agg_mode, batch_num_tokens)


def compute_self_distillation_loss(
    student_log_probs, teacher_log_probs, response_mask, self_distillation_config,
    loss_agg_mode="token-mean", **given,
):  # fmt: skip
    config, values = self_distillation_config, {}
    settings = {name: getattr(config, name) for name in SETTINGS}
    sides = ("student", "teacher")
    further = {f"{s}_{kind}": given.get(f"{s}_{kind}") for s in sides for kind in LOG_PROBS}
    loss.compute_self_distillation_loss(
        student_log_probs=student_log_probs,
        teacher_log_probs=teacher_log_probs,
        response_mask=response_mask,
        **further,
        **{name: given.get(name) for name in ARGUMENTS},
        loss_agg_mode=loss_agg_mode,
        trace=values,
        **settings,
    )
    total = agg_loss(
        loss_mat=values["per_token_loss"],
        loss_mask=values["loss_mask"],
        loss_agg_mode=loss_agg_mode,
        batch_num_tokens=values["batch_num_tokens"],
    )
    return total, {}
