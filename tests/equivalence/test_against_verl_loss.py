"""Every recorded loss case through both sides: all stage values, the loss and the gradient.

Budget: bit-equality for the transcription where this machine's kernels give the recorded bits, by
the measurement of `canaries.py`; elsewhere the largest change that the recording saw under another
vector instruction set, and the oracle's budget where the loss is no more than its own rounding; the
oracle's budget for ours.
"""

import pytest
import torch

from sdpo.loss.aggregate import aggregate
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.cases.value_names import by_our_names
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.reference import loss as reference
from sdpo.reference.loss import LOSS_AGG_MODES, agg_loss, compute_self_distillation_loss
from sdpo.reference.loss import rollout_is_weights as reference_weights
from tests.helpers.measured import gap_of, rounding_of
from tests.helpers.recorded.canaries import loss_has_recorded_bits
from tests.helpers.recorded.loss_cases import (
    FAMILY,
    IDS,
    case,
    comparisons,
    recorded,
    transcription,
)

CASES = 148 + 36
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


OF_THE_LOSS = ("out.per_token_loss", "out.loss", "out.grad_student_logits")


@pytest.mark.parametrize("case_id", IDS)
def test_transcription_reproduces_every_recorded_value(case_id):
    assert departures(case_id, transcription(case_id)) == []


def departures(case_id: str, obtained: dict[str, torch.Tensor]) -> list[str]:
    """Recorded values that are missed: by a bit where bits can be asked for, else by a budget."""
    bits, noise = loss_has_recorded_bits(case_id), is_rounding(case_id)
    found = []
    for name, expected in recorded(case_id).items():
        if not name.startswith("out."):
            continue
        actual = obtained[name]
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        if bits:
            fits = same_bits(actual, expected)
        elif noise and name in OF_THE_LOSS:
            fits = within_oracle(case_id, name, actual)
        else:
            fits = close(actual, expected, finest_dtype(case(case_id)))
        found += [] if fits else [name]
    return found


