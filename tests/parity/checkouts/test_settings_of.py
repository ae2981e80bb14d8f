"""Settings of a checkout as texts."""

from sdpo.parity.checkouts.settings_of import COMPARED, as_texts, layers_of, recorded_layers
from sdpo.parity.live_fork.checkout import find_verl


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
