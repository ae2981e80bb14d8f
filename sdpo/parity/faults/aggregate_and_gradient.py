"""Faults of masks, of the stage `aggregate`, and of the gradient alone."""

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import Fault, Part, Run, aggregate, mask, scaled, support
from sdpo.reference.loss import agg_loss


def mode_is(*modes: str):
    """Apply a change in some modes of aggregation only."""

    def limited(change: Part) -> Part:
        return lambda run: change(run) if run.config.loss_agg_mode in modes else aggregate(run)

    return limited


def in_mode(mode: str) -> Part:
    """Aggregate in another mode."""
    return lambda run: agg_loss(run.per_token, run.mask, mode, run.mask.sum().clamp(min=1.0))


def over_tokens(run: Run, tokens: Tensor | float) -> Tensor:
    """The sum over tokens that count, divided by `tokens`."""
    counted = torch.where(run.mask != 0, run.per_token, torch.zeros_like(run.per_token))
    return (counted * run.mask).sum() / tokens


def row_values(run: Run) -> Tensor:
    """Each row's sum or mean, as the mode asks."""
    rows = (run.per_token * run.mask).sum(-1)
    if run.config.loss_agg_mode == "seq-mean-token-mean":
        return rows / (run.mask.sum(-1) + 1e-8)
    return rows


def by_halves(run: Run) -> Tensor:
    """The batch in two micro-batches, each with its own denominator."""
    half = (len(run.mask) + 1) // 2
    parts = []
    for rows in (slice(None, half), slice(half, None)):
        of_half, per_token = run.mask[rows], run.per_token[rows]
        if len(of_half) and of_half.any():
            tokens = of_half.sum().clamp(min=1.0)
            parts.append(agg_loss(per_token, of_half, run.config.loss_agg_mode, tokens))
    return torch.stack(parts).mean() if parts else aggregate(run)


def longest_row(run: Run) -> Tensor:
    """The norm mode divided by the longest row instead of the padded width."""
    return over_tokens(run, run.mask.sum(-1).max().clamp(min=1))


def response_tokens(run: Run) -> Tensor:
    """Rows without teacher signal count in the denominator."""
    if run.config.loss_agg_mode == "token-mean":
        return over_tokens(run, run.response_mask.sum().clamp(min=1.0))
    if run.config.loss_agg_mode == "seq-mean-token-sum-norm":
        return aggregate(run)
    return row_values(run).sum() / (run.response_mask.sum(-1) > 0).sum()


def numerator_unmasked(run: Run) -> Tensor:
    """The distillation mask is in the denominator only."""
    if run.config.loss_agg_mode == "token-mean":
        tokens = run.mask.sum().clamp(min=1.0)
        return agg_loss(run.per_token, run.response_mask, "token-mean", tokens)
    rows = (run.per_token * run.response_mask).sum(-1)
    if run.config.loss_agg_mode == "seq-mean-token-sum-norm":
        return rows.sum() / run.mask.shape[-1]
    if run.config.loss_agg_mode == "seq-mean-token-mean":
        rows = rows / run.mask.sum(-1).clamp(min=1)
    return rows.sum() / (run.mask.sum(-1) > 0).sum()


def signal_ignored(run: Run) -> Tensor:
    """The distillation mask is dropped."""
    return run.response_mask


def padding_included(run: Run) -> Tensor:
    """Every place of a row with teacher signal counts."""
    if run.self_distillation_mask is None:
        return torch.ones_like(run.response_mask)
    return torch.ones_like(run.response_mask) * run.self_distillation_mask.unsqueeze(1)


def mask_one_late(run: Run) -> Tensor:
    """The mask belongs to the token before."""
    return mask(run).roll(1, dims=1)


def last_token_dropped(run: Run) -> Tensor:
    """The last token of each row does not count."""
    own = mask(run)
    places = torch.arange(own.shape[1]).expand_as(own)
    last = torch.where(own != 0, places, -1).max(-1, keepdim=True).values
    return own * (places != last)


