"""What failing cases have in common, and how much the departure matters."""

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.run_loss_cases import run_loss_case
from sdpo.parity.candidates.implementations import reference_loss
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.explain.diagnosis import diagnosis
from sdpo.settings.determinism import deterministic


def observed(change, every=6):
    """What a changed reference gives on some recorded cases."""

    def loss(student_logits, teacher_logits, responses, response_mask, **given):
        value = reference_loss(student_logits, teacher_logits, responses, response_mask, **given)
        return change(value, student_logits, given["config"])

    candidate = FromLogits("planted", loss)
    with deterministic():
        runs = [
            run_loss_case(candidate, case) for case in loss_cases(packaged_family("loss"))[::every]
        ]
    return [run.observation for run in runs if run.observation is not None]


def test_a_loss_that_holds_everywhere_has_none():
    assert diagnosis(observed(lambda value, logits, config: value)) is None


def test_a_factor_is_a_ratio_of_norms_and_turns_no_gradient():
    found = diagnosis(observed(lambda value, logits, config: 4 * value))
    assert found is not None
    assert found.gradient_ratio == pytest.approx(4.0)
    assert found.gradient_cosine == pytest.approx(1.0)
    assert found.relative == pytest.approx(3.0)
    assert isinstance(found.expected, float)
    assert found.actual == pytest.approx(4 * found.expected)


def test_a_sign_turns_the_gradient():
    found = diagnosis(observed(lambda value, logits, config: -value))
    assert found is not None
    assert found.gradient_cosine == pytest.approx(-1.0)


def test_the_condition_of_the_failing_cases_is_named():
    found = diagnosis(
        observed(lambda value, logits, config: value * (2 if config.temperature < 1 else 1))
    )
    assert found is not None
    assert found.only_where == "temperature below 1"
    assert 0 < found.failing < found.compared
    assert "temperature below 1" in found.settings


def test_a_difference_that_few_cases_can_show_is_shared_by_others():
    def only_far(value, logits, config):
        changed = config.temperature < 1 and logits.shape[0] > 1
        return value * (2 if changed else 1)

    found = diagnosis(observed(only_far, every=2))
    assert found is not None
    assert found.only_where or "temperature below 1" in found.shared
