"""Finds where a callable that returns only a scalar first departs, by a ladder of generated cases.

Each rung adds one feature to a case without any. If its loss departs while those of the rungs below
hold, the stage of that feature is the first to depart. A feature that several stages have in common
is told apart by several rungs together (`ladder_rules.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType

import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.explain.ladder_rules import inferred_stage
from sdpo.parity.explain.rungs import Feature, RungResult, RungRow
from sdpo.settings.config import SDPOConfig

VOCABULARY, TOPK = 24, 6
_FAR_OFF = 9.0


@dataclass(frozen=True)
class RungOutcome:
    """What a rung showed; `factor` is the loss divided by the reference's."""

    result: RungResult
    factor: float | None = None


_JudgeRung = Callable[[LossCase], RungOutcome]
_Change = Callable[[LossCase], LossCase]


@dataclass(frozen=True)
class Rung:
    """A generated case with one more feature than the rungs below, and that feature's stage."""

    stage: str
    feature: Feature
    case: LossCase


@dataclass(frozen=True)
class _Row:
    """A rung before its dtype is known: settings, rows and tokens, and what is changed."""

    stage: str
    feature: Feature
    settings: Mapping[str, object]
    size: tuple[int, int] = (1, 1)
    changes: tuple[_Change, ...] = ()

    def rung(self, dtype: torch.dtype, base: Mapping[str, object]) -> Rung:
        """Make the case, in a dtype, from the plainest settings that the candidate takes."""
        settings = {**base, **self.settings}
        if {"alpha", "distillation_topk"} & set(self.settings):
            # what such a rung adds, a loss of sampled tokens does not have
            settings["full_logit_distillation"] = "full_logit_distillation" not in self.settings
        case = _plain(self.feature, settings, *self.size, dtype)
        for change in self.changes:
            case = change(case)
        return Rung(self.stage, self.feature, case)


def _logits(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Draw well-conditioned logits of a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(*shape, VOCABULARY, generator=generator)).to(dtype)


def _plain(
    feature: str, settings: Mapping[str, object], rows: int, tokens: int, dtype: torch.dtype
) -> LossCase:
    """Make a case without padding, over the full vocabulary at alpha 0.5 but for the settings.

    Student and teacher rank tokens differently.
    """
    neutral = {"distillation_topk": None, "is_clip": None, "alpha": 0.5}
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    return LossCase(
        id=f"ladder: {feature}",
        config=SDPOConfig.from_dict({**neutral, **settings}),
        student_logits=_logits((rows, tokens), 11, dtype),
        teacher_logits=_logits((rows, tokens), 12, dtype),
        responses=torch.randint(0, VOCABULARY, (rows, tokens), generator=generator),
        response_mask=torch.ones(rows, tokens, dtype=torch.int64),
    )


def _equal_tokens(case: LossCase) -> LossCase:
    """Repeat the first token."""
    shape = case.responses.shape
    return replace(
        case,
        student_logits=case.student_logits[:, :1].expand(*shape, -1).clone(),
        teacher_logits=case.teacher_logits[:, :1].expand(*shape, -1).clone(),
        responses=case.responses[:, :1].expand(shape).clone(),
    )


def _agreeing(case: LossCase) -> LossCase:
    """Let the teacher rank all tokens as the student does."""
    return replace(case, teacher_logits=case.student_logits * 0.5)


def _small_tail(case: LossCase) -> LossCase:
    """Leave little mass outside the first tokens, far less in the student."""
    outside = torch.arange(VOCABULARY) >= TOPK
    student = torch.where(outside, case.student_logits - 10, case.student_logits)
    teacher = torch.where(outside, case.teacher_logits - 4, case.teacher_logits)
    return replace(case, student_logits=student, teacher_logits=teacher)


def _teacher_at_limit(case: LossCase) -> LossCase:
    """Leave a small tail in the student, and a smaller one in the teacher."""
    order = case.student_logits.argsort(-1, descending=True).argsort(-1)
    outside = order >= TOPK
    student = torch.where(outside, case.student_logits - 4, case.student_logits)
    teacher = torch.where(outside, case.teacher_logits - 30, case.teacher_logits)
    return replace(case, student_logits=student, teacher_logits=teacher)


def _far_logits(case: LossCase) -> LossCase:
    """Set logits far apart, the student's likeliest tokens impossible for the teacher."""
    far = 100 * case.student_logits
    return replace(case, student_logits=far, teacher_logits=-far)


def _opposed(case: LossCase) -> LossCase:
    """Limit logits to `_FAR_OFF`, the teacher's against the student's."""
    student = case.student_logits / case.student_logits.abs().max() * _FAR_OFF
    return replace(case, student_logits=student, teacher_logits=-student)


def _ratio(shift: float | Tensor) -> _Change:
    """Give old log-probs that lie `shift` below the present ones."""

    def change(case: LossCase) -> LossCase:
        z = case.student_logits / case.config.temperature
        log_probs = z.log_softmax(-1).gather(-1, case.responses.unsqueeze(-1)).squeeze(-1)
        return replace(case, old_log_probs=(log_probs - shift).detach())

    return change


