"""Calibration of the budgets: correct evaluations that differ in order and form stay well inside.

At float32 and float64 none may use more than half of a budget; that set `loss_roundings`.
Where a tail is near its limit the log of the tail may be anything between two rounding errors, and
the interval ends at the limit: there, and at bfloat16, a budget must merely not be exceeded.
"""

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
