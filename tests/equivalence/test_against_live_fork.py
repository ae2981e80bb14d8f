"""The transcription against the real functions of a checkout, beyond what was recorded.

Bits, dtypes and the classes of exceptions, on random inputs; both sides run here, so that no
processor's own rounding enters. Skipped without a checkout:

    SDPO_VERL_CHECKOUT=SDPO python -m pytest -m slow tests/equivalence/test_against_live_fork.py
"""

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.fixtures import FAMILIES
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.losses import GivenLogits
from sdpo.parity.live_fork.modules import CORE_ALGOS, live_function
from sdpo.parity.live_fork.one_process import one_process
from sdpo.parity.live_fork.settings import live_actor
from sdpo.parity.random_cases.compare_sides import compare_families, differing
from sdpo.reference import loss as reference
from sdpo.reference.forward import forward_micro_batch
from sdpo.reference.loss import LOSS_AGG_MODES
from tests.helpers.recorded.checkout import checkout, needs_checkout

pytestmark = [
    needs_checkout,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True, scope="module")
def found() -> None:
    """The checkout comes first on the path."""
    find_checkout(checkout())


LOSSES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (torch.bool, torch.uint8, torch.int32, torch.int64, *LOSSES)
MODES: list[dict[str, Any]] = [
    {"full_logit_distillation": False, "alpha": 1.0},
    {"full_logit_distillation": True, "distillation_topk": None},
    {"full_logit_distillation": True, "distillation_topk": 5, "distillation_add_tail": True},
    {"full_logit_distillation": True, "distillation_topk": 5, "distillation_add_tail": False},
]


def random_mask(dtype: torch.dtype, rows: int, width: int, share: float) -> Tensor:
    mask = torch.rand(rows, width) < share
    if rows > 1 and random.random() < 0.3:
        mask[random.randrange(rows)] = False
    return mask.to(dtype)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("dtype", LOSSES, ids=str)
def test_aggregations(dtype, mode):
    """960 cases each: values, dtypes and gradients, with NaN in a place now and then."""
    random.seed(0)
    wrong = []
    for number, kind in itertools.product(range(120), MASKS):
        rows, width = random.randrange(1, 9), random.randrange(1, 65)
        mask = random_mask(kind, rows, width, random.choice([0.0, 0.1, 0.7, 1.0]))
        values = torch.randn(rows, width, dtype=torch.float64).to(dtype)
        if number % 6 == 5:
            values[0, 0] = float("nan")
        count = None if number % 5 == 4 else mask.sum().clamp(min=1.0)
        sides = []
        for function in (reference.agg_loss, live_function(CORE_ALGOS, "agg_loss")):
            leaf = values.clone().requires_grad_(True)
            loss = function(leaf, mask, mode, batch_num_tokens=count)
            (gradient,) = torch.autograd.grad(loss, leaf)
            sides.append({"loss": loss.detach(), "gradient": gradient})
        wrong += [(kind, name) for name in differing(*sides)]
    assert wrong == []


@pytest.mark.parametrize("dtype", LOSSES[:3], ids=str)
def test_log_probs_and_support_from_logits(dtype):
    """300 forward passes each: temperature, log-probs, support and entropy, and their gradients."""
    random.seed(2)
    wrong = []
    for number in range(300):
        mode = random.choice(MODES)
        topk = mode.get("distillation_topk")
        rows, width = random.randrange(1, 5), random.randrange(1, 9)
        # one and two logits close to each other: ties and near ties at the edge of the top-k
        logits = (torch.randn(rows, width, 12) * random.choice([0.01, 1, 20])).to(dtype)
        responses = torch.randint(12, (rows, width))
        temperature = random.choice([0.7, 1.0, 1.3])
        everything = mode["full_logit_distillation"] and topk is None
        entropy = random.random() < 0.3
        zeros = torch.zeros(rows, width + 1, dtype=torch.long)
        batch = {
            "responses": responses,
            "input_ids": zeros,
            "attention_mask": zeros + 1,
            "position_ids": zeros,
        }
        leaves = [logits.clone().requires_grad_(True) for _ in range(2)]
        ours = forward_micro_batch(
            GivenLogits(leaves[0]),
            batch,
            temperature,
            topk=topk,
            all_log_probs=everything,
            entropy=entropy,
        )
        with one_process():
            made = live_actor(
                {"ppo_mini_batch_size": rows, "ppo_micro_batch_size_per_gpu": rows},
                mode,
                GivenLogits(leaves[1]),
            )
            theirs = made._forward_micro_batch(
                batch, temperature, entropy, return_all_logps=everything, distill_topk=topk
            )
        names = {"topk_logps": "topk_log_probs", "all_logps": "all_log_probs"} | {
            "entropys": "entropy"
        }
        theirs = {names.get(name, name): value for name, value in theirs.items()}
        for side, leaf in zip((ours, theirs), leaves, strict=True):
            parts = [v.double().sin().sum() for v in side.values() if v.is_floating_point()]
            total = torch.stack(parts).sum()
            (side["gradient"],) = torch.autograd.grad(total, leaf)
        wrong += [(number, name) for name in differing(theirs, ours)]
    assert wrong == []


@pytest.mark.parametrize("family", FAMILIES)
def test_random_cases_of_each_family(family):
    """A few of those that `sdpo record CHECKOUT --random N` compares."""
    (comparison,) = compare_families(100, 0, lambda *_: None, families=(family,))
    assert comparison.differences == []
    assert 0 < comparison.refused.total() < 60
    assert comparison.values > 500
