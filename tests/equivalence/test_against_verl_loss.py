"""Every recorded loss case through both sides: all stage values, the loss and the gradient.

Budget: bit-equality for the transcription on the recording's stack, elsewhere the largest change
that the recording saw under another vector instruction set; the oracle's budget for ours.
"""

import pytest
import torch
from loss_cases import FAMILY, IDS, case, comparisons, recorded, transcription
from recording_stack import RECORDING_STACK

from sdpo.parity.adapters.base import same_bits
from sdpo.parity.compare import DECLARED, MATCH, NOT_COVERED, PASS
from sdpo.parity.verdict import CaseResult
from sdpo.reference.loss import LOSS_AGG_MODES, agg_loss, compute_self_distillation_loss
from sdpo.reference.loss import rollout_is_weights as reference_weights

BIT_EQUAL_CASES = 148
OTHER_STACK = {  # (absolute, relative to the largest entry), per dtype: README of the golden data
    torch.float32: (2e-6, 3e-6),
    torch.float64: (0.0, 2e-16 * 8),
    # The README saw no value move but gradients; another make of processor moves the last bit of
    # the float32 losses that such cases have.
    torch.bfloat16: (1e-8, torch.finfo(torch.float32).eps),
}


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    absolute, relative = OTHER_STACK[dtype]
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return False
    scale = expected[finite].double().abs().max().item() if finite.any() else 0.0
    gap = (actual.double() - expected.double())[finite].abs()
    return bool((gap <= absolute + relative * scale).all())


@pytest.mark.parametrize("case_id", IDS)
def test_transcription_reproduces_every_recorded_value(case_id):
    obtained = transcription(case_id)
    for name, expected in recorded(case_id).items():
        if name.startswith("out."):
            actual = obtained[name]
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
            if RECORDING_STACK:
                assert same_bits(actual, expected), name
            else:
                assert close(actual, expected, case(case_id).dtype), name


@pytest.mark.skipif(not RECORDING_STACK, reason="needs torch 2.13.0 on an AMD CPU with AVX2")
def test_number_of_bit_equal_cases_is_the_one_stated():
    equal = [
        case_id
        for case_id in IDS
        if all(
            same_bits(transcription(case_id)[name], expected)
            for name, expected in recorded(case_id).items()
            if name.startswith("out.")
        )
    ]
    assert len(equal) == BIT_EQUAL_CASES == len(IDS)


@pytest.mark.parametrize(
    "case_id", [golden.id for golden in FAMILY if golden.config["rollout_is_threshold"]]
)
def test_rollout_weights_are_reproduced(case_id):
    tensors, threshold = recorded(case_id), FAMILY.case(case_id).config["rollout_is_threshold"]
    weights = reference_weights(
        tensors["in.old_log_probs"],
        tensors["in.rollout_log_probs"],
        tensors["in.response_mask"],
        threshold,
    )
    expected = tensors["in.rollout_is_weights"]
    if RECORDING_STACK:
        assert same_bits(weights, expected)
    else:
        assert close(weights, expected, expected.dtype)


@pytest.mark.parametrize("case_id", IDS)
def test_ours_is_within_budget_at_every_stage(case_id):
    result = CaseResult(case_id, "loss", case(case_id).tags, list(comparisons(case_id)))
    for comparison in result.comparisons:
        assert comparison.status in (MATCH, PASS, DECLARED, NOT_COVERED), comparison


def test_error_cases_of_the_loss():
    """Classes of the exceptions that the recording lists for calls of the loss itself."""
    raised = {entry["condition"]: entry["raises"] for entry in FAMILY.manifest["error_cases"]}
    log_probs = torch.zeros(1, 2)
    base = {
        "student_log_probs": log_probs,
        "teacher_log_probs": log_probs,
        "response_mask": torch.ones(1, 2),
    }
    calls = {
        "sampled-token mode with alpha = 0.5": {"full_logit_distillation": False, "alpha": 0.5},
        "sampled-token mode with alpha = 0.0": {"full_logit_distillation": False, "alpha": 0.0},
        "top-k mode without top-k log-probs": {"distillation_topk": 2},
        "full-vocabulary mode without full log-probs": {},
        "is_clip set but old_log_probs missing": {
            "full_logit_distillation": False,
            "alpha": 1.0,
            "is_clip": 2.0,
        },
        "unknown loss_agg_mode": {
            "full_logit_distillation": False,
            "alpha": 1.0,
            "loss_agg_mode": "mean",
        },
    }
    for condition, arguments in calls.items():
        kind = {"ValueError": ValueError, "AssertionError": AssertionError}[raised[condition]]
        with pytest.raises(kind):
            compute_self_distillation_loss(**base, **arguments)
    with pytest.raises(ValueError, match="threshold"):
        reference_weights(log_probs, log_probs, torch.ones(1, 2), 0)
    with pytest.raises(ValueError, match="unmasked"):
        reference_weights(log_probs, log_probs, torch.zeros(1, 2), 2.0)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_reference_quirk_empty_batch(mode):
    """Only token-mean and sum-norm are finite on an empty batch; the gradient is zero in all."""
    loss_mat = torch.ones(2, 3, requires_grad=True)
    mask = torch.zeros(2, 3)
    loss = agg_loss(loss_mat, mask, mode, mask.sum().clamp(min=1.0))
    (gradient,) = torch.autograd.grad(loss, loss_mat)
    assert loss.isnan().item() == mode.startswith("seq-mean-token-") * (not mode.endswith("norm"))
    assert not gradient.any()
