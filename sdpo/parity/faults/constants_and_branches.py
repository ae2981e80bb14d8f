"""Further faults of ports, of all stages: planted in losses written the way third parties do.

Those that exchange a constant, a limit or a branch stand here; the forms that name a stage's idea
are in the file of their stage.
"""

import torch
from torch import Tensor

from sdpo.parity.faults.aggregate_and_gradient import scaled_gradient
from sdpo.parity.faults.divergence import terms
from sdpo.parity.faults.importance import cap, log_ratio
from sdpo.parity.faults.reference_parts import Fault, Part, Run, aggregate, divergence, mask, ratio
from sdpo.parity.faults.support import in_precision
from sdpo.parity.faults.tail import on_each, tail_with_limit
from sdpo.reference import loss as reference
from sdpo.reference.loss import renormalize, topk_log_probs


def identity(log_probs: Tensor) -> Tensor:
    """Log-probs as they are."""
    return log_probs


def renormalized_by_probabilities(log_probs: Tensor) -> Tensor:
    """Rescaled by the log of a sum of probabilities, which may all be zero in the dtype."""
    return log_probs - log_probs.exp().sum(-1, keepdim=True).log()


def with_sampled_token(run: Run) -> Tensor:
    """The student's top-k, the sampled token always among them."""
    first = run.student.detach().scatter(-1, run.responses.unsqueeze(-1), torch.inf)
    return topk_log_probs(first, run.count)[1]


def of_the_sum(run: Run) -> Tensor:
    """The top-k of the sum of both sides' logits."""
    return topk_log_probs(run.student.detach() + run.teacher, run.count)[1]


def least_likely(run: Run) -> Tensor:
    """The K entries that the student holds least likely."""
    return topk_log_probs(-run.student.detach(), run.count)[1]


def never_all(run: Run) -> Tensor:
    """The student's top-k, one entry short where K reaches the vocabulary."""
    return topk_log_probs(run.student, min(run.count, run.student.size(-1) - 1))[1]


def mixture_of_probabilities(floor: float) -> Part:
    """The mixture form on probabilities, the log of the mixture taken `floor` above it."""

    def changed(run: Run) -> Tensor:
        alpha, student, teacher = run.config.alpha, run.student_on, run.teacher_on
        if alpha in (0.0, 1.0):
            return divergence(run)
        p, q = student.exp(), teacher.exp()
        middle = ((1 - alpha) * p + alpha * q + floor).log()
        return ((1 - alpha) * p * (student - middle) + alpha * q * (teacher - middle)).sum(-1)

    return changed


def exchanged(run: Run) -> Tensor:
    """The divergence at 1 - alpha."""
    return terms(run.student_on, run.teacher_on, 1 - run.config.alpha).sum(-1)


def within(limit: float) -> Part:
    """The ratio with its log kept within another limit."""
    return lambda run: log_ratio(run).clamp(-limit, limit).exp().clamp(max=cap(run))


def capped_loss(run: Run) -> Tensor:
    """A factor that makes the token's loss, and not the ratio, at most the cap."""
    own = log_ratio(run).clamp(-20, 20).exp()
    limit = cap(run) / run.per_token.detach().abs().clamp(min=1e-12)
    return torch.where(run.per_token * own > cap(run), limit, own).detach()


def weights_by_mean(run: Run) -> Tensor | None:
    """The rollout weights divided by their mean over the tokens that count."""
    weights = run.rollout_is_weights
    if weights is None:
        return None
    counts = mask(run) != 0
    mean = torch.where(counts, weights, 0.0).sum() / counts.sum().clamp(min=1)
    return weights / mean.clamp(min=1e-6)


def weights_at_most_one(run: Run) -> Tensor | None:
    """The rollout weights capped at 1."""
    return None if run.rollout_is_weights is None else run.rollout_is_weights.clamp(max=1.0)


def mask_one_early(run: Run) -> Tensor:
    """The mask belongs to the token after; nothing counts in the last column."""
    own = mask(run)
    return torch.cat([own[:, 1:], torch.zeros_like(own[:, :1])], dim=1)


