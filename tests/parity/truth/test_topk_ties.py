"""Near ties at the edge of the top-k: any choice within the roundings of a key is right, no other.

The candidates show loss and gradient alone, so that their choice is read off the gradient.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.faults.evaluate_fault import fault_trace, loss_from_logits
from sdpo.parity.faults.reference_parts import LossPart, LossState
from sdpo.parity.faults.support import teachers_choice, with_k_changed
from sdpo.parity.truth import oracle
from sdpo.parity.truth.oracle import array_of
from sdpo.parity.truth.tie_choices import enclosed
from sdpo.parity.truth.topk_ties import ties_of
from sdpo.settings.determinism import deterministic
from tests.helpers.near_ties import (
    BEYOND,
    CORRECT,
    DTYPES,
    alternating,
    crowded_case,
    drawn,
    largest,
    near_tie_case,
)

FINE = (torch.float32, torch.float64)
NAMES = list(CORRECT)
WRONG = {
    "the teacher's": teachers_choice,
    "one more": with_k_changed(1),
    "one less": with_k_changed(-1),
}
HALF_SHARE = {"the teacher's": 0.8, "one more": 0.6, "one less": 0.3}
"""In half precision a gradient's budget is often wider than what one entry moves."""


def judged(case: LossCase, choice: LossPart, **parts: LossPart) -> CaseResult:
    function = loss_from_logits({"support_indices": choice, **parts})
    return judge_loss_case(FromLogits("candidate", function), case)


def chosen_by(case: LossCase, choice: LossPart) -> np.ndarray:
    """The choice as a mask `(N, V)`."""
    indices = fault_trace({"support_indices": choice}, case)["support.indices"]
    counts = evaluate_case(case).truth.counts
    return oracle.marked(indices.numpy()[counts], case.student_logits.shape[-1])


def check_correct(seed: int) -> bool:
    """Three correct programs on a random case; whether one chose as the reference did not."""
    case = near_tie_case(seed)
    own = evaluate_case(case).reference["support.indices"]
    other = False
    for choice in (CORRECT[NAMES[seed % len(NAMES)]], CORRECT[NAMES[-1 - seed % 7]], alternating):
        result = judged(case, choice)
        assert result.status in (Status.MATCH, Status.PASS), (seed, case, result.comparisons)
        chosen = chosen_by(case, choice)
        counts = evaluate_case(case).truth.counts
        reference = oracle.marked(own.numpy()[counts], case.student_logits.shape[-1])
        other = other or bool((chosen != reference).any())
    return other


def test_each_choice_within_the_roundings_of_a_key_is_right():
    with deterministic():
        other = [check_correct(seed) for seed in range(36)]
    assert sum(other) > 18, "the cases must have ties that keys decide differently"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_it_is_on_thousands_of_cases(part):
    with deterministic():
        other = [check_correct(seed) for seed in range(1000 + 400 * part, 1400 + 400 * part)]
    assert sum(other) > 200


def changes_the_loss(case: LossCase, choice: LossPart) -> bool:
    """Whether a choice is one that no correct program makes, and moves the gradient measurably.

    Where a tail is nearly empty, a rounding of it is more than an entry: no support shows there.
    """
    evaluated = evaluate_case(case)
    gradient = array_of(fault_trace({"support_indices": choice}, case)["gradient"])
    own = evaluated.choosing(evaluated.reference["support.indices"]).expected("gradient")
    moved = (abs(gradient - own.reference) > 2 * own.allowed).any()
    return bool(moved and not evaluated.truth.ties.admits(chosen_by(case, choice)).all())


def check_wrong(cases: list[LossCase], name: str) -> None:
    found = {True: [], False: []}
    for case in cases:
        if changes_the_loss(case, WRONG[name]):
            failed = judged(case, WRONG[name]).status == Status.DIVERGENT
            found[case.dtype in FINE].append(failed)
            assert failed or case.dtype not in FINE, (name, case.id, case)
    assert len(found[True]) > len(cases) // 4
    assert sum(found[False]) >= HALF_SHARE[name] * len(found[False])


