"""The reference loss in exchangeable parts, and the form of a fault: one part exchanged.

Each part is a function of a `Run`, made of functions of `sdpo.reference.loss`; with all parts in
place the composition gives the reference's bits. A fault exchanges one part. It can be evaluated to
a stage trace, or be handed out as a loss function from logits or from log-probs.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpo.parity.cases.checked_call import checked_call, guarded, scalar_of
from sdpo.parity.cases.loss_case import LossCase
from sdpo.reference import loss as reference
from sdpo.settings.config import SDPOConfig


@dataclass
class Run:
    """Inputs of one evaluation and the values computed so far, in the order of the parts.

    `student`, `teacher` are logits ÷ temperature; `student_log_probs`, `teacher_log_probs` those of
    the sampled tokens; `student_on`, `teacher_on` those on the support, later with tail.
    """

    config: SDPOConfig
    student_logits: Tensor
    teacher_logits: Tensor
    responses: Tensor
    response_mask: Tensor
    old_log_probs: Tensor | None = None
    self_distillation_mask: Tensor | None = None
    rollout_is_weights: Tensor | None = None
    recorded_choice: Tensor | None = None
    student: Tensor = field(init=False)
    teacher: Tensor = field(init=False)
    student_log_probs: Tensor = field(init=False)
    teacher_log_probs: Tensor = field(init=False)
    indices: Tensor = field(init=False)
    student_on: Tensor = field(init=False)
    teacher_on: Tensor = field(init=False)
    per_token: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    from_log_probs: bool = False

    @property
    def topk(self) -> bool:
        """Whether the divergence is taken over a top-k support."""
        return self.config.full_logit_distillation and self.config.distillation_topk is not None

    @property
    def count(self) -> int:
        """K, limited to the vocabulary."""
        return min(self.config.distillation_topk or 0, self.student.size(-1))


Part = Callable[[Run], Any]
Pair = tuple[Tensor, Tensor]


def scaled(run: Run) -> Pair:
    """Both sides' logits ÷ temperature, the teacher without gradient."""
    temperature = run.config.temperature
    return run.student_logits / temperature, (run.teacher_logits / temperature).detach()


def log_probs(run: Run) -> Pair:
    """Log-probs of the sampled tokens."""
    return (
        reference.log_probs_from_logits(run.student, run.responses),
        reference.log_probs_from_logits(run.teacher, run.responses),
    )


def choice(run: Run) -> Tensor:
    """Indices of the support: the student's largest logits."""
    return reference.topk_log_probs(run.student, run.count, run.recorded_choice)[1]


def support(run: Run) -> Pair:
    """Log-probs on the support, or on the full vocabulary."""
    if not run.topk:
        return F.log_softmax(run.student, dim=-1), F.log_softmax(run.teacher, dim=-1)
    return (
        reference.topk_log_probs(run.student, run.count, run.indices)[0],
        reference.topk_log_probs(run.teacher, run.count, run.indices)[0],
    )


def tail(run: Run) -> Pair:
    """Top-k log-probs with tail or renormalised."""
    on_support = reference.add_tail if run.config.distillation_add_tail else reference.renormalize
    return on_support(run.student_on), on_support(run.teacher_on)


def divergence(run: Run) -> Tensor:
    """Divergence of each token over the support."""
    return reference.divergence(run.student_on, run.teacher_on, run.config.alpha)


def sampled_divergence(run: Run) -> Tensor:
    """The surrogate of sampled-token mode."""
    return (run.student_log_probs - run.teacher_log_probs).detach() * run.student_log_probs


def ratio(run: Run) -> Tensor:
    """The clipped importance ratio.

    Raises:
        ValueError: old log-probs are missing.
    """
    if run.old_log_probs is None or run.config.is_clip is None:
        raise ValueError("is_clip needs old_log_probs")
    return reference.importance_ratio(run.student_log_probs, run.old_log_probs, run.config.is_clip)


def weights(run: Run) -> Tensor | None:
    """The rollout weights."""
    return run.rollout_is_weights


