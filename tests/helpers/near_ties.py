"""Random loss cases with near ties at the edge of the top-k, and programs that choose there.

A correct program takes the K largest of some key that orders the entries as the logits do. Where
logits are a few units in the last place apart, keys become equal, or change places.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.faults.reference_parts import LossPart, LossState
from sdpo.settings.config import SDPOConfig
from sdpo.settings.rules import LOSS_AGG_MODES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TEMPERATURES = (0.7, 1.0, 1.3)
BEYOND = 10


def near_tie_case(seed: int) -> LossCase:
    """One to three rows of up to four tokens, most of them with a near tie at the edge.

    The K-th logit and some others, up to six in all, are 0 to 16 units in the last place apart.
    """
    numbers = np.random.default_rng(seed)
    rows, tokens, width = numbers.integers(1, 4), numbers.integers(1, 5), numbers.integers(6, 40)
    count, dtype = int(numbers.integers(1, min(12, width - 2))), DTYPES[seed % len(DTYPES)]
    random = torch.Generator().manual_seed(seed)
    shape = (int(rows), int(tokens), int(width))
    # of logits further apart probabilities are zero in float16
    scale = float(numbers.choice([0.3, 1.5] if dtype == torch.float16 else [0.3, 1.5, 4.0]))
    student = (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
    teacher = (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
    for row, token in np.ndindex(rows, tokens):
        if numbers.random() < 0.8:
            tied = int(numbers.integers(2, min(7, width - count + 1)))
            student[row, token] = tie(student[row, token], count, tied, numbers)
    mask = torch.ones(shape[:2], dtype=torch.int64)
    mask[0, 1:] = torch.from_numpy(numbers.integers(2, size=shape[1] - 1))
    alpha = float(numbers.choice([0.0, 0.25, 0.5, 1.0]))
    return LossCase(
        id=f"near ties {seed}",
        config=SDPOConfig(
            alpha=alpha,
            distillation_topk=count,
            distillation_add_tail=bool(numbers.integers(2)),
            is_clip=None,
            loss_agg_mode=str(numbers.choice(LOSS_AGG_MODES)),
            temperature=TEMPERATURES[int(numbers.integers(3))],
        ),
        student_logits=student,
        teacher_logits=teacher,
        responses=torch.from_numpy(numbers.integers(width, size=shape[:2])),
        response_mask=mask,
    )


def tie(logits: Tensor, count: int, tied: int, numbers: np.random.Generator) -> Tensor:
    """Logits `(V,)` of which `tied` are near each other, the edge of the top-k among them."""
    order = logits.argsort(descending=True)
    first = max(0, count - int(numbers.integers(1, tied)))
    edge = logits[order[count - 1]]
    size = float(abs(edge)) or 1.0
    ulp = torch.finfo(logits.dtype).eps * 2.0 ** np.floor(np.log2(size))
    steps = torch.from_numpy(numbers.integers(-8, 9, size=tied))
    found = logits.clone()
    found[order[first : first + tied]] = (edge.double() + ulp * steps.double()).to(logits.dtype)
    return found


def largest(key: Callable[[LossState], Tensor], *, last: bool = False) -> LossPart:
    """The K largest of a key; of equal ones the first by vocabulary id, or the last."""

    def choose(state: LossState) -> Tensor:
        found = key(state)
        if last:
            order = found.flip(-1).sort(dim=-1, descending=True, stable=True).indices
            return found.shape[-1] - 1 - order[..., : state.support_size]
        return found.sort(dim=-1, descending=True, stable=True).indices[..., : state.support_size]

    return choose


def centred(state: LossState) -> Tensor:
    """Logits less their maximum, then over the temperature."""
    return (
        state.student_logits - state.student_logits.amax(-1, keepdim=True)
    ) / state.config.temperature


KEYS: Mapping[str, Callable[[LossState], Tensor]] = {
    "logits": lambda state: state.student_logits,
    "logits over temperature": lambda state: state.scaled_student,
    "logits times one over temperature": lambda state: (
        state.student_logits * (1 / state.config.temperature)
    ),
    "centred logits": centred,
    "log_softmax": lambda state: state.scaled_student.log_softmax(-1),
    "logits less logsumexp": lambda state: (
        state.scaled_student - state.scaled_student.logsumexp(-1, keepdim=True)
    ),
    "log_softmax of centred logits": lambda state: centred(state).log_softmax(-1),
    "softmax": lambda state: state.scaled_student.softmax(-1),
    "exp of log_softmax": lambda state: state.scaled_student.log_softmax(-1).exp(),
    "exp over its sum": lambda state: (
        centred(state).exp() / centred(state).exp().sum(-1, keepdim=True)
    ),
    "log_softmax in float32": lambda state: (
        state.scaled_student.float().log_softmax(-1)
        if state.scaled_student.dtype != torch.float64
        else state.scaled_student.log_softmax(-1)
    ),
}
CORRECT: Mapping[str, LossPart] = {
    f"{name}, {'last' if last else 'first'}": largest(key, last=last)
    for name, key in KEYS.items()
    for last in (False, True)
}
"""Correct choices of the support."""


def alternating(state: LossState) -> Tensor:
    """Another key at each token."""
    first, last = (largest(KEYS["log_softmax"], last=at)(state) for at in (False, True))
    even = torch.arange(first.shape[1])[None, :, None] % 2 == 0
    return torch.where(even, first, last)


def crowded_case(seed: int) -> LossCase:
    """A near-tie case in which 12 to 30 entries are equal at the edge, all of them now and then."""
    numbers = np.random.default_rng(seed)
    case = near_tie_case(seed)
    width, shape = 40, case.responses.shape
    tied = width if seed % 5 == 0 else int(numbers.integers(12, 31))
    above = 0 if tied == width else int(numbers.integers(0, 6))
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((2, *shape, width), generator=random, dtype=torch.float64)
    student, teacher = logits.to(case.dtype)
    for place in np.ndindex(*shape):
        order = student[place].argsort(descending=True)[above : above + tied]
        student[place][order] = student[place][order[0]].clone()
    count = above + int(numbers.integers(3, min(tied, 30) - 2))
    return replace(
        case,
        id=f"crowded {seed}",
        config=replace(case.config, distillation_topk=count),
        student_logits=student,
        teacher_logits=teacher,
    )


def drawn(seed: int) -> LossPart:
    """The K largest logits; of equal ones any, by lot."""

    def choose(state: LossState) -> Tensor:
        lots = torch.rand(state.scaled_student.shape, generator=torch.Generator().manual_seed(seed))
        order = lots.argsort(-1)
        kept = (
            state.scaled_student.gather(-1, order)
            .sort(dim=-1, descending=True, stable=True)
            .indices
        )
        return order.gather(-1, kept)[..., : state.support_size]

    return choose