@pytest.mark.parametrize("name", WRONG)
def test_another_support_beside_near_ties_fails(name):
    with deterministic():
        check_wrong([near_tie_case(seed) for seed in range(300, 340)], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_another_support_fails_on_many_cases(name):
    with deterministic():
        check_wrong([near_tie_case(seed) for seed in range(2000, 2600)], name)


def edge_case(dtype: torch.dtype, temperature: float, beyond: int) -> tuple[LossCase, LossPart]:
    """A case with one entry below the K-th, and a program that takes it in place of the K-th.

    It is the smallest that still ties, `beyond` units in the last place lower.
    """
    case = near_tie_case(0 if dtype == torch.float32 else 1)
    config = replace(case.config, temperature=temperature, distillation_topk=4, alpha=0.5)
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 2, 3, 24, generator=generator, dtype=torch.float64).to(dtype)
    student = logits[0]
    order = student[0, 0].argsort(descending=True)
    kth, entry = order[3], order[4]

    def tied(value: torch.Tensor) -> bool:
        student[0, 0, entry] = value
        z = array_of(student[0, :1]) / temperature
        log_p = oracle.log_probabilities(z, oracle.FLOAT64)
        ties = ties_of(z, log_p, 4, temperature != 1.0, dtype)
        return bool(ties.possible[0, entry])

    value, down = student[0, 0, kth].clone(), torch.tensor(-torch.inf, dtype=dtype)
    while tied(torch.nextafter(value, down)):
        value = torch.nextafter(value, down)
    for _ in range(beyond):
        value = torch.nextafter(value, down)
    student[0, 0, entry] = value

    def swapped(state: LossState) -> torch.Tensor:
        indices = largest(lambda state: state.scaled_student)(state)
        indices[0, 0, 3] = entry
        return indices

    return (
        replace(
            case,
            id=f"edge {dtype} {temperature} {beyond}",
            config=config,
            student_logits=student,
            teacher_logits=logits[1],
            responses=torch.zeros(2, 3, dtype=torch.int64),
            response_mask=torch.ones(2, 3, dtype=torch.int64),
        ),
        swapped,
    )


def test_the_intervals_of_the_keys_are_no_wider_than_keys_need():
    """Logits as far apart as a good part of their intervals do change places."""
    share = {dtype: 0.0 for dtype in DTYPES}
    with deterministic():
        for seed in range(400, 480):
            case = near_tie_case(seed)
            ties = evaluate_case(case).truth.ties
            if not ties.open.any():
                continue
            z, error = (ties.highest + ties.lowest) / 2, (ties.highest - ties.lowest) / 2
            for name in ("log_softmax, last", "softmax, last", "exp of log_softmax, first"):
                chosen = chosen_by(case, CORRECT[name])
                left_out = np.where(chosen, -np.inf, z).argmax(axis=-1)
                taken = np.where(chosen, z, np.inf).argmin(axis=-1)
                rows = np.arange(len(z))
                gap = z[rows, left_out] - z[rows, taken]
                both = error[rows, left_out] + error[rows, taken]
                used = np.divide(gap, both, out=np.zeros_like(gap), where=gap > 0)
                share[case.dtype] = max(share[case.dtype], float(used.max()))
    assert all(0.15 < used <= 1 for used in share.values()), share


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("dtype", FINE)
def test_the_smallest_logit_that_ties_is_right_and_a_smaller_one_wrong(dtype, temperature):
    with deterministic():
        assert judged(*edge_case(dtype, temperature, 0)).status in (Status.MATCH, Status.PASS)
        result = judged(*edge_case(dtype, temperature, BEYOND))
    assert result.status == Status.DIVERGENT
    assert all(comparison.status == Status.DIVERGENT for comparison in result.comparisons)


@pytest.mark.parametrize("seed", range(8))
def test_one_of_very_many_choices_is_read_off_the_gradient(seed):
    with deterministic():
        check_crowded(seed)


@pytest.mark.slow
def test_it_is_of_hundreds_of_such_cases():
    with deterministic():
        for seed in range(8, 300):
            check_crowded(seed)


def check_crowded(seed: int) -> None:
    case = crowded_case(seed)
    truth = evaluate_case(case).truth
    for lot in (seed, -1 - seed):
        choice = drawn(lot)
        result = judged(case, choice)
        assert result.status in (Status.MATCH, Status.PASS), (seed, result.comparisons)
        value = array_of(fault_trace({"support_indices": choice}, case)["divergence"])[truth.counts]
        assert (abs(value - truth.values["divergence"]) <= truth.bounds["divergence"]).all()
    if case.dtype in FINE:
        assert judged(case, with_k_changed(1)).status == Status.DIVERGENT
        assert judged(case, with_k_changed(-1)).status == Status.DIVERGENT


