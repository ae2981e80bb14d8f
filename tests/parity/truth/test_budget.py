"""Calibration of the budgets: correct evaluations that differ in order and form stay well inside.

At float32 and float64 none may use more than half of a budget; that set `loss_roundings`.
Where a tail is near its limit the log of the tail may be anything between two rounding errors, and
the interval ends at the limit: there, and at bfloat16, a budget must merely not be exceeded.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.faults.evaluate_fault import fault_trace
from sdpo.parity.truth.budget import truth
from sdpo.parity.truth.oracle import array_of
from sdpo.settings.config import SDPOConfig
from tests.helpers.correct_variants import SMALL_TAILS, VARIANTS, applies
from tests.helpers.spread import one_in

HALF = 0.5
OWN = "own implementation"
EVALUATIONS = (*VARIANTS, OWN)
PARTS = 5


@cache
def cases() -> tuple[LossCase, ...]:
    return tuple(loss_cases(packaged_family("loss")))


@cache
def comparisons(name: str, part: int) -> tuple[tuple[LossCase, Comparison], ...]:
    """Of a fifth of the cases; together the evaluations have each case in each part."""
    found = []
    for case in cases()[(part + EVALUATIONS.index(name)) % PARTS :: PARTS]:
        if name != OWN and not applies(name, case):
            continue
        trace = Own().trace(case) if name == OWN else fault_trace(VARIANTS[name], case)
        evaluated = evaluate_case(case)
        found += [(case, c) for c in compare_loss(evaluated, trace)]
    return tuple(found)


def share_allowed(case: LossCase, stage: str) -> float:
    near_limit = stage == "tail" and SMALL_TAILS & set(case.tags)
    return 1.0 if case.dtype == torch.bfloat16 or near_limit else HALF


@pytest.mark.parametrize("part", one_in(PARTS, range(PARTS)))
@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_correct_evaluation_stays_inside(name, part):
    for case, comparison in comparisons(name, part):
        where = f"{name}, {case.id} at {comparison.stage}: {comparison.note}"
        assert comparison.status not in FAILING, where
        assert comparison.budget_used <= share_allowed(case, comparison.stage), where


def test_budgets_are_not_vacuous():
    used: dict[str, float] = {}
    for name in VARIANTS:
        for case, comparison in comparisons(name, 0):
            if case.dtype == torch.float32 and not SMALL_TAILS & set(case.tags):
                known = used.get(comparison.stage, 0.0)
                used[comparison.stage] = max(known, comparison.budget_used)
    assert used["log_probs"] > 0.2
    assert used["tail"] > 0.2
    assert used["divergence"] > 0.1
    assert used["gradient"] > 0.1
    assert used["aggregate"] > 0.02


def test_a_tie_leaves_room_for_the_roundings_of_each_choice():
    """The teacher's likeliest entry is tied: left to the tail, it weighs the tail's rounding."""
    case = LossCase(
        id="tie",
        config=SDPOConfig(alpha=0.0, distillation_topk=2, is_clip=None),
        student_logits=torch.tensor([[[-3.0, -1.0, 5.0, -1.0]]]),
        teacher_logits=torch.tensor([[[-2.7, 4.6, -3.1, -0.7]]]),
        responses=torch.zeros(1, 1, dtype=torch.int64),
        response_mask=torch.ones(1, 1, dtype=torch.int64),
    )
    true = truth(case)
    for chosen in ([2, 1], [2, 3]):
        trace = fault_trace({"support_indices": lambda run, at=chosen: torch.tensor([[at]])}, case)
        for name in ("divergence", "gradient"):
            away = abs(array_of(trace[name]).ravel() - true.values[name].ravel())
            assert (away <= true.bounds[name].ravel()).all(), (chosen, name)


SINGLE, LOW, DOUBLE = torch.float32, torch.bfloat16, torch.float64
SMALL = ("P-L001", "P-L043", "P-L085", "P-L129")
"""Float32 cases of a few thousand logits: each kind of support, and the sampled token alone."""


def in_two_dtypes(case: LossCase, student: torch.dtype, teacher: torch.dtype) -> LossCase:
    """The case with its logits rounded to bfloat16, in which each dtype can hold them."""
    sides = case.student_logits.to(LOW).to(student), case.teacher_logits.to(LOW).to(teacher)
    return replace(case, student_logits=sides[0], teacher_logits=sides[1], recorded={})


@pytest.mark.parametrize(
    ("student", "teacher"), [(SINGLE, LOW), (LOW, SINGLE), (SINGLE, DOUBLE), (DOUBLE, SINGLE)]
)
def test_a_correct_evaluation_of_two_dtypes_stays_inside_the_roundings_of_each(student, teacher):
    """What depends on one side alone uses half of a budget at most, whatever the other's dtype."""
    compared = 0
    for case in (case for case in cases() if case.id in SMALL):
        mixed = in_two_dtypes(case, student, teacher)
        evaluated = evaluate_case(mixed)
        for name in (name for name in EVALUATIONS if name == OWN or applies(name, mixed)):
            trace = Own().trace(mixed) if name == OWN else fault_trace(VARIANTS[name], mixed)
            for comparison in compare_loss(evaluated, trace):
                of_one_side = comparison.stage in ("log_probs", "support")
                most = 1.0 if LOW in (student, teacher) and not of_one_side else HALF
                assert comparison.status not in FAILING, (name, comparison)
                assert comparison.budget_used <= most, (name, comparison)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_one_side_in_the_others_lower_precision_shows_at_that_side_alone(side):
    """Its log-probs were within the coarser roundoff, which both sides had before."""
    rounded = BY_ID["M32"].parts
    for case in (case for case in cases() if case.id in SMALL):
        dtypes = (SINGLE, LOW) if side == "student" else (LOW, SINGLE)
        mixed, low = in_two_dtypes(case, *dtypes), in_two_dtypes(case, LOW, LOW)
        name, trace = f"log_probs.{side}", fault_trace(rounded, mixed)
        compared = compare_loss(evaluate_case(mixed), trace)
        departing = {c.stage for c in compared if c.status in FAILING}
        assert departing >= {"log_probs"}
        counts = evaluate_case(mixed).truth.counts
        away = abs(array_of(trace[name])[counts] - evaluate_case(mixed).truth.values[name])
        assert (away <= evaluate_case(low).truth.bounds[name]).all()
        assert (away > 10 * evaluate_case(mixed).truth.bounds[name]).any()


@pytest.mark.parametrize("alpha", [0.001, 0.999])
def test_the_gradient_has_room_for_a_rounded_alpha_near_an_end(alpha):
    """1 - 0.999 is off by 1e-5 of itself in float32, and with it the student's part."""
    case = LossCase(
        id="near an end",
        config=SDPOConfig(alpha=alpha, distillation_topk=None, is_clip=None),
        student_logits=torch.tensor([[[0.5, -1.0], [2.0, 1.0], [-1.5, 0.5]]]),
        teacher_logits=torch.tensor([[[1.5, -0.5], [0.0, 1.0], [0.5, -2.0]]]),
        responses=torch.zeros(1, 3, dtype=torch.int64),
        response_mask=torch.ones(1, 3, dtype=torch.int64),
    )
    true, exact = truth(case), fault_trace(VARIANTS["everything in float64"], case)
    for name in ("divergence", "gradient"):
        for trace in (exact, fault_trace({}, case)):
            away = abs(array_of(trace[name]).ravel() - true.values[name].ravel())
            assert (away <= HALF * true.bounds[name].ravel()).all(), name
