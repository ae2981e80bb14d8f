"""Random loss cases for property tests, made from shapes, settings and a seed that are drawn."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

from sdpo.parity.cases.loss_case import LossCase
from sdpo.settings.config import SDPOConfig
from sdpo.settings.rules import LOSS_AGG_MODES

MODES = ("topk_tail", "topk_renorm", "full_vocab", "sampled")


@st.composite
def configs(draw, modes=MODES, loss_agg_modes=LOSS_AGG_MODES):
    mode = draw(st.sampled_from(modes))
    return SDPOConfig(
        full_logit_distillation=mode != "sampled",
        alpha=1.0 if mode == "sampled" else draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])),
        distillation_topk=draw(st.integers(1, 9)) if mode.startswith("topk") else None,
        distillation_add_tail=mode == "topk_tail",
        is_clip=draw(st.sampled_from([None, 2.0, 10.0])),
        loss_agg_mode=draw(st.sampled_from(loss_agg_modes)),
        temperature=draw(st.sampled_from([1.0, 0.7, 1.3])),
    )


@dataclass(frozen=True)
class Numbers:
    """Random tensors from one drawn seed.

    Hypothesis repeats and simplifies what it draws: masks drawn element by element were nearly all
    zero, and most logits equal.
    """

    generator: np.random.Generator

    def floats(self, shape, low, high):
        return torch.from_numpy(self.generator.uniform(low, high, shape).astype(np.float32))

    def integers(self, shape, count):
        return torch.from_numpy(self.generator.integers(count, size=shape))

    def mask(self, shape, share):
        return torch.from_numpy((self.generator.random(shape) < share).astype(np.int64))


@st.composite
def loss_cases(
    draw, modes=MODES, dtypes=(torch.float32, torch.float64, torch.bfloat16), least_rows=1
):
    """A case with logits in ±8, some with ties, ragged masks, and optional rollout weights."""
    rows, tokens = draw(st.integers(least_rows, 3)), draw(st.integers(1, 4))
    width = draw(st.integers(2, 9))
    dtype = draw(st.sampled_from(dtypes))
    numbers = Numbers(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    share = draw(st.sampled_from([0.7, 0.4, 1.0]))
    student = numbers.floats((rows, tokens, width), -8, 8)
    case = LossCase(
        id="random",
        config=draw(configs(modes)),
        student_logits=(student.round() if draw(st.booleans()) else student).to(dtype),
        teacher_logits=numbers.floats((rows, tokens, width), -8, 8).to(dtype),
        responses=numbers.integers((rows, tokens), width),
        response_mask=numbers.mask((rows, tokens), share),
        old_log_probs=numbers.floats((rows, tokens), -6, 0),
        self_distillation_mask=numbers.mask((rows,), share).float(),
    )
    if draw(st.booleans()):
        case = replace(case, rollout_is_weights=numbers.floats((rows, tokens), 0, 2))
    return case
