"""The generated cases of the metamorphic relations, and what each is cut, moved or relabelled to.

A claim says that loss and gradient of one case are a weighted sum of those of transformed cases;
without transformed cases the sum is zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth.oracle import Array
from sdpo.settings.config import SDPOConfig

_ROWS, _TOKENS, _VOCABULARY, _TOPK = 4, 4, 16, 6
_WIDE, _DEFAULT_TOPK = 128, 100
_COLUMNS = 3
GRID = 2.0**14
"""Logits are multiples of 1 / GRID: they can be shifted exactly, and do not tie."""
NEAR = 2.0**-12
"""Distance from the ends of alpha at which continuity is tested."""

_AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
_PER_ROW_MEAN = "seq-mean-token-mean"
_PER_ROW = ("student_logits", "teacher_logits", "responses", "response_mask")
_OPTIONAL = ("old_log_probs", "rollout_is_weights", "self_distillation_mask")

Place = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class TransformedCase:
    """A transformed case: its loss counts `weight` times, `place` maps its gradient back."""

    case: LossCase
    weight: float = 1.0
    place: Place = lambda gradient: gradient


@dataclass(frozen=True, eq=False)
class Claim:
    """Loss and gradient of `case` are the weighted sum of those of `parts`, zero without parts."""

    case: LossCase
    parts: tuple[TransformedCase, ...] = ()


def generated(
    name: str,
    seed: int,
    width: int = _VOCABULARY,
    rows: int = _ROWS,
    tokens: int = _TOKENS,
    **changes,
) -> LossCase:
    """Generate a float32 case with ragged rows."""
    generator = torch.Generator().manual_seed(seed)
    neutral = {"distillation_topk": None, "is_clip": None, "alpha": 0.5}
    config = SDPOConfig.from_dict({**neutral, **changes})

    def logits() -> Tensor:
        return (1.5 * GRID * torch.randn(rows, tokens, width, generator=generator)).round() / GRID

    lengths = torch.arange(rows) % tokens + 1
    case = LossCase(
        id=name,
        config=config,
        student_logits=logits(),
        teacher_logits=logits(),
        responses=torch.randint(0, width, (rows, tokens), generator=generator),
        response_mask=(torch.arange(tokens) < lengths.flip(0)[:, None]).long(),
    )
    if config.is_clip is None:
        return case
    scaled = case.student_logits / config.temperature
    own = scaled.log_softmax(-1).gather(-1, case.responses[..., None])[..., 0]
    return replace(case, old_log_probs=own + torch.randn(own.shape, generator=generator) * 0.3)


@cache
def bases() -> tuple[LossCase, ...]:
    """Cases that together show every form of the divergence and every aggregation."""
    weighted = generated(
        "full vocabulary, weights, per row", 5, alpha=1.0, loss_agg_mode=_PER_ROW_MEAN
    )
    weights = 0.5 + torch.rand(_ROWS, _TOKENS, generator=torch.Generator().manual_seed(6))
    tail = {"distillation_topk": _TOPK, "is_clip": 2.0, "loss_agg_mode": _PER_ROW_MEAN}
    whole = {"distillation_topk": _TOPK, "distillation_add_tail": False, "alpha": 0.0}
    sampled = {"full_logit_distillation": False, "alpha": 1.0, "temperature": 0.7}
    return (
        generated("usual settings", 1, _WIDE, distillation_topk=_DEFAULT_TOPK),
        generated("full vocabulary, token-mean", 2, alpha=0.25),
        generated("top-k with tail, ratio, per row", 3, **tail),
        generated("top-k renormalised, sums", 4, loss_agg_mode="seq-mean-token-sum", **whole),
        generated("sampled, normed sums", 7, loss_agg_mode="seq-mean-token-sum-norm", **sampled),
        replace(weighted, rollout_is_weights=weights),
    )


@cache
def _bare_bases() -> tuple[LossCase, ...]:
    """Cases of a distribution's divergence, without ratio and weights."""
    tail = {"distillation_topk": _TOPK, "loss_agg_mode": _PER_ROW_MEAN}
    whole = {"distillation_topk": _TOPK, "distillation_add_tail": False}
    found = [generated("usual settings", 1, _WIDE, distillation_topk=_DEFAULT_TOPK)]
    for number, alpha in enumerate((0.0, 0.5, 1.0)):
        found += [
            generated(f"full vocabulary, alpha {alpha:g}", 10 + number, alpha=alpha),
            generated(f"top-k with tail, alpha {alpha:g}", 20 + number, alpha=alpha, **tail),
            generated(f"top-k renormalised, alpha {alpha:g}", 30 + number, alpha=alpha, **whole),
        ]
    return tuple(found)


