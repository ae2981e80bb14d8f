"""Each tolerance at its limit, by numbers that a pencil gives: just within it, and just beyond.

And: all of them are used, each names a test that exists, and no other number decides.
"""

import ast
import math
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.lockstep.update_distances import budgets
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare import own_precision
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.evaluated_case import EvaluatedCase, evaluate_case
from sdpo.parity.compare.nondeterminism import believed
from sdpo.parity.compare.statuses import Status
from sdpo.parity.explain.explanations import ranked
from sdpo.parity.explain.ladder_rules import LadderResults
from sdpo.parity.explain.match_faults import lenient, shows_enough
from sdpo.parity.explain.rungs import RungRow
from sdpo.parity.recorded.measured_budgets import compare_measured
from sdpo.parity.relations.received_inputs import alike
from sdpo.parity.report.environment import describe_environment
from sdpo.parity.trainers.judge.known_faults import close, explained_scale
from sdpo.parity.trainers.judge.logged_metrics import Logged
from sdpo.parity.trainers.judge.loss_stages import agree, scale_of_other_loss, unscaled
from sdpo.parity.trainers.probes import run_probes
from sdpo.parity.trainers.probes.catalogue import PROBES
from sdpo.parity.truth.tolerances import Tolerances, recorded
from sdpo.settings.determinism import deterministic

ROOT = Path(__file__).parents[3]
EPSILON = torch.finfo(torch.float32).eps
ROOMS = ("sdpo/parity", "sdpo/lockstep")
SOURCES = {p: p.read_text() for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))}


@cache
def a_case() -> EvaluatedCase:
    cases = loss_cases(packaged_family("loss"))
    return evaluate_case(
        next(c for c in cases if c.dtype == torch.float32 and c.mode == "topk_tail")
    )


def test_every_tolerance_is_used_and_names_a_test_that_exists():
    used = "\n".join(text for path, text in SOURCES.items() if path.name != "tolerances.py")
    for one in fields(Tolerances):
        assert f"TOLERANCES.{one.name}" in used, one.name
        assert one.metadata["meaning"]
        file, test = one.metadata["test"].split("::")
        assert f"def {test}(" in (ROOT / file).read_text(), one.metadata["test"]


def test_a_report_holds_every_tolerance():
    with deterministic() as settings:
        found = describe_environment(settings, ()).tolerances
    assert found == recorded() == {one.name: one.default for one in fields(Tolerances)}
    assert found["loss_roundings"] == 2.5


NO_TOLERANCE = {
    "SMALLEST": "ends of a plot",
    "_SMALLEST": "ends of a plot",
    "HALF_PRECISION": "tells bfloat16 and float16 from float32: any number between them does",
    "SMALLEST_TAIL": "the reference's own limit",
}


def fractions_of(tree: ast.Module) -> set[str]:
    """Module constants that are made of a number with a point."""
    plain = (ast.Constant, ast.BinOp, ast.UnaryOp)
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, plain)
        for target in node.targets
        if isinstance(target, ast.Name)
        and any(isinstance(n, ast.Constant) and type(n.value) is float for n in ast.walk(node))
    }


def test_no_other_constant_of_a_module_decides():
    """A module constant that is no whole number would be a tolerance; whole ones count things."""
    judging = ("truth", "compare", "recorded", "explain", "relations", "judge", "probes", "report")
    found = {
        f"{path.parent.name}/{path.name}: {name}"
        for path, text in SOURCES.items()
        if path.parent.name in (*judging, "lockstep") and path.name != "catalogue.py"
        for name in fractions_of(ast.parse(text))
        if name not in NO_TOLERANCE
    }
    inputs = {
        "explain/ladder.py: _FAR_OFF",
        "relations/transformed_cases.py: GRID",
        "relations/transformed_cases.py: NEAR",
        "judge/known_faults.py: _USUAL_THRESHOLD",
    }
    assert found == inputs


def test_a_factor_times_an_epsilon_has_a_name():
    """`16 * finfo(…).eps` is a tolerance that no report would show."""
    bare = []
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                sides = (node.left, node.right)
                number = any(isinstance(s, ast.Constant) and s.value not in (1, 2) for s in sides)
                if number and any("eps" in ast.unparse(s) for s in sides):
                    bare.append(f"{path.name}:{node.lineno}")
    assert not bare


def test_a_divergence_within_ten_run_to_run_differences_is_withdrawn():
    def status(actual: float) -> str:
        worst = {"actual": actual, "expected": 1.0}
        found = Comparison("aggregate", Status.DIVERGENT, "", worst=worst, effect="value")
        return believed(found, 0.01).status

    # ten times 0.01 of the larger value: 0.1 below 1, 0.111… above it
    assert status(0.91) == status(1.11) == Status.NOT_COVERED
    assert status(0.89) == status(1.12) == Status.DIVERGENT


@pytest.mark.parametrize(("step", "told"), [(2.0**-4, True), (2.0**-3.9, False)])
def test_a_coarse_reference_tells_no_precision(monkeypatch, step, told):
    monkeypatch.setattr(own_precision, "steps", lambda trace, cases: {"aggregate": step})
    found = own_precision.follows(lambda case: {}, a_case().case, torch.bfloat16)
    assert found == ({"aggregate": True} if told else {})


@pytest.mark.parametrize("spread", [0.0, 1e-5])
def test_the_budget_of_an_update_is_its_spread_and_roundings(spread):
    value = torch.tensor([2.0, 1.0, 0.5])
    found = compare_measured("accumulate", "", value, value, value * 2, error=spread)
    # four times the spread and eight roundings, of half a unit each, of the largest value
    assert found.worst["budget"] == pytest.approx((4 * spread + 4 * EPSILON) * 2)


