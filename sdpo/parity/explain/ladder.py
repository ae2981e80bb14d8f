"""Where does a callable that returns only a scalar first depart? A ladder of interventions.

Each rung is a small generated case that adds one feature to rungs below it; everything else is
neutral. A rung whose loss is over budget while the ones below hold names the stage of its feature.
Where one feature shows a fault of several stages, the rungs are read together (`ladder_rules.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.explain.ladder_rules import inferred_stage
from sdpo.settings.config import SDPOConfig

VOCABULARY, TOPK = 24, 6
FAR_OFF = 9.0


@dataclass(frozen=True)
class Outcome:
    """What a rung showed; `factor` is the loss divided by the reference's."""

    result: str
    factor: float | None = None


Judge = Callable[[LossCase], Outcome]


@dataclass(frozen=True)
class Rung:
    """A generated case with one more feature than the rungs below, and that feature's stage."""

    stage: str
    feature: str
    case: LossCase


def settings(**changes: object) -> SDPOConfig:
    """Full vocabulary, alpha 0.5, nothing else switched on, with some changes."""
    neutral = {"distillation_topk": None, "is_clip": None, "alpha": 0.5}
    return SDPOConfig.from_dict({**neutral, **changes})


def logits(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Well-conditioned random logits of a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(*shape, VOCABULARY, generator=generator)).to(dtype)


def plain(feature: str, config: SDPOConfig, rows: int, tokens: int, dtype: torch.dtype) -> LossCase:
    """A case without padding; student and teacher rank tokens differently."""
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    return LossCase(
        id=f"ladder: {feature}",
        config=config,
        student_logits=logits((rows, tokens), 11, dtype),
        teacher_logits=logits((rows, tokens), 12, dtype),
        responses=torch.randint(0, VOCABULARY, (rows, tokens), generator=generator),
        response_mask=torch.ones(rows, tokens, dtype=torch.int64),
    )


def agreeing(case: LossCase) -> LossCase:
    """The same case with a teacher that ranks all tokens as the student does."""
    return replace(case, teacher_logits=case.student_logits * 0.5)


def with_small_tail(case: LossCase) -> LossCase:
    """The same case with little mass outside the first tokens, far less in the student."""
    outside = torch.arange(VOCABULARY) >= TOPK
    student = torch.where(outside, case.student_logits - 10, case.student_logits)
    teacher = torch.where(outside, case.teacher_logits - 4, case.teacher_logits)
    return replace(case, student_logits=student, teacher_logits=teacher)


def with_teacher_at_limit(case: LossCase) -> LossCase:
    """The same case with a small tail in the student, and a smaller one in the teacher."""
    order = case.student_logits.argsort(-1, descending=True).argsort(-1)
    outside = order >= TOPK
    student = torch.where(outside, case.student_logits - 4, case.student_logits)
    teacher = torch.where(outside, case.teacher_logits - 30, case.teacher_logits)
    return replace(case, student_logits=student, teacher_logits=teacher)


def with_far_logits(case: LossCase) -> LossCase:
    """The same case with logits far apart, the student's likeliest tokens impossible otherwise."""
    far = 100 * case.student_logits
    return replace(case, student_logits=far, teacher_logits=-far)


def opposed(case: LossCase) -> LossCase:
    """The same case with logits of at most `FAR_OFF`, the teacher's against the student's."""
    student = case.student_logits / case.student_logits.abs().max() * FAR_OFF
    return replace(case, student_logits=student, teacher_logits=-student)


def with_ratio(case: LossCase, shift: float) -> LossCase:
    """Old log-probs that lie `shift` below the present ones."""
    scaled = case.student_logits / case.config.temperature
    own = scaled.log_softmax(-1).gather(-1, case.responses.unsqueeze(-1)).squeeze(-1)
    return replace(case, old_log_probs=(own - shift).detach())


def padded(case: LossCase) -> LossCase:
    """The same case with ragged rows."""
    mask = case.response_mask.clone()
    mask[0, -1], mask[1, 1:] = 0, 0
    return replace(case, response_mask=mask)


def with_empty_column(case: LossCase) -> LossCase:
    """The same case with padding at the end of every row."""
    mask = case.response_mask.clone()
    mask[:, -1] = 0
    return replace(case, response_mask=mask)