def mask(run: Run) -> Tensor:
    """Weight of each token."""
    if run.self_distillation_mask is None:
        return run.response_mask
    return run.response_mask * run.self_distillation_mask.unsqueeze(1)


def aggregate(run: Run) -> Tensor:
    """One number from the per-token losses."""
    tokens = run.mask.sum().clamp(min=1.0)
    return reference.agg_loss(run.per_token, run.mask, run.config.loss_agg_mode, tokens)


def outcome(run: Run) -> Tensor:
    """The loss as it is handed to differentiation."""
    return run.loss


REFERENCE: Mapping[str, Part] = MappingProxyType(
    {
        "scaled": scaled,
        "log_probs": log_probs,
        "choice": choice,
        "support": support,
        "tail": tail,
        "divergence": divergence,
        "sampled_divergence": sampled_divergence,
        "ratio": ratio,
        "weights": weights,
        "mask": mask,
        "aggregate": aggregate,
        "outcome": outcome,
    }
)
FROM_LOGITS_ONLY = frozenset({"scaled", "log_probs", "choice", "support"})
KEPT_STARTS = 256
"""Evaluations up to the log-probs that are kept, of cases of up to `KEPT_LOGITS` logits."""
KEPT_LOGITS = 1 << 16


@dataclass(frozen=True, eq=False)
class Fault:
    """A named single deviation from the reference.

    `parts` holds the exchanged part of the loss; it is empty for faults outside the loss, whose
    `proof` names the planted fault that shows them to be found, or says that there is none.
    `inactive` says where a fault of the loss does nothing although one might expect an effect;
    `needs_logits` marks a fault that a loss from log-probs cannot have, whatever its part.
    """

    id: str
    name: str
    group: str
    stage: str
    source: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    proof: str = ""
    inactive: str = ""
    needs_logits: bool = False

    @property
    def label(self) -> str:
        """What reports print: `M07 mean over all rows`."""
        return f"{self.id} {self.name}"

    @property
    def in_loss(self) -> bool:
        """Whether the fault is a variant of the loss that can be run."""
        return bool(self.parts)

    @property
    def after_log_probs(self) -> bool:
        """Whether the fault lies in a loss that starts from log-probs."""
        return self.in_loss and not (self.needs_logits or FROM_LOGITS_ONLY & self.parts.keys())


def evaluate_logits(run: Run, parts: Mapping[str, Part], trace: dict[str, Tensor]) -> None:
    """The parts from logits to log-probs on the support."""
    run.student, run.teacher = parts["scaled"](run)
    run.student_log_probs, run.teacher_log_probs = parts["log_probs"](run)
    trace.update(
        {"log_probs.student": run.student_log_probs, "log_probs.teacher": run.teacher_log_probs}
    )
    if run.config.full_logit_distillation:
        if run.topk:
            run.indices = trace["support.indices"] = parts["choice"](run)
        run.student_on, run.teacher_on = parts["support"](run)
        trace.update({"support.student": run.student_on, "support.teacher": run.teacher_on})


def evaluate_log_probs(run: Run, parts: Mapping[str, Part], trace: dict[str, Tensor]) -> Tensor:
    """The parts from log-probs to the loss."""
    run.mask = parts["mask"](run)
    if run.topk:
        run.student_on, run.teacher_on = parts["tail"](run)
        trace.update({"tail.student": run.student_on, "tail.teacher": run.teacher_on})
    kind = "divergence" if run.config.full_logit_distillation else "sampled_divergence"
    run.per_token = trace["divergence"] = parts[kind](run)
    if run.config.is_clip is not None:
        run.per_token = run.per_token * parts["ratio"](run)
    if (factor := parts["weights"](run)) is not None:
        run.per_token = run.per_token * factor
    trace["importance"] = run.per_token
    run.loss = trace["aggregate"] = parts["aggregate"](run)
    return parts["outcome"](run)


def merged(changes: Mapping[str, Part]) -> Mapping[str, Part]:
    """The reference's parts with some exchanged.

    Raises:
        KeyError: a name that is no part.
    """
    if unknown := changes.keys() - REFERENCE.keys():
        raise KeyError(f"{sorted(unknown)} are no parts; there are {list(REFERENCE)}")
    return {**REFERENCE, **changes}