def in_bfloat16(run: Run) -> Tensor:
    """The per-token losses rounded to bfloat16 before aggregation."""
    kept = run.per_token
    run.per_token = kept.bfloat16().to(kept.dtype)
    value = aggregate(run)
    run.per_token = kept
    return value


def nothing_of(tensor: Tensor) -> Tensor:
    """Zero with a zero gradient, also where the tensor is not finite."""
    return tensor.masked_fill(torch.ones_like(tensor, dtype=torch.bool), 0.0).sum()


def leaf_of(run: Run) -> Tensor:
    """A tensor through which the gradient reaches the student."""
    return run.student_log_probs if run.from_log_probs else run.student_logits


def scaled_gradient(factor: float) -> Part:
    """The loss with its gradient times a factor."""
    return lambda run: with_gradient_times(run, factor)


def with_gradient_times(run: Run, factor: float) -> Tensor:
    """The loss with its gradient times a factor; a loss that is not finite is left as it is."""
    changed = run.loss.detach() + factor * (run.loss - run.loss.detach())
    return torch.where(run.loss.isfinite(), changed, run.loss)


def without_temperature(run: Run) -> Tensor:
    """The gradient with respect to logits ÷ temperature."""
    return with_gradient_times(run, run.config.temperature)


def leaking_into_padding(run: Run) -> Tensor:
    """A gradient at places that do not count, without an effect on the value."""
    outside = (run.mask == 0) & run.student_log_probs.isfinite()
    moved = torch.where(outside, run.student_log_probs, 0.0)
    return run.loss + 1e-3 * (moved - moved.detach()).sum().to(run.loss.dtype)


def rounded_support(run: Run):
    """The support with the student's gradient rounded to bfloat16."""
    student, teacher = support(run)
    if student.requires_grad:
        student.register_hook(lambda gradient: gradient.bfloat16().to(gradient.dtype))
    return student, teacher


def aggregate_in(run: Run, mode: str) -> Tensor:
    """The aggregate in another mode."""
    return in_mode(mode)(run)


SEQUENCE_MEANS = ("seq-mean-token-sum", "seq-mean-token-mean")
only_token_mean = mode_is("token-mean")
only_norm = mode_is("seq-mean-token-sum-norm")


def aggregation(id_: str, name: str, part: Part, source: str = "design") -> Fault:
    """A fault of the aggregation."""
    return Fault(id_, name, "aggregation", "aggregate", source, {"aggregate": part})


def masking(id_: str, name: str, part: str, function: Part, source: str = "design") -> Fault:
    """A fault of the masks."""
    return Fault(id_, name, "mask", "aggregate", source, {part: function})


def of_gradient(id_: str, name: str, part: Part, source: str = "design", **more) -> Fault:
    """A fault that leaves the loss as it is."""
    return Fault(id_, name, "gradient", "gradient", source, {"outcome": part}, **more)