def ladder(dtype: torch.dtype) -> list[Rung]:
    """All rungs in order, for one dtype."""

    def single(feature: str, **changes: object) -> LossCase:
        return plain(feature, settings(**changes), 1, 1, dtype)

    sampled = {"full_logit_distillation": False, "alpha": 1.0}
    rungs = [Rung("divergence", f"alpha {a:g}", single(f"alpha {a:g}", alpha=a)) for a in (0, 1)]
    rungs += [Rung("divergence", f"alpha {a}", single(f"alpha {a}", alpha=a)) for a in (0.5, 0.25)]
    rungs.append(Rung("divergence", "sampled token", single("sampled token", **sampled)))
    rungs.append(Rung("log_probs", "temperature", single("temperature", temperature=0.7)))
    rungs.append(
        Rung(
            "log_probs",
            "temperature, sampled",
            single("temperature, sampled", temperature=0.7, **sampled),
        )
    )
    rungs += several_tokens(dtype) + top_k(dtype) + importance(dtype) + masks(dtype)
    rungs += branches(dtype) + extremes(dtype)
    return rungs


def several_tokens(dtype: torch.dtype) -> list[Rung]:
    """More than one token: equal ones show a wrong scale, distinct ones a wrong alignment."""
    distinct = plain("distinct tokens", settings(), 1, 3, dtype)
    equal = replace(
        distinct,
        id="ladder: equal tokens",
        student_logits=distinct.student_logits[:, :1].expand(1, 3, -1).clone(),
        teacher_logits=distinct.teacher_logits[:, :1].expand(1, 3, -1).clone(),
        responses=distinct.responses[:, :1].expand(1, 3).clone(),
    )
    sampled = settings(full_logit_distillation=False, alpha=1.0)
    of_samples = plain("distinct tokens, sampled", sampled, 1, 3, dtype)
    rows = plain("two rows", settings(), 2, 3, dtype)
    return [
        Rung("aggregate", "equal tokens", equal),
        Rung("log_probs", "distinct tokens", distinct),
        Rung("log_probs", "distinct tokens, sampled", of_samples),
        Rung("aggregate", "two rows", rows),
    ]


def top_k(dtype: torch.dtype) -> list[Rung]:
    """Renormalised and with tail, first with supports that agree."""
    rungs = []
    for feature, add_tail in (("renormalised", False), ("tail", True)):
        config = settings(distillation_topk=TOPK, distillation_add_tail=add_tail)
        case = plain(f"top-k {feature}, same ranking", config, 1, 1, dtype)
        rungs.append(Rung("tail", f"top-k {feature}, same ranking", agreeing(case)))
    for feature, add_tail in (("renormalised", False), ("tail", True)):
        config = settings(distillation_topk=TOPK, distillation_add_tail=add_tail)
        case = plain(f"top-k {feature}", config, 1, 1, dtype)
        rungs.append(Rung("support", f"top-k {feature}", case))
    config = settings(distillation_topk=TOPK)
    small = plain("small tail", config, 1, 1, dtype)
    rungs.append(Rung("tail", "small tail", with_small_tail(small)))
    config = settings(distillation_topk=1, distillation_add_tail=False)
    one = plain("renormalised, one entry", config, 1, 1, dtype)
    rungs.append(Rung("tail", "renormalised, one entry", one))
    config = settings(distillation_topk=VOCABULARY, distillation_add_tail=False)
    whole = plain("renormalised, whole vocabulary", config, 1, 1, dtype)
    rungs.append(Rung("tail", "renormalised, whole vocabulary", whole))
    config = settings(distillation_topk=VOCABULARY - 1)
    rungs.append(Rung("tail", "tail of one token", plain("tail of one", config, 1, 1, dtype)))
    config = settings(distillation_topk=VOCABULARY, alpha=1.0)
    rungs.append(Rung("tail", "empty tail", plain("empty tail", config, 1, 1, dtype)))
    config = settings(distillation_topk=2 * VOCABULARY, distillation_add_tail=False)
    rungs.append(Rung("support", "K above the vocabulary", plain("K above", config, 1, 1, dtype)))
    config = settings(distillation_topk=TOPK, alpha=1.0)
    limit = plain("teacher's tail at its limit", config, 1, 1, dtype)
    rungs.append(Rung("tail", "teacher's tail at its limit", with_teacher_at_limit(limit)))
    return rungs


def branches(dtype: torch.dtype) -> list[Rung]:
    """Features together that a port may take for exclusive."""
    sampled = settings(full_logit_distillation=False, alpha=1.0, is_clip=2.0)
    case = with_ratio(plain("sampled token with ratio", sampled, 1, 1, dtype), 0.4)
    return [Rung("divergence", "sampled token with ratio", case)]


