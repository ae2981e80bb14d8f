"""Conditions that a loss case may fulfil, in words: what failing cases may have in common."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth.tolerances import TOLERANCES

Condition = Callable[[LossCase], bool]
FAR = 50
_FEWEST = 8
"""Failing cases from which conditions that most of them share say something."""


def _size(case: LossCase, axis: int) -> int:
    return case.student_logits.shape[axis]


def _k(case: LossCase) -> int | None:
    return case.config.distillation_topk if case.mode.startswith("topk") else None


def _weights(case: LossCase) -> Tensor:
    weights = case.rollout_is_weights
    return torch.ones(1) if weights is None else weights


def _has_ratio(case: LossCase) -> bool:
    return case.config.is_clip is not None and case.old_log_probs is not None


def _counts(case: LossCase) -> Tensor:
    return case.response_mask != 0


def _is_padded_left(case: LossCase) -> bool:
    counts = _counts(case)
    return bool((~counts[:, 0] & counts[:, -1]).any())


def _has_gaps(case: LossCase) -> bool:
    return bool((_counts(case).int().diff(dim=1) != 0).sum(1).gt(1).any())


def _spread(case: LossCase) -> float:
    finite = case.student_logits.float().nan_to_num(neginf=0.0, posinf=0.0)
    return float((finite.amax(-1) - finite.amin(-1)).max())


def _ties(case: LossCase) -> bool:
    ordered = case.student_logits.sort(-1).values
    return bool((ordered.diff(dim=-1) == 0).any())


def _dtypes(case: LossCase) -> tuple[torch.dtype, torch.dtype]:
    return case.student_logits.dtype, case.teacher_logits.dtype


CONDITIONS: Mapping[str, Condition] = {
    "sampled tokens": lambda c: c.mode == "sampled",
    "the full vocabulary": lambda c: c.mode == "full_vocab",
    "a top-k with tail": lambda c: c.mode == "topk_tail",
    "a top-k without tail": lambda c: c.mode == "topk_renorm",
    "a top-k": lambda c: c.mode.startswith("topk"),
    "K = 1": lambda c: _k(c) == 1,
    "K of the vocabulary or more": lambda c: (_k(c) or 0) >= _size(c, 2),
    "alpha 0": lambda c: c.config.alpha == 0.0,
    "alpha 0.5": lambda c: c.config.alpha == 0.5,
    "alpha 1": lambda c: c.config.alpha == 1.0 and c.mode != "sampled",
    "alpha between 0 and 1, not 0.5": lambda c: c.config.alpha not in (0.0, 0.5, 1.0),
    "temperature below 1": lambda c: c.config.temperature < 1,
    "temperature above 1": lambda c: c.config.temperature > 1,
    "a temperature": lambda c: c.config.temperature != 1,
    "token-mean": lambda c: c.config.loss_agg_mode == "token-mean",
    "seq-mean-token-mean": lambda c: c.config.loss_agg_mode == "seq-mean-token-mean",
    "seq-mean-token-sum": lambda c: c.config.loss_agg_mode == "seq-mean-token-sum",
    "seq-mean-token-sum-norm": lambda c: c.config.loss_agg_mode == "seq-mean-token-sum-norm",
    "a mean over rows": lambda c: c.config.loss_agg_mode != "token-mean",
    "a ratio": _has_ratio,
    "is_clip below 1": lambda c: _has_ratio(c) and (c.config.is_clip or 1) < 1,
    "is_clip of 1 or more": lambda c: _has_ratio(c) and (c.config.is_clip or 0) >= 1,
    "rollout weights": lambda c: bool((_weights(c) != 1).any()),
    "a rollout weight of 0": lambda c: bool((_weights(c) == 0).any()),
    "rollout weights above 2": lambda c: bool((_weights(c) > 2).any()),
    "rows without teacher": lambda c: bool((c.loss_mask.sum(1) < c.response_mask.sum(1)).any()),
    "one row": lambda c: _size(c, 0) == 1,
    "several rows": lambda c: _size(c, 0) > 1,
    "more than 8 rows": lambda c: _size(c, 0) > 8,
    "as many rows as tokens": lambda c: _size(c, 0) == _size(c, 1),
    "one token": lambda c: _size(c, 1) == 1,
    "more than 32 tokens": lambda c: _size(c, 1) > 32,
    "more than 64 tokens": lambda c: _size(c, 1) > 64,
    "more than 255 tokens that count": lambda c: int(_counts(c).sum()) > 255,
    "a vocabulary above 512": lambda c: _size(c, 2) > 512,
    "every token counts": lambda c: bool(_counts(c).all()),
    "tokens that do not count": lambda c: not bool(_counts(c).all()),
    "a row of which nothing counts": lambda c: not bool(_counts(c).any(1).all()),
    "tokens left out in between": _has_gaps,
    "padding on the left": _is_padded_left,
    "a bool mask": lambda c: c.response_mask.dtype == torch.bool,
    "a uint8 mask": lambda c: c.response_mask.dtype == torch.uint8,
    "a mask of floats": lambda c: c.response_mask.is_floating_point(),
    "an infinite logit": lambda c: bool(
        c.student_logits.isinf().any() | c.teacher_logits.isinf().any()
    ),
    "logits far apart": lambda c: _spread(c) > FAR,
    "equal logits": _ties,
    "student and teacher equal": lambda c: torch.equal(
        c.student_logits.double(), c.teacher_logits.double()
    ),
    "float32": lambda c: _dtypes(c) == (torch.float32,) * 2,
    "float64": lambda c: _dtypes(c) == (torch.float64,) * 2,
    "bfloat16": lambda c: _dtypes(c) == (torch.bfloat16,) * 2,
    "float16": lambda c: _dtypes(c) == (torch.float16,) * 2,
    "half precision": lambda c: torch.finfo(c.coarsest_dtype).bits == 16,
    "student and teacher in two dtypes": lambda c: len(set(_dtypes(c))) == 2,
    "a student below the teacher's precision": lambda c: (
        torch.finfo(_dtypes(c)[0]).eps > torch.finfo(_dtypes(c)[1]).eps
    ),
    "a teacher below the student's precision": lambda c: (
        torch.finfo(_dtypes(c)[0]).eps < torch.finfo(_dtypes(c)[1]).eps
    ),
    "inputs that are not contiguous": lambda c: c.call.layout in ("slice", "transposed"),
    "logits that are no leaf": lambda c: c.call.layout == "non-leaf",
    "inputs by position": lambda c: c.call.by_position,
    "an incoming gradient other than 1": lambda c: c.call.incoming != 1,
    "an incoming gradient below 0": lambda c: c.call.incoming < 0,
    "autocast": lambda c: c.call.autocast,
    "teacher logits without gradient": lambda c: not c.call.teacher_grad,
    "a call after another one": lambda c: c.call.order == "after another",
    "a call between forward and backward": lambda c: c.call.order == "around another",
    "backward twice": lambda c: c.call.order == "backward twice",
    "no_grad": lambda c: c.call.order == "no_grad",
}
"""What a case may fulfil, by the words that reports use."""


@lru_cache(maxsize=1024)
def fulfilled(case: LossCase) -> frozenset[str]:
    """Name the conditions that a case fulfils."""
    return frozenset(name for name, condition in CONDITIONS.items() if condition(case))


def telling_apart(
    failing: Sequence[LossCase], holding: Sequence[LossCase], together: int = 2
) -> str:
    """Name a condition that all failing cases fulfil and no holding one; empty if there is none.

    Args:
        failing: cases in which something departs.
        holding: cases in which it does not.
        together: how many conditions may be named, if one alone does not tell them apart.
    """
    if not failing:
        return ""
    shared = frozenset.intersection(*map(fulfilled, failing))
    met = [fulfilled(case) for case in holding]
    names = [name for name in CONDITIONS if name in shared]
    for name in names:
        if not any(name in conditions for conditions in met):
            return name
    for place, name in enumerate(names if together > 1 else ()):
        for other in names[place + 1 :]:
            if not any(name in conditions and other in conditions for conditions in met):
                return f"{name} and {other}"
    return ""


class Prevalent(NamedTuple):
    """Conditions that most failing cases fulfil and few holding ones, with how many of each."""

    conditions: str
    failing: int
    holding: int


def telling_mostly(failing: Sequence[LossCase], holding: Sequence[LossCase]) -> Prevalent | None:
    """Name one or two conditions, or their negations, that nearly only failing cases fulfil.

    For losses with several faults, of which none shows in every failing case. None where no
    conditions are met by at least half of the failing cases and at most a fifth of the holding
    ones, or where so few cases fail that some conditions always seem to tell.
    """
    if len(failing) < _FEWEST or not holding:
        return None
    sides = [[fulfilled(case) for case in side] for side in (failing, holding)]
    met: dict[str, tuple[int, int]] = {}  # bit n: whether case n fulfils it
    for name in CONDITIONS:
        ours, theirs = (sum((name in m) << n for n, m in enumerate(side)) for side in sides)
        met[name] = ours, theirs
        met[f"not {name}"] = ours ^ (1 << len(failing)) - 1, theirs ^ (1 << len(holding)) - 1
    pairs = {
        f"{a} and {b}": (met[a][0] & met[b][0], met[a][1] & met[b][1])
        for a, b in combinations(met, 2)
    }

    def gain(both: tuple[int, int]) -> float:
        return both[0].bit_count() / len(failing) - both[1].bit_count() / len(holding)

    best, pair = max(met, key=lambda n: gain(met[n])), max(pairs, key=lambda n: gain(pairs[n]))
    chosen = met[best]
    if gain(pairs[pair]) > gain(chosen) + TOLERANCES.pair_of_conditions_gain:
        best, chosen = pair, pairs[pair]
    fails, holds = (side.bit_count() for side in chosen)
    if 2 * fails < len(failing) or 5 * holds > len(holding):
        return None
    return Prevalent(best, fails, holds)
