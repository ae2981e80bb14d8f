"""Cases recorded from the stand-in, in the form and with the values of the packaged ones."""

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.record.recipes import recipe_of
from sdpo.parity.record.recorder import CaseRecorder
from tests.helpers.recorded.canaries import loss_has_recorded_bits

pytest.importorskip("transformers", reason="the recorded models and tokenizer are loaded by it")

COMPUTED = ("sha256", "loss", "grad_abs_max", "rollout_metrics", "results")
"""Numbers of an entry: their last bits depend on the processor."""


@pytest.fixture
def recorder(stand_in):
    stand_in()
    find_checkout()
    return CaseRecorder()


@pytest.mark.parametrize("case_id", ["P-L001", "P-L030", "P-L041", "P-L065", "P-L073"])
def test_a_loss_case_is_recorded_in_the_packaged_form(recorder, case_id):
    golden = packaged_family("loss").case(case_id)
    made = recorder.record(recipe_of(golden))
    assert same_form(golden.entry, made.entry)
    recorded = golden.tensors()
    for name, value in made.tensors.items():
        torch.testing.assert_close(value, recorded[name], rtol=0.02, atol=0.02, equal_nan=True)
    if loss_has_recorded_bits(case_id):
        assert made.entry["sha256"] == golden.entry["sha256"]


@pytest.mark.parametrize("case_id", ["P-R003", "P-R012", "P-R028", "P-R032", "P-R058"])
def test_a_teacher_prompt_is_recorded_to_the_byte(recorder, case_id):
    golden = packaged_family("reprompt").case(case_id)
    made = recorder.record(recipe_of(golden))
    assert made.entry == golden.entry


@pytest.mark.parametrize("case_id", ["P-U002", "P-U013", "P-U017", "P-U031"])
def test_an_update_is_recorded_in_the_packaged_form(recorder, case_id):
    golden = packaged_family("update").case(case_id)
    made = recorder.record(recipe_of(golden))
    assert same_form(golden.entry, made.entry)
    facts = [{n: r[n] for n in r if n != "metrics"} for r in made.entry["results"]]
    assert facts == [{n: r[n] for n in r if n != "metrics"} for r in golden.entry["results"]]


def same_form(packaged, made) -> bool:
    form = {name: value for name, value in packaged.items() if name not in COMPUTED}
    return form == {name: value for name, value in made.items() if name not in COMPUTED}
