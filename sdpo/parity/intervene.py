"""Where does a callable that returns only a scalar first depart? A ladder of interventions.

Each rung is a small generated case that adds one feature to rungs below it; everything else is
neutral. A rung whose loss is over budget while the ones below hold names the stage of its feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sdpo.config import SDPOConfig
from sdpo.parity.case import LossCase

VOCABULARY, TOPK = 24, 6
LOSS_HOLDS = "holds"
LOSS_DEPARTS = "departs"
GRADIENT_DEPARTS = "gradient departs"
UNUSABLE = "not covered"

Judge = Callable[[LossCase], str]


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
    rows = plain("two rows", settings(), 2, 3, dtype)
    return [
        Rung("aggregate", "equal tokens", equal),
        Rung("log_probs", "distinct tokens", distinct),
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
    config = settings(distillation_topk=VOCABULARY - 1)
    rungs.append(Rung("tail", "tail of one token", plain("tail of one", config, 1, 1, dtype)))
    config = settings(distillation_topk=VOCABULARY, alpha=1.0)
    rungs.append(Rung("tail", "empty tail", plain("empty tail", config, 1, 1, dtype)))
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
    both = with_ratio(plain("ratio and weights", settings(is_clip=2.0), 1, 1, dtype), 0.4)
    rungs.append(
        Rung("importance", "ratio and weights", replace(both, rollout_is_weights=weights))
    )
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


def first_departure(judge: Judge, dtype: torch.dtype) -> tuple[str | None, list[dict[str, str]]]:
    """The stage where a callable first departs, and what every rung showed.

    Args:
        judge: runs a case and says whether loss and gradient hold.
        dtype: of the generated cases.

    Returns:
        The stage, None if every rung holds; and one row for each rung.
    """
    rows = []
    for rung in ladder(dtype):
        rows.append({"stage": rung.stage, "feature": rung.feature, "result": judge(rung.case)})
    return inferred_stage(rows), rows


def inferred_stage(rows: list[dict[str, str]]) -> str | None:
    """The stage that the results of the rungs point to."""
    departs = {row["feature"]: row["stage"] for row in rows if row["result"] == LOSS_DEPARTS}
    holds = {row["feature"] for row in rows if row["result"] == LOSS_HOLDS}
    alphas = {"alpha 0", "alpha 1", "alpha 0.5", "alpha 0.25"}
    if not departs:
        gradient = any(row["result"] == GRADIENT_DEPARTS for row in rows)
        return "gradient" if gradient else None
    if departs.keys() >= {"sampled token", *alphas}:
        return "log_probs"
    if "sampled token" in departs and any(
        departs.get(feature) == "importance" for feature in departs
    ):
        if alphas <= holds:
            return "log_probs"
    first = next(iter(departs))
    agreeing_rungs = {"top-k renormalised, same ranking", "top-k tail, same ranking"}
    if first in agreeing_rungs and agreeing_rungs <= departs.keys():
        return "support" if "tail of one token" in holds else "tail"
    return departs[first]