def test_the_budget_of_a_live_audit_is_its_noise_and_a_floor():
    found = budgets({"gradient": 1e-6}, {"gradient", "loss"})
    assert found["gradient"] == pytest.approx(16 * (1e-6 + 4 * EPSILON))
    assert found["loss"] == pytest.approx(64 * EPSILON)
    assert found["teacher_tokens"] == 0.0


def test_two_gradients_agree_within_a_few_units_of_the_largest_entry():
    evaluated = a_case()
    gradient = np.zeros_like(evaluated.agreement.reference_values["gradient"])
    gradient[..., 0] = 1e6
    room = evaluated.agreement.allowances({"gradient": gradient})["gradient"]
    counts = evaluated.truth.counts
    # without a budget of its own an entry has four units, for each of two evaluations
    assert room[counts][:, 1:].min() == pytest.approx(2 * 4 * EPSILON * 1e6)


def test_results_agree_in_half_of_the_digits_at_least():
    evaluated = EvaluatedCase(a_case().case)
    evaluated.truth = replace(
        evaluated.truth, bounds=evaluated.truth.bounds | {"aggregate": np.array(1e9)}
    )
    # of a loss so wide that only this limits it, another may differ by half of its digits
    room = evaluated.agreement.allowances({"aggregate": np.array(1e30)})["aggregate"]
    assert room == pytest.approx(2 * math.sqrt(EPSILON) * 1e30)


def test_a_fault_agrees_within_four_allowances():
    assert lenient({"aggregate": np.array(0.5)})["aggregate"] == 2.0


def test_a_fault_shows_in_half_of_the_divergent_cases_at_least():
    assert shows_enough(2, 4)
    assert not shows_enough(1, 4)
    assert shows_enough(3, 5)
    assert not shows_enough(2, 5)
    assert not shows_enough(0, 0)


def test_an_explanation_of_a_quarter_of_the_cases_stands_beside_the_best():
    def also(cases: int) -> bool:
        cases_by_fault = {"A": map(str, range(16)), "B": map(str, range(cases))}
        return ranked(cases_by_fault, of=16)[1].also

    assert not also(4)
    assert also(3)


@pytest.mark.parametrize(("last", "one"), [(2.04, True), (2.06, False)])
def test_one_factor_on_all_rungs_varies_by_a_twentieth_at_most(last, one):
    rungs: list[RungRow] = [
        {"feature": name, "stage": "aggregate", "result": "departs", "factor": factor}
        for name, factor in (("a", 2.0), ("b", last))
    ]
    # 2.06 - 2 is 0.0566 of 2.06 - 1
    assert LadderResults(rungs).one_factor("a", "b") is one


def test_inputs_within_64_units_are_the_same():
    zero = torch.zeros(2)
    assert alike(zero, zero + 64 * EPSILON)
    assert not alike(zero, zero + 65 * EPSILON)
    # of a value of one the room is twice that: relative and absolute
    assert alike(zero + 1, zero + 1 + 128 * EPSILON)


def test_a_scale_within_64_units_is_the_right_one():
    expected = torch.ones(4)
    assert unscaled(expected * (0.5 + 30 * EPSILON), expected, 2)[1] == 0.5
    assert unscaled(expected * (0.5 + 40 * EPSILON), expected, 2)[1] == 0.5 + 40 * EPSILON


def test_tails_within_16_units_of_probability_agree():
    evaluated = a_case()
    tail = torch.full_like(evaluated.reference["tail.student"], math.log(0.5))

    def moved(units: float) -> torch.Tensor:
        return (tail.double().exp() + units * EPSILON).log()

    assert agree(evaluated, "tail.student", tail.double(), moved(15))
    assert not agree(evaluated, "tail.student", tail.double(), moved(17))


def test_a_wrong_scale_is_told_from_another_loss_within_a_fifth():
    evaluated = a_case()
    loss = {"aggregate": 3 * evaluated.reference["aggregate"]}
    # two steps, a loss three times as large: a right scale is 1/2, one not divided fits 3 · 1
    assert scale_of_other_loss(evaluated, loss, 3 * 1.19, 2) == 1.0
    assert scale_of_other_loss(evaluated, loss, 3 * 1.21, 2) == 0.5


def test_a_wrong_division_is_named_within_a_thousandth():
    assert [label.split()[0] for label in explained_scale([1.0009], 4)] == ["M11"]
    assert explained_scale([1.0011], 4) == explained_scale([1.0], 1) == []


def test_weights_within_16_units_of_the_largest_are_those_of_a_fault():
    weights = {"w": torch.tensor([4.0, 0.0])}
    assert close(weights, {"w": torch.tensor([4.0, 64 * EPSILON])})
    assert not close(weights, {"w": torch.tensor([4.0, 65 * EPSILON])})


def test_a_logged_number_may_be_rounded_to_four_decimals():
    # 5.1e-5 and a ten-thousandth of 2: 2.51e-4
    assert not Logged("T01", "loss", 2.00025, 2.0).wrong
    assert Logged("T01", "loss", 2.00026, 2.0).wrong


@pytest.mark.parametrize(("ours", "wrong"), [(4.9, 0), (5.1, 1), (0.21, 0), (0.19, 1), (-1.0, 1)])
def test_a_probe_moves_the_loss_within_a_factor_of_five(monkeypatch, ours, wrong):
    points = iter([(0.0, 0.0), (ours, 1.0)])
    monkeypatch.setattr(run_probes, "_moves_to", lambda scenario, run: next(points))
    assert len(run_probes.wrong_way(PROBES[0], None, None)) == wrong  # type: ignore[arg-type]