def _rollout_weight(case: LossCase) -> LossCase:
    """Weight the token as one of another sampler."""
    return replace(case, rollout_is_weights=torch.full((1, 1), 1.7))


def _near_ties(case: LossCase) -> LossCase:
    """Set the logits around the K-th one so close that roundings order them."""
    near = 1 + 1e-6 * torch.arange(VOCABULARY).flip(0).to(case.dtype)
    return replace(case, student_logits=torch.where(case.student_logits > 1, near, near - 2))


def _ratios_of_rows(case: LossCase) -> LossCase:
    """Give each row another ratio."""
    return _ratio(0.3 * torch.arange(len(case.responses)).unsqueeze(1))(case)


def _low_teacher(case: LossCase) -> LossCase:
    """Give the teacher's logits in bfloat16."""
    return replace(case, teacher_logits=case.teacher_logits.bfloat16())


def _low_student(case: LossCase) -> LossCase:
    """Give the student's logits in bfloat16."""
    return replace(case, student_logits=case.student_logits.bfloat16())


def _padded(case: LossCase) -> LossCase:
    """Make the rows ragged."""
    mask = case.response_mask.clone()
    mask[0, -1], mask[1, 1:] = 0, 0
    return replace(case, response_mask=mask)


def _empty_column(case: LossCase) -> LossCase:
    """Pad the end of every row."""
    mask = case.response_mask.clone()
    mask[:, -1] = 0
    return replace(case, response_mask=mask)


def _signal(rows: tuple[float, ...], case: LossCase) -> LossCase:
    """Give some rows a teacher signal."""
    return replace(case, self_distillation_mask=torch.tensor(rows))


_no_signal = partial(_signal, (1.0, 0.0, 1.0))


def _masks() -> list[_Row]:
    """Pad, leave rows without signal, in each aggregation."""
    ragged: dict[str, tuple[_Change, ...]] = {
        "padding": (_padded,),
        "empty column": (_empty_column,),
        "row without signal": (_padded, _no_signal),
    }
    modes = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
    return [
        _Row("aggregate", Feature(f"{name}, {mode}"), {"loss_agg_mode": mode}, (3, 4), changes)
        for mode in modes
        for name, changes in ragged.items()
    ]


_SAMPLED = {"full_logit_distillation": False, "alpha": 1.0}
_TOPK = {"distillation_topk": TOPK}
_NO_TAIL = {"distillation_add_tail": False}
_CAPPED = {"is_clip": 2.0}
_WARM = {"temperature": 0.7}