def loss_from_logits(changes: Mapping[str, Part]) -> Callable[..., Tensor]:
    """The reference with some parts exchanged, as a loss function from logits."""
    parts = merged(changes)

    def faulty_loss(
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        old_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        rollout_is_weights: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        run = Run(
            config,
            student_logits,
            teacher_logits,
            responses,
            response_mask,
            old_log_probs,
            self_distillation_mask,
            rollout_is_weights,
        )
        evaluate_logits(run, parts, {})
        return evaluate_log_probs(run, parts, {})

    return faulty_loss


def loss_from_log_probs(changes: Mapping[str, Part]) -> Callable[..., Tensor]:
    """The reference with some parts exchanged, as a loss function from log-probs."""
    parts = merged(changes)

    def faulty_loss(
        *,
        student_log_probs: Tensor,
        teacher_log_probs: Tensor,
        response_mask: Tensor,
        old_log_probs: Tensor | None = None,
        student_topk_log_probs: Tensor | None = None,
        teacher_topk_log_probs: Tensor | None = None,
        student_all_log_probs: Tensor | None = None,
        teacher_all_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        rollout_is_weights: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        nothing = torch.empty(0)
        run = Run(
            config,
            nothing,
            nothing,
            nothing,
            response_mask,
            old_log_probs,
            self_distillation_mask,
            rollout_is_weights,
            from_log_probs=True,
        )
        run.student_log_probs, run.teacher_log_probs = student_log_probs, teacher_log_probs
        on = (student_topk_log_probs, teacher_topk_log_probs)
        student, teacher = on if run.topk else (student_all_log_probs, teacher_all_log_probs)
        if student is not None and teacher is not None:
            run.student_on, run.teacher_on = student, teacher
        return evaluate_log_probs(run, parts, {})

    return faulty_loss


def start_of(
    case: LossCase, changes: frozenset[tuple[str, Part]]
) -> tuple[Run, Mapping[str, Tensor]]:
    """Evaluate the parts from logits to log-probs, some of them exchanged: run and stage values."""
    exchanged = dict(changes)
    run = Run(
        case.config,
        case.student_logits.detach().clone().requires_grad_(True),
        case.teacher_logits.detach().clone().requires_grad_(True),
        case.responses,
        case.response_mask,
        case.old_log_probs,
        case.self_distillation_mask,
        case.rollout_is_weights,
        # the recorded choice among tied logits holds for the logits that it was made from
        None if "scaled" in exchanged else case.recorded.get("support.indices"),
    )
    trace: dict[str, Tensor] = {}
    with torch.enable_grad():
        evaluate_logits(run, merged(exchanged), trace)
    return run, trace


kept_start_of = lru_cache(maxsize=KEPT_STARTS)(start_of)


def fault_trace(
    changes: Mapping[str, Part], case: LossCase, *, gradient: bool = True
) -> dict[str, Tensor]:
    """Stage values of the reference with some parts exchanged; without gradient at half the cost.

    Faults that lie behind the log-probs share these, and the graph to the logits.

    Raises:
        BrokenGradientError: the fault leaves no graph to the student or reaches the teacher.
        CandidateError: the fault raises.
    """
    parts = merged(changes)
    from_logits = frozenset((n, part) for n, part in changes.items() if n in FROM_LOGITS_ONLY)
    starting = kept_start_of if case.student_logits.numel() <= KEPT_LOGITS else start_of
    run, begun = guarded("aggregate", starting, case, from_logits)
    trace = dict(begun)
    positional = (copy(run), parts, trace)
    if gradient:
        leaves = (run.student_logits, run.teacher_logits)
        found = checked_call(evaluate_log_probs, {}, positional, {}, leaves, keep_graph=True)
    else:
        with torch.no_grad():
            loss = guarded("aggregate", evaluate_log_probs, *positional)
            found = {"aggregate": scalar_of(loss)}
    return {name: value.detach() for name, value in (trace | found).items()}
