"""Faults of the stage `importance`: the ratio and the rollout weights."""

import math
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import Fault, Part, Run, ratio
from sdpo.reference.loss import log_probs_from_logits

LARGEST_LOG_RATIO = 20.0


def log_ratio(run: Run) -> Tensor:
    """The log ratio without gradient.

    Raises:
        ValueError: old log-probs are missing.
    """
    if run.old_log_probs is None:
        raise ValueError("is_clip needs old_log_probs")
    return (run.student_log_probs - run.old_log_probs).detach()


def clamped(log_values: Tensor) -> Tensor:
    """Log ratios within ±20."""
    return log_values.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def cap(run: Run) -> float:
    """The upper limit of the ratio; infinity if there is none."""
    return math.inf if run.config.is_clip is None else run.config.is_clip


def ratio_with_gradient(run: Run) -> Tensor:
    """The ratio, not detached."""
    own = ratio(run)
    gap = run.student_log_probs - run.student_log_probs.detach()
    free = (own < cap(run)) & (log_ratio(run).abs() < LARGEST_LOG_RATIO) & gap.isfinite()
    return own * (1 + torch.where(free, gap, 0.0))


def of_other_temperature(run: Run) -> Tensor:
    """The present log-probs at temperature 1, the old ones at the setting's."""
    present = log_probs_from_logits(run.student_logits, run.responses)
    return ratio(replaced(run, student_log_probs=present))


def replaced(run: Run, **values: Tensor) -> Run:
    """A copy of the run with other values."""
    other = copy(run)
    other.__dict__.update(values)
    return other


def of_the_row(run: Run) -> Tensor:
    """One ratio for each row: the mean log ratio of its tokens."""
    mean = (log_ratio(run) * run.mask).sum(-1, keepdim=True)
    mean = mean / run.mask.sum(-1, keepdim=True).clamp(min=1)
    return clamped(mean).exp().clamp(max=cap(run)).expand_as(run.mask)


def self_normalized(run: Run) -> Tensor:
    """The ratio divided by its mean over the tokens that count."""
    own = ratio(run)
    counts = run.mask != 0
    mean = torch.where(counts, own, 0.0).sum() / counts.sum().clamp(min=1)
    return own / mean


def capped_product(run: Run) -> Tensor:
    """The product of ratio and weights is capped, not the ratio."""
    product = clamped(log_ratio(run)).exp()
    if run.rollout_is_weights is not None:
        product = product * run.rollout_is_weights
    return product.clamp(max=cap(run))


def ratio_of(change: Callable[[Run, Tensor], Tensor]) -> Part:
    """A ratio made from the run and the log ratio."""
    return lambda run: change(run, log_ratio(run))


def squared_weights(run: Run) -> Tensor | None:
    """The rollout weights squared."""
    return None if run.rollout_is_weights is None else run.rollout_is_weights.square()


def ratio_fault(
    id_: str, name: str, part: Part, *, source: str = "design", inactive: str = ""
) -> Fault:
    """A fault of the importance ratio."""
    return Fault(
        id_,
        name,
        "importance sampling",
        "importance",
        source,
        {"ratio": part},
        inactive=inactive,
    )


IMPORTANCE = (
    ratio_fault(
        "M17b",
        "log ratio not kept within ±20",
        ratio_of(lambda run, gap: gap.exp().clamp(max=cap(run))),
        source="TRL #4935",
        inactive="shows only where the log ratio is beyond 20",
    ),
    ratio_fault(
        "M17c",
        "ratio clipped from below",
        ratio_of(lambda run, gap: clamped(gap).exp().clamp(min=cap(run))),
        source="TRL #4935",
    ),
    ratio_fault(
        "M18",
        "ratio applied twice",
        lambda run: ratio(run).square(),
        source="lasgroup/SDPO applies ratio and weights",
    ),
    Fault(
        "M19",
        "ratio across temperatures",
        "importance sampling",
        "importance",
        "design",
        {"ratio": of_other_temperature},
        needs_logits=True,
    ),
    ratio_fault(
        "M71",
        "ratio upside down",
        ratio_of(lambda run, gap: clamped(-gap).exp().clamp(max=cap(run))),
    ),
    ratio_fault(
        "M72",
        "ratio of the teacher to the old policy",
        lambda run: ratio(replaced(run, student_log_probs=run.teacher_log_probs)),
    ),
    ratio_fault("M73", "ratio left out", lambda run: torch.ones_like(run.student_log_probs)),
    ratio_fault("M76", "ratio not capped", ratio_of(lambda run, gap: clamped(gap).exp())),
    ratio_fault(
        "M77",
        "cap applied to the log ratio",
        ratio_of(lambda run, gap: clamped(gap).clamp(max=cap(run)).exp()),
    ),
    ratio_fault("M78", "one ratio for each row", of_the_row),
    ratio_fault("M79", "ratio divided by its mean", self_normalized),
    ratio_fault(
        "M80",
        "ratio capped on both sides",
        ratio_of(lambda run, gap: clamped(gap).exp().clamp(1 / cap(run), cap(run))),
    ),
    Fault(
        "M74",
        "rollout weights left out",
        "importance sampling",
        "importance",
        "design",
        {"weights": lambda run: None},
    ),
    Fault(
        "M75",
        "rollout weights squared",
        "importance sampling",
        "importance",
        "design",
        {"weights": squared_weights},
    ),
    Fault(
        "M81",
        "product of ratio and weights capped",
        "importance sampling",
        "importance",
        "design",
        {
            "ratio": capped_product,
            "weights": lambda run: run.rollout_is_weights if run.config.is_clip is None else None,
        },
    ),
)

GRADIENT = (
    Fault(
        "M17",
        "ratio not detached",
        "importance sampling",
        "gradient",
        "TRL #4935",
        {"ratio": ratio_with_gradient},
    ),
)