def fault(id_: str, name: str, stage: str, group: str, part: str, change: Part, **more) -> Fault:
    """A fault of one part, by design."""
    return Fault(id_, name, group, stage, "design", {part: change}, **more)


LIMITED = "shows only where the tail is below 1e-7"
IMPORTANCE_GROUP = "importance sampling"

PORTS = (
    fault(
        "M05b",
        "tail left out",
        "tail",
        "tail",
        "tail",
        on_each(identity, renormalize),
    ),
    fault(
        "M118",
        "limit of the tail at 1e-6",
        "tail",
        "tail",
        "tail",
        on_each(tail_with_limit(1e-6), renormalize),
        inactive=LIMITED,
    ),
    fault(
        "M119",
        "limit of the tail at 1e-8",
        "tail",
        "tail",
        "tail",
        on_each(tail_with_limit(1e-8), renormalize),
        inactive=LIMITED,
    ),
    fault(
        "M120",
        "renormalised by probabilities that may all be zero",
        "tail",
        "tail",
        "tail",
        on_each(reference.add_tail, renormalized_by_probabilities),
    ),
    fault(
        "M121",
        "mixture of probabilities that may be zero",
        "divergence",
        "divergence",
        "divergence",
        mixture_of_probabilities(0.0),
    ),
    fault(
        "M122",
        "1e-5 added to the mixture",
        "divergence",
        "divergence",
        "divergence",
        mixture_of_probabilities(1e-5),
    ),
    fault("M123", "1 - alpha for alpha", "divergence", "divergence", "divergence", exchanged),
    fault(
        "M124", "log ratio kept within ±10", "importance", IMPORTANCE_GROUP, "ratio", within(10.0)
    ),
    fault(
        "M125",
        "ratio not below 1",
        "importance",
        IMPORTANCE_GROUP,
        "ratio",
        lambda run: ratio(run).clamp(min=1.0),
    ),
    fault(
        "M126",
        "rollout weights capped at 1",
        "importance",
        IMPORTANCE_GROUP,
        "weights",
        weights_at_most_one,
    ),
    fault(
        "M127",
        "rollout weights divided by their mean",
        "importance",
        IMPORTANCE_GROUP,
        "weights",
        weights_by_mean,
    ),
    fault(
        "M128",
        "cap applied to the token's loss",
        "importance",
        IMPORTANCE_GROUP,
        "ratio",
        capped_loss,
    ),
    fault(
        "M129",
        "sampled token always in the support",
        "support",
        "support",
        "choice",
        with_sampled_token,
    ),
    fault("M130", "top-k of both sides' sum", "support", "support", "choice", of_the_sum),
    fault("M131", "mask one token early", "aggregate", "mask", "mask", mask_one_early),
    fault(
        "M132",
        "loss halved",
        "aggregate",
        "precision / scaling",
        "aggregate",
        lambda run: aggregate(run) / 2,
    ),
    fault(
        "M133", "gradient twice too large", "gradient", "gradient", "outcome", scaled_gradient(2)
    ),
    fault("M134", "gradient halved", "gradient", "gradient", "outcome", scaled_gradient(0.5)),
    Fault(
        "M135",
        "teacher alone in float32, given float64",
        "precision / scaling",
        "log_probs",
        "ms-swift #10156",
        in_precision(torch.float32, teacher_only=True),
        inactive="shows only in float64",
    ),
    fault(
        "M136", "K least likely entries as support", "support", "support", "choice", least_likely
    ),
    fault(
        "M137",
        "support one entry short of the vocabulary",
        "support",
        "support",
        "choice",
        never_all,
        inactive="shows only where K reaches the vocabulary",
    ),
    fault(
        "M138",
        "divergence of a token capped at 10",
        "divergence",
        "divergence",
        "divergence",
        lambda run: divergence(run).clamp(max=10.0),
        inactive="shows only where a token is far off",
    ),
)