def _renamed(case: LossCase, addition: str) -> LossCase:
    """The same case under a longer name."""
    return replace(case, id=f"{case.id}; {addition}")


def rows_of(case: LossCase, rows: Sequence[int]) -> LossCase:
    """Some rows of a case, in the given order."""
    index = torch.tensor(rows)
    names = [n for n in (*_PER_ROW, *_OPTIONAL) if getattr(case, n) is not None]
    moved = {name: getattr(case, name)[index] for name in names}
    return replace(case, id=f"{case.id}; rows {', '.join(map(str, rows))}", **moved)


def into_rows(rows: Sequence[int], count: int) -> Place:
    """Puts the gradient of some rows into a batch of `count`, zero elsewhere."""

    def place(gradient: Array) -> Array:
        whole = np.zeros((count, *gradient.shape[1:]))
        whole[list(rows)] = gradient
        return whole

    return place


def _split(case: LossCase, groups: Sequence[Sequence[int]]) -> Claim:
    """The batch is the mean over groups of equally many rows."""
    count, share = len(case.responses), 1 / len(groups)
    parts = [TransformedCase(rows_of(case, g), share, into_rows(g, count)) for g in groups]
    return Claim(case, tuple(parts))


def _splits(groups: Sequence[Sequence[int]]) -> list[Claim]:
    """The same split of every base case."""
    return [_split(case, groups) for case in bases()]


