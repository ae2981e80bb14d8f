"""Conditions of loss cases, and the one that tells failing cases from the others."""

from dataclasses import replace

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.call_conditions import CallConditions
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.explain.conditions import (
    CONDITIONS,
    fulfilled,
    telling_apart,
    telling_mostly,
)
from sdpo.parity.generated.make_case import covering_cases, hash_of
from sdpo.parity.relations.transformed_cases import generated

PLAIN = {"distillation_topk": None, "is_clip": None, "alpha": 0.5}


def test_every_condition_holds_in_some_case_and_not_in_all():
    cases = [*loss_cases(packaged_family("loss")), *covering_cases(0)]
    counts = {name: sum(name in fulfilled(case) for case in cases) for name in CONDITIONS}
    assert all(0 < count < len(cases) for count in counts.values()), counts


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"temperature": 0.7}, {"temperature below 1", "a temperature"}),
        ({"alpha": 0.25}, {"alpha between 0 and 1, not 0.5"}),
        ({"distillation_topk": 1}, {"a top-k with tail", "a top-k", "K = 1"}),
        ({"loss_agg_mode": "seq-mean-token-sum"}, {"seq-mean-token-sum", "a mean over rows"}),
    ],
)
def test_a_setting_adds_its_own_conditions(change, found):
    plain, changed = generated("a", 1, **PLAIN), generated("b", 1, **{**PLAIN, **change})
    assert fulfilled(changed) - fulfilled(plain) == found


def test_forms_and_calls_add_theirs():
    case = generated("a", 1, **PLAIN)
    low = replace(case, teacher_logits=case.teacher_logits.bfloat16())
    assert fulfilled(low) - fulfilled(case) >= {
        "student and teacher in two dtypes",
        "a teacher below the student's precision",
    }
    called = replace(case, call=CallConditions(layout="slice", incoming=-2.0))
    assert fulfilled(called) - fulfilled(case) == {
        "inputs that are not contiguous",
        "an incoming gradient other than 1",
        "an incoming gradient below 0",
    }
    gaps = case.response_mask.clone()
    gaps[:, 1] = 0
    assert "tokens left out in between" in fulfilled(replace(case, response_mask=gaps))


def test_what_all_failing_cases_have_and_no_other_is_named():
    warm = [generated(f"w{n}", n, **PLAIN, temperature=0.7) for n in range(3)]
    cold = [generated(f"c{n}", n, **PLAIN) for n in range(3)]
    assert telling_apart(warm, cold) == "temperature below 1"
    assert telling_apart(warm, [*cold, warm[0]]) == ""
    assert telling_apart([], cold) == ""


def test_two_conditions_together_are_found_too():
    both = generated("both", 1, **{**PLAIN, "alpha": 0.0}, temperature=0.7)
    others = [generated("warm", 1, **PLAIN, temperature=0.7)]
    others.append(generated("alpha", 1, **{**PLAIN, "alpha": 0.0}))
    assert telling_apart([both], others) == "alpha 0 and temperature below 1"


def split(departs):
    cases = [*loss_cases(packaged_family("loss")), *covering_cases(0)]
    return [c for c in cases if departs(c)], [c for c in cases if not departs(c)]


def test_where_most_cases_of_two_faults_lie_is_named():
    failing, holding = split(lambda c: c.config.alpha not in (0.5, 1.0) or c.call.autocast)
    found = telling_mostly(failing, holding)
    assert found is not None
    assert "alpha" in found.conditions
    assert len(failing) / 2 <= found.failing < len(failing)
    assert found.holding <= len(holding) / 5


def test_a_condition_that_does_not_show_in_every_case_is_named_all_the_same():
    failing, holding = split(lambda c: c.student_logits.shape[1] > 32 and len(c.id) % 2 == 0)
    found = telling_mostly(failing, holding)
    assert found is not None
    assert "more than 32 tokens" in found.conditions


def test_cases_at_random_have_nothing_in_common():
    failing, holding = split(lambda c: hash_of(c.id) % 4 == 0)
    assert telling_mostly(failing, holding) is None
    assert telling_mostly(failing[:7], holding) is None


@pytest.mark.parametrize(("others", "conditions"), [(2, 1), (3, 2)])
def test_two_conditions_must_tell_clearly_better_than_one(others, conditions):
    """Of forty holding cases so many have one of the two conditions, and as many the other."""
    plain, warm = dict(PLAIN), {**PLAIN, "temperature": 0.7}
    failing = [generated("both", 1, **{**warm, "alpha": 0.0}) for _ in range(10)]
    holding = [generated("warm", 1, **warm) for _ in range(others)]
    holding += [generated("alpha", 1, **{**plain, "alpha": 0.0}) for _ in range(others)]
    holding += [generated("plain", 1, **plain) for _ in range(40 - len(holding))]
    found = telling_mostly(failing, holding)
    assert found is not None
    assert len(found.conditions.split(" and ")) == conditions, found
