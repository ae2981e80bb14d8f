"""Random loss cases for property tests; Hypothesis draws the tensors themselves."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdpo.aggregate import LOSS_AGG_MODES
from sdpo.config import SDPOConfig
from sdpo.parity.case import LossCase

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


def floats(draw, shape, low, high):
    values = draw(
        arrays(np.float32, shape, elements=st.floats(low, high, width=32), fill=st.nothing())
    )
    return torch.from_numpy(values)


@st.composite
def loss_cases(
    draw, modes=MODES, dtypes=(torch.float32, torch.float64, torch.bfloat16), least_rows=1
):
    """A case with logits in ±8, ragged masks, and optional rollout weights."""
    rows, tokens = draw(st.integers(least_rows, 3)), draw(st.integers(1, 4))
    width = draw(st.integers(2, 9))
    dtype = draw(st.sampled_from(dtypes))
    mask = draw(arrays(np.int64, (rows, tokens), elements=st.integers(0, 1)))
    signal = draw(arrays(np.float32, (rows,), elements=st.sampled_from([0.0, 1.0])))
    responses = draw(arrays(np.int64, (rows, tokens), elements=st.integers(0, width - 1)))
    case = LossCase(
        id="random",
        config=draw(configs(modes)),
        student_logits=floats(draw, (rows, tokens, width), -8, 8).to(dtype),
        teacher_logits=floats(draw, (rows, tokens, width), -8, 8).to(dtype),
        responses=torch.from_numpy(responses),
        response_mask=torch.from_numpy(mask),
        old_log_probs=floats(draw, (rows, tokens), -6, 0),
        self_distillation_mask=torch.from_numpy(signal),
    )
    if draw(st.booleans()):
        case = replace(case, rollout_is_weights=floats(draw, (rows, tokens), 0, 2))
    return case
