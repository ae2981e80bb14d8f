"""Settings of a checkout as texts."""

from typing import Any

from sdpo.parity.checkouts.settings_of import COMPARED, as_texts, layers_of, recorded_layers
from sdpo.parity.live_fork.checkout import find_verl
from sdpo.parity.live_fork.settings import distillation_settings


def test_integers_and_floats_of_one_value_are_one_text():
    assert as_texts({"a": 2, "b": 2.0, "c": True, "d": None, "e": "2"}) == {
        "a": "2.0",
        "b": "2.0",
        "c": "True",
        "d": "None",
        "e": "'2'",
    }


def test_a_checkout_of_the_fork_has_the_recorded_layers(stand_in):
    root = find_verl(stand_in())
    layers, recorded = layers_of(root), recorded_layers()
    assert set(layers) == set(COMPARED)
    for layer in COMPARED:
        assert {name: layers[layer].get(name) for name in recorded[layer]} == recorded[layer]


def test_a_checkout_without_sdpo_has_no_layer_of_it(stand_in):
    root = find_verl(stand_in())
    (root / "verl" / "trainer" / "config" / "sdpo.yaml").unlink()
    assert layers_of(root) == {}


def test_a_value_that_a_checkout_calls_otherwise_is_told(stand_in):
    """As in verl's pull request 5499."""
    refusing = (
        "    teacher_update_rate: float = 0.05\n",
        "    teacher_update_rate: float = 0.05\n\n    def __post_init__(self):\n"
        "        if self.teacher_regularization == 'trust-region':\n"
        "            raise ValueError(self.teacher_regularization)\n\n",
    )
    root = find_verl(stand_in(**{"workers/config/__init__": refusing}))
    name = "teacher_regularization: trust-region"
    assert layers_of(root)["dataclass"][name] == "'trust_region'"
    assert recorded_layers()["dataclass"][name] == "'trust-region'"
    made: Any = distillation_settings({"teacher_regularization": "trust-region"})
    assert made.teacher_regularization == "trust_region"
