"""Explanations: by another implementation with a planted fault, by pairs, and never false ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo.loss.divergence import divergence
from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.parity.audit.self_test import families
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.candidates.stage_functions import StageFunctions
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.evaluated_case import Observation, evaluate_case
from sdpo.parity.explain.ladder import VOCABULARY
from sdpo.parity.explain.match_faults import (
    FaultMatch,
    Search,
    agrees,
    agrees_in_loss,
    evaluation,
    explain,
    loss_alone,
    stage_of,
)
from sdpo.parity.faults.catalogue import BY_ID, LOSS_FAULTS
from sdpo.parity.faults.evaluate_fault import loss_from_logits
from tests.helpers.fault_harness import run_of

ENDPOINTS: dict[float, float] = {0.0: 1.0, 1.0: 0.0}


def swapped(*tensors, config, **given):
    """M01 in our own implementation."""
    full = config.full_logit_distillation
    alpha = ENDPOINTS.get(config.alpha, config.alpha) if full else config.alpha
    return self_distillation_loss(*tensors, config=replace(config, alpha=alpha), **given)


def without_signal(*tensors, self_distillation_mask=None, **given):
    """M15 in our own implementation."""
    return self_distillation_loss(*tensors, **given)


def dead(*tensors, **given):
    """M23 in our own implementation."""
    loss = self_distillation_loss(*tensors, **given)
    return loss.detach() + 0.0 * tensors[0].nan_to_num(0.0, 0.0, 0.0).sum()


def two_faults(student, teacher, *tensors, rollout_is_weights=None, **given):
    """M14 and M74 in our own implementation."""
    return self_distillation_loss(student, teacher.roll(1, 1), *tensors, **given)


def off_by_a_percent(*tensors, **given):
    return self_distillation_loss(*tensors, **given) * 1.01


def from_logits(function):
    """The function with the signature of the protocol."""

    def loss(
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        *,
        old_log_probs=None,
        self_distillation_mask=None,
        rollout_is_weights=None,
        config,
    ):
        return function(
            student_logits,
            teacher_logits,
            responses,
            response_mask,
            old_log_probs=old_log_probs,
            self_distillation_mask=self_distillation_mask,
            rollout_is_weights=rollout_is_weights,
            config=config,
        )

    return FromLogits(function.__name__, loss)


@pytest.mark.parametrize(
    ("function", "ids", "stage"),
    [
        (swapped, ["M01"], "divergence"),
        (without_signal, ["M15"], "aggregate"),
        (dead, ["M23"], "gradient"),
        (two_faults, ["M14", "M74"], "log_probs"),
    ],
)
def test_another_implementation_with_a_known_fault(function, ids, stage):
    run = run_of(from_logits(function), families()[0])
    assert run.explained_by == [" + ".join(BY_ID[id_].label for id_ in ids)]
    assert (run.first_stage, run.first_stage_inferred) == (stage, True)
    (row,) = run.explanations
    diverging = [case.id for case in run.cases if case.status == "DIVERGENT"]
    assert row.of == len(diverging)
    assert set(row.cases) <= set(diverging)
    assert row.explains > 0.8 * row.of, "the others have inputs that are not finite, or hide it"


def test_an_unknown_fault_is_not_explained_but_located():
    run = run_of(from_logits(off_by_a_percent), families()[0])
    assert (run.verdict, run.explained_by) == ("DIVERGENT", [])
    assert (run.first_stage, run.first_stage_inferred) == ("aggregate", True)
    assert {row.factor for row in run.ladder} != {None}


def half_a_gradient(loss, factor):
    """A loss with half of its gradient, its value times a factor."""
    return factor * loss.detach() + 0.5 * (loss - loss.detach())


def off_in_wide_vocabularies(*tensors, **given):
    wide = tensors[0].shape[-1] > VOCABULARY
    return half_a_gradient(self_distillation_loss(*tensors, **given), 1.01 if wide else 1.0)


def off_in_long_answers(*tensors, **given):
    long = 4 < tensors[2].shape[1] < 40  # between the rungs
    return half_a_gradient(self_distillation_loss(*tensors, **given), 1.01 if long else 1.0)


def off_where_weights_differ(*tensors, rollout_is_weights=None, **given):
    loss = self_distillation_loss(*tensors, rollout_is_weights=rollout_is_weights, **given)
    differ = rollout_is_weights is not None and bool(rollout_is_weights.std() > 0)
    return half_a_gradient(loss, 1.02 if differ else 1.0)


@pytest.mark.parametrize(
    "function", [off_in_wide_vocabularies, off_in_long_answers, off_where_weights_differ]
)
def test_a_ladder_that_shows_only_gradients_is_not_believed_against_a_value(function):
    """The value departs where no rung of the ladder goes, so that only gradients do there."""
    run = run_of(from_logits(function), families()[0])
    found = run.first_stage, run.first_stage_inferred, run.first_observed
    assert (run.verdict, *found) == ("DIVERGENT", "aggregate", False, "aggregate")


def test_faults_that_give_the_same_numbers_are_all_named():
    function = loss_from_logits(BY_ID["M49"].parts)
    run = run_of(FromLogits("closed", function), families()[0])
    named = {label.split()[0] for label in run.explained_by}
    assert {"M43", "M49"} <= named
    assert run.first_stage == "tail"


def observations(changed: bool, sampled: bool = False) -> list[Observation]:
    """The reference as a candidate, on some cases; one case called divergent."""
    cases = loss_cases(families()[0])
    found = []
    for number, case in enumerate([c for c in cases if (c.mode == "sampled") == sampled][:4]):
        evaluated = evaluate_case(case)
        found.append(
            Observation(evaluated, changed and number == 0, evaluated.agreement.reference_values)
        )
    return found


def test_no_fault_explains_the_reference():
    assert explain(observations(False)) == []
    # where all faults act, so would pairs of them, and trying those takes seconds
    assert explain(observations(True), search=Search(work_left=0)) == []
    search = Search()
    assert explain(observations(True, sampled=True), search=search) == []
    assert search.pairs_tried == search.pairs > 4000
    assert explain([]) == []


def test_the_loss_alone_rules_out_nothing_that_explains():
    """What is computed without a gradient has the bits of the whole evaluation."""
    evaluated = evaluate_case(loss_cases(families()[0])[3])
    ruled_out = 0
    for fault in LOSS_FAULTS:
        given = evaluation((fault,), evaluated)
        assert given is not None
        alone = loss_alone((fault,), evaluated)
        assert alone is not None
        assert np.array_equal(alone["aggregate"], given.values["aggregate"], equal_nan=True)
        for values in (given.values, evaluated.agreement.reference_values):
            observation = Observation(evaluated, True, values, given.complaint)
            possible = agrees_in_loss(observation, (fault,))
            assert possible or not agrees(observation, given)
            ruled_out += not possible
    assert ruled_out > 20


def test_noise_is_not_explained():
    generator = torch.Generator().manual_seed(3)
    found = []
    for case in loss_cases(families()[0])[:12]:
        evaluated = evaluate_case(case)
        noise = 1 + 0.1 * torch.rand(1, generator=generator).item()
        values = {
            name: noise * evaluated.agreement.reference_values[name]
            for name in ("aggregate", "gradient")
        }
        found.append(Observation(evaluated, True, values))
    assert explain(found) == []


def test_the_stage_is_named_only_if_all_explanations_agree():
    one, other = (FaultMatch((BY_ID[id_],)) for id_ in ("M43", "M49"))
    pair = FaultMatch((BY_ID["M49"], BY_ID["M23"]))
    assert stage_of([other, pair]) == "tail"
    assert stage_of([one, other]) is None
    assert stage_of([]) is None
    assert pair.label == f"{BY_ID['M49'].label} + {BY_ID['M23'].label}"


class WrongDivergence:
    """Stage functions, one of them with M01."""

    def divergence(self, student, teacher, alpha: float):
        return divergence(student, teacher, alpha=ENDPOINTS.get(alpha, alpha))

    def importance(self, per_token_loss, student_log_probs, old_log_probs, is_clip):
        return per_token_loss  # not judged: the fault before it comes first


def test_a_stage_function_with_a_known_fault():
    run = run_of(StageFunctions("wrong", WrongDivergence()), families()[0])
    assert run.first_stage == "divergence"
    assert run.explained_by == [BY_ID["M01"].label]