_ROWS = (
    _Row("divergence", Feature.ALPHA_0, {"alpha": 0.0}),
    _Row("divergence", Feature.ALPHA_1, {"alpha": 1.0}),
    _Row("divergence", Feature.ALPHA_HALF, {"alpha": 0.5}),
    _Row("divergence", Feature.ALPHA_QUARTER, {"alpha": 0.25}),
    _Row("divergence", Feature.SAMPLED, _SAMPLED),
    _Row("log_probs", Feature.TEMPERATURE, _WARM),
    _Row("log_probs", Feature.TEMPERATURE_SAMPLED, _WARM | _SAMPLED),
    # equal tokens show a wrong scale, distinct ones a wrong alignment
    _Row("aggregate", Feature.EQUAL_TOKENS, {}, (1, 3), (_equal_tokens,)),
    _Row("log_probs", Feature.DISTINCT_TOKENS, {}, (1, 3)),
    _Row("log_probs", Feature.DISTINCT_SAMPLED, _SAMPLED, (1, 3)),
    _Row("aggregate", Feature.TWO_ROWS, {}, (2, 3)),
    _Row("tail", Feature.RENORMALISED_SAME_RANKING, _TOPK | _NO_TAIL, changes=(_agreeing,)),
    _Row("tail", Feature.TAIL_SAME_RANKING, _TOPK, changes=(_agreeing,)),
    _Row("support", Feature.RENORMALISED, _TOPK | _NO_TAIL),
    _Row("support", Feature.TAIL, _TOPK),
    _Row("tail", Feature.SMALL_TAIL, _TOPK, changes=(_small_tail,)),
    _Row("tail", Feature.RENORMALISED_ONE, {"distillation_topk": 1} | _NO_TAIL),
    _Row("tail", Feature.RENORMALISED_WHOLE, {"distillation_topk": VOCABULARY} | _NO_TAIL),
    _Row("tail", Feature.TAIL_OF_ONE, {"distillation_topk": VOCABULARY - 1}),
    _Row("tail", Feature.EMPTY_TAIL, {"distillation_topk": VOCABULARY, "alpha": 1.0}),
    _Row("support", Feature.K_ABOVE_VOCABULARY, {"distillation_topk": 2 * VOCABULARY} | _NO_TAIL),
    _Row("tail", Feature.TEACHER_AT_LIMIT, _TOPK | {"alpha": 1.0}, changes=(_teacher_at_limit,)),
    _Row("importance", Feature.RATIO_BELOW_CAP, _CAPPED, changes=(_ratio(-0.7),)),
    _Row("importance", Feature.RATIO_BELOW_CAP_ABOVE_ONE, _CAPPED, changes=(_ratio(0.4),)),
    _Row("importance", Feature.RATIO_ABOVE_CAP, _CAPPED, changes=(_ratio(1.5),)),
    _Row("importance", Feature.LOG_RATIO_BEYOND_LIMIT, {"is_clip": 1e10}, changes=(_ratio(25.0),)),
    _Row("importance", Feature.ROLLOUT_WEIGHTS, {}, changes=(_rollout_weight,)),
    _Row("importance", Feature.RATIO_AT_TEMPERATURE, _CAPPED | _WARM, changes=(_ratio(0.4),)),
    _Row("importance", Feature.RATIOS, _CAPPED, (1, 3), (_ratio(torch.tensor([-0.6, 0.3, -0.2])),)),
    _Row("importance", Feature.RATIO_AND_WEIGHTS, _CAPPED, (1, 1), (_ratio(0.4), _rollout_weight)),
    *_masks(),
    _Row("aggregate", Feature.NOTHING_COUNTS, {}, (2, 2), (partial(_signal, (0.0, 0.0)),)),
    # two features that a port may take for alternatives
    _Row("divergence", Feature.SAMPLED_WITH_RATIO, _SAMPLED | _CAPPED, changes=(_ratio(0.4),)),
    # these show a cap of the divergence, a clamp of logits, and probabilities that become zero
    _Row("divergence", Feature.FAR_OFF_ALPHA_0, {"alpha": 0.0}, changes=(_opposed,)),
    _Row("divergence", Feature.FAR_OFF_ALPHA_1, {"alpha": 1.0}, changes=(_opposed,)),
    _Row("log_probs", Feature.FAR_LOGITS_ALPHA_1, {"alpha": 1.0}, changes=(_far_logits,)),
    _Row("divergence", Feature.FAR_LOGITS_ALPHA_HALF, {}, changes=(_far_logits,)),
    _Row("tail", Feature.FAR_LOGITS_RENORMALISED, _TOPK | _NO_TAIL, changes=(_far_logits,)),
    # these show what departs in two features together
    _Row("support", Feature.RENORMALISED_AT_TEMPERATURE, _TOPK | _NO_TAIL | _WARM),
    _Row("support", Feature.TAIL_AT_TEMPERATURE, _TOPK | _WARM),
    _Row("support", Feature.NEAR_TIES, _TOPK | _NO_TAIL, changes=(_near_ties,)),
    _Row("tail", Feature.RENORMALISED_ALPHA_1, _TOPK | _NO_TAIL | {"alpha": 1.0}),
    _Row(
        "importance", Feature.NO_SIGNAL_WITH_RATIO, _CAPPED, (3, 2), (_ratios_of_rows, _no_signal)
    ),
    _Row("log_probs", Feature.LOW_TEACHER, {}, changes=(_low_teacher,)),
    _Row("log_probs", Feature.LOW_STUDENT, {}, changes=(_low_student,)),
    _Row("aggregate", Feature.MANY_TOKENS, {}, (1, 40)),
)


@lru_cache
def _rungs(dtype: torch.dtype, base: tuple[tuple[str, object], ...]) -> tuple[Rung, ...]:
    """Make all rungs, the same case objects each time."""
    return tuple(row.rung(dtype, dict(base)) for row in _ROWS)


def ladder(dtype: torch.dtype, base: Mapping[str, object] = MappingProxyType({})) -> Sequence[Rung]:
    """Make all rungs in order, for one dtype.

    Args:
        dtype: of the logits.
        base: the plainest settings that the candidate takes. A top-k without tail that holds the
            whole vocabulary stands for a full vocabulary.
    """
    settings = dict(base)
    if settings.get("distillation_topk") is not None:
        settings["distillation_topk"] = VOCABULARY
    return _rungs(dtype, tuple(settings.items()))


def climb(
    judge: _JudgeRung, dtype: torch.dtype, base: Mapping[str, object] = MappingProxyType({})
) -> tuple[str | None, list[RungRow]]:
    """Find the stage where a callable first departs, and what every rung showed.

    Args:
        judge: runs a case and says whether loss and gradient hold.
        dtype: of the generated cases.
        base: the plainest settings that the candidate takes.

    Returns:
        The stage, None if every rung holds; and one row for each rung.
    """
    rows: list[RungRow] = []
    for rung in ladder(dtype, base):
        outcome = judge(rung.case)
        result, factor = outcome.result, outcome.factor
        rows.append(
            {"stage": rung.stage, "feature": rung.feature, "result": result, "factor": factor}
        )
    return inferred_stage(rows), rows