def extremes(dtype: torch.dtype) -> list[Rung]:
    """A token far off, and logits far apart.

    A cap of the divergence shows, a clamp of the logits, and what probabilities cannot hold.
    """
    rungs = []
    for alpha in (0.0, 1.0):
        feature = f"token far off, alpha {alpha:g}"
        case = plain(feature, settings(alpha=alpha), 1, 1, dtype)
        rungs.append(Rung("divergence", feature, opposed(case)))
    for stage, feature, changes in (
        ("log_probs", "far logits, alpha 1", {"alpha": 1.0}),
        ("divergence", "far logits, alpha 0.5", {}),
        ("tail", "far logits, renormalised", {"distillation_add_tail": False}),
    ):
        k = TOPK if "distillation_add_tail" in changes else None
        case = plain(feature, settings(distillation_topk=k, **changes), 1, 1, dtype)
        rungs.append(Rung(stage, feature, with_far_logits(case)))
    return rungs


def importance(dtype: torch.dtype) -> list[Rung]:
    """The ratio below and above its cap and beyond the limit of its log; rollout weights."""
    rungs = []
    for feature, shift, cap in (
        ("ratio below cap", -0.7, 2.0),
        ("ratio between one and cap", 0.4, 2.0),
        ("ratio above cap", 1.5, 2.0),
        ("log ratio beyond 20", 25.0, 1e10),
    ):
        case = plain(feature, settings(is_clip=cap), 1, 1, dtype)
        rungs.append(Rung("importance", feature, with_ratio(case, shift)))
    weighted = plain("rollout weights", settings(), 1, 1, dtype)
    weights = torch.full((1, 1), 1.7)
    rungs.append(
        Rung("importance", "rollout weights", replace(weighted, rollout_is_weights=weights))
    )
    config = settings(is_clip=2.0, temperature=0.7)
    warm = with_ratio(plain("ratio at a temperature", config, 1, 1, dtype), 0.4)
    rungs.append(Rung("importance", "ratio at a temperature", warm))
    several = with_ratio(plain("ratios of several tokens", settings(is_clip=2.0), 1, 3, dtype), 0.0)
    assert several.old_log_probs is not None
    moved = several.old_log_probs + torch.tensor([[0.6, -0.3, 0.2]])
    rungs.append(
        Rung("importance", "ratios of several tokens", replace(several, old_log_probs=moved))
    )
    both = with_ratio(plain("ratio and weights", settings(is_clip=2.0), 1, 1, dtype), 0.4)
    rungs.append(Rung("importance", "ratio and weights", replace(both, rollout_is_weights=weights)))
    return rungs


def masks(dtype: torch.dtype) -> list[Rung]:
    """Padding, rows without teacher signal, and the other aggregations."""
    rungs = []
    for mode in (
        "token-mean",
        "seq-mean-token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
    ):
        case = plain(f"padding, {mode}", settings(loss_agg_mode=mode), 3, 4, dtype)
        rungs.append(Rung("aggregate", f"padding, {mode}", padded(case)))
        rungs.append(Rung("aggregate", f"empty column, {mode}", with_empty_column(case)))
        masked = replace(padded(case), self_distillation_mask=torch.tensor([1.0, 0.0, 1.0]))
        rungs.append(Rung("aggregate", f"row without signal, {mode}", masked))
    nothing = plain("nothing counts", settings(), 2, 2, dtype)
    rungs.append(
        Rung(
            "aggregate",
            "nothing counts",
            replace(nothing, self_distillation_mask=torch.zeros(2)),
        )
    )
    return rungs


def first_departure(judge: Judge, dtype: torch.dtype) -> tuple[str | None, list[dict[str, Any]]]:
    """The stage where a callable first departs, and what every rung showed.

    Args:
        judge: runs a case and says whether loss and gradient hold.
        dtype: of the generated cases.

    Returns:
        The stage, None if every rung holds; and one row for each rung.
    """
    rows = []
    for rung in cached_ladder(dtype):
        outcome = judge(rung.case)
        row = {"stage": rung.stage, "feature": rung.feature, "result": outcome.result}
        rows.append(row | {"factor": outcome.factor})
    return inferred_stage(rows), rows


@lru_cache
def cached_ladder(dtype: torch.dtype) -> tuple[Rung, ...]:
    """The ladder, the same case objects each time."""
    return tuple(ladder(dtype))
