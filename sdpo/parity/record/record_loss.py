"""Records a loss case: log-probs, support, per-token loss, aggregated loss and gradient."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdpo.parity.live_fork.losses import SETTINGS, LiveLoss, live_loss, support_of
from sdpo.parity.live_fork.rollout_weights import live_rollout_weights
from sdpo.parity.record.recipes import Recipe, Recording, dtype_named, recording

WEIGHTS = "in.rollout_is_weights"


@dataclass(frozen=True)
class LogitInputs:
    """Inputs of the loss, logits in the dtypes of the computation."""

    student_logits: Tensor
    teacher_logits: Tensor
    responses: Tensor
    response_mask: Tensor
    old_log_probs: Tensor | None
    self_distillation_mask: Tensor | None
    rollout_is_weights: Tensor | None


def record_loss(recipe: Recipe) -> Recording:
    """Run a loss case through the fork.

    Args:
        recipe: with a `rollout_is_threshold`, the rollout weights are made by the fork too.

    Raises:
        LossCallError: the fork's loss does not go through its aggregation once.
    """
    config = recipe.config
    weights, metrics = rollout_weights(recipe)
    recipe = replace(recipe, inputs={**recipe.inputs, **weights})
    inputs = logit_inputs(recipe)
    leaf = inputs.student_logits.clone().requires_grad_(True)
    live = live_loss(
        replace(inputs, student_logits=leaf),
        {name: config[name] for name in SETTINGS},
        temperature=config["temperature"],
        loss_agg_mode=config["loss_agg_mode"],
    )
    loss = live.loss
    assert isinstance(loss, Tensor)
    (gradient,) = torch.autograd.grad(loss, leaf)
    outputs = outputs_of(live) | {"out.loss": loss, "out.grad_student_logits": gradient}
    rows, width, vocabulary = inputs.student_logits.shape
    topk = config["distillation_topk"] if config["full_logit_distillation"] else None
    kept = None if topk is None else min(topk, vocabulary)
    facts = {
        "dims": {"B": rows, "T": width, "V": vocabulary, "K": kept},
        "loss": loss.item(),
        "loss_is_finite": bool(loss.isfinite()),
        "grad_is_finite": bool(gradient.isfinite().all()),
        "grad_abs_max": gradient.abs().max().item(),
        "student_topk_ties": ties(inputs.student_logits / config["temperature"], kept),
        "rollout_metrics": metrics,
    }
    return recording(recipe, outputs, facts)


def logit_inputs(recipe: Recipe) -> LogitInputs:
    """Inputs of the loss from the recorded ones; logits are recorded in float32."""
    config, inputs = recipe.config, recipe.inputs
    student = dtype_named(config["dtype"])
    teacher = dtype_named(config.get("teacher_dtype", config["dtype"]))
    return LogitInputs(
        inputs["in.student_logits"].to(student),
        inputs["in.teacher_logits"].to(teacher),
        inputs["in.responses"],
        inputs["in.response_mask"],
        inputs.get("in.old_log_probs"),
        inputs.get("in.self_distillation_mask"),
        inputs.get(WEIGHTS),
    )


def rollout_weights(recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """The fork's rollout weights and their metrics; none without a threshold."""
    threshold = recipe.config["rollout_is_threshold"]
    if threshold is None:
        return {}, None
    weights, metrics = live_rollout_weights(
        recipe.inputs["in.old_log_probs"],
        recipe.inputs["in.rollout_log_probs"],
        threshold,
        recipe.inputs["in.response_mask"],
    )
    return {WEIGHTS: weights}, metrics


def outputs_of(live: LiveLoss) -> dict[str, Tensor]:
    """The fork's values under the names of the recording."""
    outputs: dict[str, Tensor] = {}
    for side, values in (("student", live.student), ("teacher", live.teacher)):
        outputs[f"out.{side}_log_probs"] = values["log_probs"]
        if support := support_of(values):
            outputs[f"out.{side}_{support[0]}_log_probs"] = support[1]
    if "topk_indices" in live.student:
        outputs["out.student_topk_indices"] = live.student["topk_indices"]
    count = live.batch_num_tokens
    assert isinstance(count, Tensor)
    return outputs | {
        "out.per_token_loss": live.per_token_loss,
        "out.loss_mask": live.loss_mask,
        "out.batch_num_tokens": count,
    }


def ties(logits: Tensor, kept: int | None) -> dict[str, int] | None:
    """Count the positions with equal scaled logits in the top-k, and across its edge.

    Args:
        logits: `(B, T, V)` of the student, divided by the temperature.
        kept: K, None without a top-k support.
    """
    if kept is None:
        return None
    ordered = logits.sort(-1, descending=True).values
    # NaN, of which none is the larger, counts as equal
    same = ~(ordered[..., :-1] > ordered[..., 1:])
    inside = same[..., : kept - 1].any(-1).sum().item()
    edge = same[..., kept - 1].sum().item() if kept < logits.shape[-1] else 0
    return {
        "positions_with_tie_inside_topk": int(inside),
        "positions_with_tie_at_boundary": int(edge),
    }
