"""What the checkout's files set, here those of the stand-in."""

import pytest

from sdpo.parity.candidates.live_settings import written_layers
from sdpo.parity.live_fork.checkout import CheckoutError, find_checkout
from sdpo.parity.live_fork.composed_settings import live_layers


def test_every_setting_that_is_written_down_is_read_from_the_files(stand_in):
    root = stand_in()
    find_checkout()
    live = live_layers(root)
    for layer, settings in written_layers().items():
        assert {name: live[layer].get(name, "absent") for name in settings} == settings


def test_files_that_cannot_be_composed_are_named(stand_in):
    root = stand_in()
    find_checkout()
    (root / "verl" / "trainer" / "config" / "sdpo.yaml").write_text("{")
    with pytest.raises(CheckoutError, match=r"sdpo\.yaml cannot be composed"):
        live_layers(root)
