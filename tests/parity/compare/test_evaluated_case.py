"""A case is evaluated once, and what is made of it goes with it."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.evaluated_case import EvaluatedCase, evaluate_case

CASES = {case.id: case for case in loss_cases(packaged_family("loss"))}
TOPK = CASES["P-L001"]


def test_what_was_evaluated_goes_with_its_case():
    case = replace(TOPK, id="another")
    assert evaluate_case(case) is evaluate_case(case)
    assert evaluate_case(replace(case)) is not evaluate_case(case)
    kept = weakref.ref(evaluate_case(case))
    del case
    gc.collect()
    assert kept() is None


def test_the_references_own_choice_keeps_what_was_recorded():
    evaluated = EvaluatedCase(TOPK)
    chosen = evaluated.choosing(evaluated.reference["support.indices"])
    assert not chosen.all_choices
    assert all(chosen.reference[name] is TOPK.recorded[name] for name in TOPK.recorded)


def test_another_choice_is_the_transcription_made_to_choose_it():
    evaluated = EvaluatedCase(TOPK)
    size = evaluated.reference["support.indices"].shape[-1]
    others = (-TOPK.student_logits).topk(size, dim=-1).indices
    chosen = evaluated.choosing(others)
    assert chosen is evaluated.choosing(others.clone())
    assert torch.equal(chosen.reference["support.indices"], others)
    assert not torch.equal(chosen.reference["aggregate"], evaluated.reference["aggregate"])


def test_what_widens_budgets_widens_those_of_a_choice_too():
    def widen(truth):
        return replace(truth, bounds={name: 3 * bound for name, bound in truth.bounds.items()})

    usual, wide = EvaluatedCase(TOPK), EvaluatedCase(TOPK, widen=widen)
    indices = usual.reference["support.indices"]
    for side in (lambda e: e, lambda e: e.choosing(indices)):
        a, b = side(usual).truth.bounds["gradient"], side(wide).truth.bounds["gradient"]
        assert np.array_equal(3 * a, b)