AGGREGATE = (
    aggregation(
        "M07",
        "mean over all rows, masked rows too",
        mode_is(*SEQUENCE_MEANS)(lambda run: row_values(run).mean()),
        "–",
    ),
    aggregation(
        "M08",
        "seq-mean-token-mean for token-mean",
        only_token_mean(in_mode("seq-mean-token-mean")),
        "verl #957, #2776",
    ),
    aggregation(
        "M115",
        "mean over all rows of their token means, for token-mean",
        only_token_mean(
            lambda run: (
                (torch.where(run.mask != 0, run.per_token, 0.0) * run.mask).sum(-1)
                / run.mask.sum(-1).clamp(min=1)
            ).mean()
        ),
        "trl 1.16: loss of the SDPO trainer, found by this audit",
    ),
    aggregation(
        "M09",
        "token-sum ÷ batch for token-mean",
        only_token_mean(lambda run: over_tokens(run, float(len(run.mask)))),
        "rllm #513",
    ),
    aggregation("M10", "per-micro-batch denominator", by_halves, "verl #906, TRL #6006"),
    masking("M13", "padding included", "mask", padding_included, "optipfair #34"),
    masking("M15", "distillation mask dropped", "mask", signal_ignored),
    masking("M15b", "distillation mask in the denominator only", "aggregate", numerator_unmasked),
    masking(
        "M16",
        "NaN on an all-masked batch",
        "aggregate",
        only_token_mean(lambda run: over_tokens(run, run.mask.sum())),
        "tiny-grpo; seq-mean-* modes of the reference",
    ),
    aggregation(
        "M82",
        "padded places in the denominator of token-mean",
        only_token_mean(lambda run: over_tokens(run, float(run.mask.numel()))),
    ),
    aggregation(
        "M83",
        "row mean over the padded width",
        mode_is("seq-mean-token-mean")(
            lambda run: aggregate_in(run, "seq-mean-token-sum") / run.mask.shape[-1]
        ),
    ),
    aggregation(
        "M84",
        "norm mode divided by rows too",
        only_norm(lambda run: aggregate(run) / len(run.mask)),
    ),
    aggregation("M85", "norm mode by the longest row", only_norm(longest_row)),
    aggregation(
        "M86", "token-sum for token-mean", only_token_mean(lambda run: over_tokens(run, 1.0))
    ),
    aggregation("M87", "token-mean in any mode", in_mode("token-mean")),
    masking("M88", "mask one token late", "mask", mask_one_late),
    masking("M89", "last token of each row dropped", "mask", last_token_dropped),
    masking("M90", "distillation mask in the numerator only", "aggregate", response_tokens),
    Fault(
        "M91",
        "token losses rounded to bfloat16",
        "precision / scaling",
        "aggregate",
        "design",
        {"aggregate": in_bfloat16},
        inactive="in bfloat16 the reference rounds just as much",
    ),
    aggregation(
        "M92",
        "one token too few in the denominator",
        only_token_mean(lambda run: over_tokens(run, (run.mask.sum() - 1).clamp(min=1.0))),
    ),
)

SCALE = (
    Fault(
        "M104",
        "loss times temperature squared",
        "precision / scaling",
        "aggregate",
        "design: usual in distillation from softened targets",
        {"aggregate": lambda run: aggregate(run) * run.config.temperature**2},
        needs_logits=True,
    ),
)

GRADIENT = (
    Fault(
        "M21",
        "gradient flows through the teacher",
        "gradient",
        "gradient",
        "design",
        {"scaled": lambda run: (scaled(run)[0], run.teacher_logits / run.config.temperature)},
    ),
    Fault(
        "M21b",
        "gradient flows through the teacher, sampled tokens too",
        "gradient",
        "gradient",
        "design",
        {
            "scaled": lambda run: (scaled(run)[0], run.teacher_logits / run.config.temperature),
            "sampled_divergence": lambda run: (
                (run.student_log_probs.detach() - run.teacher_log_probs) * run.student_log_probs
            ),
        },
    ),
    of_gradient(
        "M23",
        "loss right, gradient zero",
        lambda run: run.loss.detach() + nothing_of(leaf_of(run)).to(run.loss.dtype),
        "lasgroup/SDPO #38",
    ),
    of_gradient("M93", "gradient of the wrong sign", scaled_gradient(-1.0)),
    of_gradient("M94", "gradient four times too large", scaled_gradient(4.0)),
    of_gradient("M95", "loss detached from the student", lambda run: run.loss.detach()),
    of_gradient(
        "M96", "1/temperature missing in the gradient", without_temperature, needs_logits=True
    ),
    of_gradient("M97", "gradient at places that do not count", leaking_into_padding),
    Fault(
        "M98",
        "gradient rounded to bfloat16",
        "precision / scaling",
        "gradient",
        "design",
        {"support": rounded_support},
        inactive="in bfloat16 the reference rounds just as much",
    ),
)