def finest_dtype(inputs: LossCase) -> torch.dtype:
    """The dtype of the side that rounds less, whose last bits another processor may move."""
    dtypes = (inputs.student_logits.dtype, inputs.teacher_logits.dtype)
    return min(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def of_the_sum(share):
    """The transcription with every divergence scaled."""
    real = reference.divergence
    return lambda *arguments: real(*arguments) * share


@pytest.mark.parametrize("case_id", ["P-L001", "P-L018", "P-L146"])
def test_a_fault_is_found_on_every_processor(case_id, monkeypatch):
    monkeypatch.setattr(reference, "divergence", of_the_sum(1 + 1e-3))
    assert "out.per_token_loss" in departures(case_id, transcription(case_id))


def has_divergence(case_id: str) -> bool:
    """Whether some token of a case has a divergence that a factor moves: finite and not zero."""
    losses = recorded(case_id)["out.per_token_loss"]
    moves = (losses.isfinite() & (losses != 0)).any()
    return case(case_id).config.full_logit_distillation and bool(moves)


def test_a_fault_of_one_rounding_is_found_wherever_bits_can_be_asked_for(monkeypatch):
    asked = [c for c in IDS if loss_has_recorded_bits(c) and case(c).dtype != torch.bfloat16]
    asked = [c for c in asked if has_divergence(c)]
    monkeypatch.setattr(reference, "divergence", of_the_sum(1 + 2**-23))
    assert [c for c in asked if not departures(c, transcription(c))] == []


def is_rounding(case_id: str) -> bool:
    """Whether both sides are so near that the loss is no more than its own rounding."""
    inputs = case(case_id)
    counts = inputs.response_mask != 0
    if not counts.any():
        return False
    return rounding_of([gap_of(inputs.student_logits, inputs.teacher_logits, counts)]) >= 1


def within_oracle(case_id: str, name: str, actual: torch.Tensor) -> bool:
    """Whether a value is within the budget that the oracle derives for it."""
    found = comparisons(case_id, by_our_names({name: actual}, "out."))
    return bool(found) and all(
        comparison.status in (Status.MATCH, Status.PASS) for comparison in found
    )


def test_the_transcription_has_the_recorded_bits_wherever_this_machine_gives_them():
    """Also the other way: a canary that were stricter than it must be would ask for too little."""
    equal = [
        case_id
        for case_id in IDS
        if all(
            same_bits(transcription(case_id)[name], expected)
            for name, expected in recorded(case_id).items()
            if name.startswith("out.")
        )
    ]
    assert equal == [case_id for case_id in IDS if loss_has_recorded_bits(case_id)]
    assert len(IDS) == CASES


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
    gap = tensors["in.old_log_probs"] - tensors["in.rollout_log_probs"]
    plain = gap.clamp(-20, 20).exp() * tensors["in.response_mask"]
    if same_bits(plain.clamp(max=threshold), expected):
        assert same_bits(weights, expected)
    assert close(weights, expected, expected.dtype)


@pytest.mark.parametrize("case_id", IDS)
def test_ours_is_within_budget_at_every_stage(case_id):
    result = CaseResult(case_id, "loss", case(case_id).tags, list(comparisons(case_id)))
    for comparison in result.comparisons:
        assert comparison.status in (
            Status.MATCH,
            Status.PASS,
            Status.DECLARED,
            Status.NOT_COVERED,
        ), comparison


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
    with pytest.raises(ValueError, match="shape"):
        reference_weights(log_probs, log_probs, torch.ones(2, 2), 2.0)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (torch.bool, torch.uint8, torch.int32, torch.int64, *FLOATS)


def dtype_of_the_fork(mode: str, loss: torch.dtype, mask: torch.dtype) -> torch.dtype:
    """What the fork's `agg_loss` returns, as measured by `test_against_live_fork.py`."""
    counted = mask if mask.is_floating_point else torch.float32
    product = torch.promote_types(loss, mask)
    least = {"token-mean": counted, "seq-mean-token-sum-norm": product}.get(mode, torch.float32)
    return torch.promote_types(product, least)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("loss", FLOATS, ids=str)
def test_dtype_of_every_aggregation(mode, loss):
    """Both sides, over all dtypes of masks; with bfloat16 losses a row mean stays float32."""
    for mask in MASKS:
        values, counts = torch.ones(2, 3, dtype=loss), torch.ones(2, 3, dtype=mask)
        theirs = agg_loss(values, counts, mode, counts.sum().clamp(min=1.0))
        ours = aggregate(values, counts, loss_agg_mode=mode)
        expected = dtype_of_the_fork(mode, loss, mask)
        assert (theirs.dtype, ours.dtype) == (expected, expected), (mask, theirs, ours)


def test_rows_are_averaged_in_float32():
    """Sums of rows are bfloat16 here, their mean is not rounded to it once more."""
    values = torch.tensor([[1.0, 0.0], [1.0078125, 0.0], [9.0, 9.0]], dtype=torch.bfloat16)
    mask = torch.tensor([[1, 1], [1, 1], [0, 0]])
    rows = (values * mask).sum(-1)[:2]
    expected = (rows[0].float() + rows[1].float()) / 2
    assert expected != rows.mean().float()
    for loss in (
        agg_loss(values, mask, "seq-mean-token-sum"),
        aggregate(values, mask, loss_agg_mode="seq-mean-token-sum"),
    ):
        assert same_bits(loss, expected)


def test_the_order_in_which_rows_are_summed():
    """A weight of 1 or 0 per row, so that left-out rows keep their place in the sum."""
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for _ in range(50):
        values = torch.randn(61, 3, generator=generator)
        mask = (torch.rand(61, 1, generator=generator) < 0.6).expand(61, 3).long()
        kept = (mask.sum(-1) > 0).float()
        sums = (values * mask).sum(-1)
        expected = (sums * kept).sum() / kept.sum()
        assert same_bits(agg_loss(values, mask, "seq-mean-token-sum"), expected)
        moved += not torch.equal(sums[kept > 0].mean(), expected)
    assert moved, "no batch tells a mean of chosen rows from a weighted sum"


def test_ours_aggregates_the_recorded_token_losses_to_the_recorded_dtypes():
    """All cases by their dtype, and the bfloat16 mean of rows by its bits."""
    for case_id in IDS:
        tensors, mode = recorded(case_id), case(case_id).config.loss_agg_mode
        ours = aggregate(
            tensors["out.per_token_loss"], tensors["out.loss_mask"], loss_agg_mode=mode
        )
        assert ours.dtype == tensors["out.loss"].dtype, case_id
        assert case_id != "P-L072" or same_bits(ours, tensors["out.loss"])


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_reference_quirk_empty_batch(mode):
    """Only token-mean and sum-norm are finite on an empty batch; the gradient is zero in all."""
    loss_mat = torch.ones(2, 3, requires_grad=True)
    mask = torch.zeros(2, 3)
    loss = agg_loss(loss_mat, mask, mode, mask.sum().clamp(min=1.0))
    (gradient,) = torch.autograd.grad(loss, loss_mat)
    assert loss.isnan().item() == mode.startswith("seq-mean-token-") * (not mode.endswith("norm"))
    assert not gradient.any()