def test_the_interval_holds_all_choices_and_is_no_wider_than_needed():
    widths = []
    with np.errstate(all="ignore"):
        for seed in range(40):
            case = near_tie_case(seed)
            truth = evaluate_case(case).truth
            for n in np.flatnonzero(truth.ties.open):
                token = truth.open_token(case, int(n))
                if token.too_many:
                    continue
                values = token.evaluate(token.choices()).divergence
                low, high = enclosed(token)
                slack = 1e-9 * max(1.0, float(abs(values).max()))
                assert low <= values.min() + slack, (seed, n)
                assert high >= values.max() - slack, (seed, n)
                if values.max() - values.min() > 1e-3:
                    widths.append((high - low) / (values.max() - values.min()))
    assert len(widths) > 20
    assert np.median(widths) < 5


def with_another_choice(dtype: torch.dtype) -> LossCase:
    """A case on which the last of equal keys is another support than the reference's."""
    for seed in range(100):
        case = near_tie_case(seed)
        if case.dtype == dtype and (case.config.distillation_topk or 0) > 2:
            counts = evaluate_case(case).truth.counts
            own = evaluate_case(case).reference["support.indices"].numpy()[counts]
            marked = oracle.marked(own, case.student_logits.shape[-1])
            if (chosen_by(case, CORRECT["softmax, last"]) != marked).any():
                return case
    raise AssertionError("no such case")


@pytest.mark.parametrize("dtype", FINE)
def test_what_is_wrong_behind_a_right_choice_is_placed_as_ever(dtype):
    case = with_another_choice(dtype)
    choice = CORRECT["softmax, last"]
    with deterministic():
        assert judged(case, choice).status in (Status.MATCH, Status.PASS)
        steep = judged(
            case, choice, returned_loss=lambda state: 2 * state.loss - state.loss.detach()
        )
        larger = judged(
            case, choice, returned_loss=lambda state: state.loss + 0.001 * state.loss.detach()
        )
    assert [c.stage for c in steep.comparisons if c.status == Status.DIVERGENT] == ["gradient"]
    assert [c.stage for c in larger.comparisons if c.status == Status.DIVERGENT] == ["aggregate"]


def with_another_gradient(seed: int) -> LossPart:
    """The loss stays; its gradient is some numbers."""

    def returned_loss(state: LossState) -> torch.Tensor:
        shape, dtype = state.student_logits.shape, state.student_logits.dtype
        random = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        moved = (state.student_logits * random.to(dtype) * state.loss_mask.unsqueeze(-1)).sum()
        return state.loss.detach() + moved - moved.detach()

    return returned_loss


def test_a_gradient_of_no_choice_does_not_accuse_the_loss():
    """Read as a choice it would name one of which the loss is not."""
    with deterministic():
        for dtype in FINE:
            case = with_another_choice(dtype)
            for seed in range(12):
                returned = with_another_gradient(seed)
                result = judged(case, CORRECT["softmax, last"], returned_loss=returned)
                found = [c.stage for c in result.comparisons if c.status == Status.DIVERGENT]
                assert found == ["gradient"], (case.id, seed)


def test_a_loss_of_another_choice_than_its_gradient_fails():
    """Each is that of a choice among the ties, but not of the same."""
    case = with_another_choice(torch.float32)
    other = loss_from_logits({"support_indices": CORRECT["softmax, last"]})

    def patched(state: LossState) -> torch.Tensor:
        value = other(
            state.student_logits,
            state.teacher_logits,
            state.responses,
            state.response_mask,
            config=state.config,
        )
        return state.loss + (value - state.loss).detach()

    with deterministic():
        result = judged(case, largest(lambda state: state.scaled_student), returned_loss=patched)
    assert [c.stage for c in result.comparisons if c.status == Status.DIVERGENT] == ["aggregate"]


@pytest.mark.parametrize("name", ["log_softmax, last", "softmax, last", "centred logits, first"])
def test_recorded_cases_with_another_key(name):
    """Of logits that are far apart, probabilities underflow: they are no key any more."""
    with deterministic():
        for case in loss_cases(packaged_family("loss")):
            if case.mode.startswith("topk") and "huge_logits" not in case.tags:
                assert judged(case, CORRECT[name]).status in (
                    Status.MATCH,
                    Status.PASS,
                    "DECLARED",
                ), case.id