def padded(case: LossCase, columns: int, left: bool, seed: int = 40) -> LossCase:
    """Columns of padding on one side; what they hold is random."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(case.responses), columns)

    def beside(tensor: Tensor, filler: Tensor) -> Tensor:
        return torch.cat([filler, tensor] if left else [tensor, filler], dim=1)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    width = case.student_logits.shape[-1]
    tokens = torch.randint(0, width, shape, generator=generator)
    changes = {
        "student_logits": beside(case.student_logits, noise(*shape, width)),
        "teacher_logits": beside(case.teacher_logits, noise(*shape, width)),
        "responses": beside(case.responses, tokens),
        "response_mask": beside(case.response_mask, torch.zeros_like(tokens)),
    }
    if case.old_log_probs is not None:
        changes["old_log_probs"] = beside(case.old_log_probs, noise(*shape))
    if case.rollout_is_weights is not None:
        changes["rollout_is_weights"] = beside(case.rollout_is_weights, noise(*shape).exp())
    return replace(case, id=f"{case.id}; padded {'left' if left else 'right'}", **changes)


def _padding_side() -> list[Claim]:
    """Padding on the left is padding on the right."""

    def moved(gradient: Array) -> Array:
        return np.roll(gradient, _COLUMNS, axis=1)

    return [
        Claim(
            padded(c, _COLUMNS, True), (TransformedCase(padded(c, _COLUMNS, False), place=moved),)
        )
        for c in bases()
    ]


def _extra_padding() -> list[Claim]:
    """Columns of padding change nothing and get no gradient."""

    def widened(gradient: Array) -> Array:
        return np.pad(gradient, ((0, 0), (0, _COLUMNS), (0, 0)))

    return [
        Claim(padded(c, _COLUMNS, False), (TransformedCase(c, place=widened),)) for c in bases()
    ]


def _row_order() -> list[Claim]:
    """Rows in another order."""
    order = (2, 0, 3, 1)
    return [
        Claim(c, (TransformedCase(rows_of(c, order), place=into_rows(order, _ROWS)),))
        for c in bases()
    ]


def _masked_row() -> list[Claim]:
    """A row that does not count, by either mask, is as if it were not there."""
    kept, signal = (0, 2, 3), torch.tensor([1.0, 0.0, 1.0, 1.0])
    claims = []
    for case in bases():
        part = TransformedCase(rows_of(case, kept), place=into_rows(kept, _ROWS))
        masked = _renamed(replace(case, self_distillation_mask=signal), "row without signal")
        empty = replace(case, response_mask=case.response_mask * signal.long()[:, None])
        claims += [Claim(masked, (part,)), Claim(_renamed(empty, "row without tokens"), (part,))]
    return claims


def _nothing_counts() -> list[Claim]:
    """A batch without any row that counts, by either mask, in each aggregation."""
    claims = []
    for mode in _AGGREGATIONS:
        case = generated(f"full vocabulary, {mode}", 8, loss_agg_mode=mode)
        masked = replace(case, self_distillation_mask=torch.zeros(_ROWS))
        empty = replace(case, response_mask=torch.zeros_like(case.response_mask))
        claims += [Claim(_renamed(masked, "no signal")), Claim(_renamed(empty, "no tokens"))]
    return claims


def _logit_shift() -> list[Claim]:
    """A constant added to all logits of a side; exact, because the logits lie on a grid."""
    claims = []
    for case in bases():
        moved = replace(
            case,
            student_logits=case.student_logits + 4.0,
            teacher_logits=case.teacher_logits - 8.0,
        )
        claims.append(Claim(case, (TransformedCase(_renamed(moved, "shifted")),)))
    return claims


def _vocabulary_order() -> list[Claim]:
    """Entries of the vocabulary under other numbers."""
    claims = []
    for case in bases():
        width = case.student_logits.shape[-1]
        order = torch.randperm(width, generator=torch.Generator().manual_seed(9))
        new_number = order.argsort()
        moved = replace(
            case,
            student_logits=case.student_logits[..., order],
            teacher_logits=case.teacher_logits[..., order],
            responses=new_number[case.responses],
        )
        part = TransformedCase(_renamed(moved, "renumbered"), place=_taken(new_number.numpy()))
        claims.append(Claim(case, (part,)))
    return claims


def _taken(index: Array) -> Place:
    """Reorders the last axis of a gradient."""
    return lambda gradient: gradient[..., index]


def _equal_sides() -> list[Claim]:
    """The teacher's logits are the student's: nothing to learn."""
    return [
        Claim(_renamed(replace(c, teacher_logits=c.student_logits.clone()), "equal sides"))
        for c in _bare_bases()
    ]


def _single_tokens() -> list[Claim]:
    """One token each, whose loss is its divergence."""
    claims = []
    for case in _bare_bases():
        index = torch.tensor([0])
        one = {name: getattr(case, name)[index][:, :1] for name in _PER_ROW}
        claims.append(Claim(_renamed(replace(case, **one), "one token")))
    return claims


def _ends_of_alpha() -> list[Claim]:
    """The limit at each end of alpha, from two points near it: 2 f(h/2) - f(h) → f(0)."""
    claims = []
    for end in (0.0, 1.0):
        for topk in (None, _TOPK):
            case = generated(f"alpha {end:g}, top-k {topk}", 50, alpha=end, distillation_topk=topk)
            parts = [
                TransformedCase(_at_alpha(case, abs(end - NEAR / 2)), 2.0),
                TransformedCase(_at_alpha(case, abs(end - NEAR)), -1.0),
            ]
            claims.append(Claim(case, tuple(parts)))
    return claims


def _at_alpha(case: LossCase, alpha: float) -> LossCase:
    """The same case with another alpha."""
    return _renamed(replace(case, config=replace(case.config, alpha=alpha)), f"alpha {alpha:g}")


MAKERS: dict[str, Callable[[], list[Claim]]] = {
    "micro-batch split": partial(_splits, ((0, 1), (2, 3))),
    "process split": partial(_splits, ((0, 2), (1, 3))),
    "gradient accumulation": partial(_splits, ((0,), (1,), (2,), (3,))),
    "padding side": _padding_side,
    "extra padding": _extra_padding,
    "row order": _row_order,
    "masked row": _masked_row,
    "nothing counts": _nothing_counts,
    "logit shift": _logit_shift,
    "vocabulary order": _vocabulary_order,
    "equal sides": _equal_sides,
    "never negative": _single_tokens,
    "teacher gets no gradient": lambda: [Claim(case) for case in bases()],
    "continuity in alpha": _ends_of_alpha,
}
"""What makes the claims of each relation."""


@cache
def claims_of(name: str) -> tuple[Claim, ...]:
    """Make the claims of a relation, by its name; the same objects each time."""
    return tuple(MAKERS[name]())
