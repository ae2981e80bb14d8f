"""Draws of a random case: the same for the same seed, others for another."""

import pytest
import torch

from sdpo.parity.random_cases.chance import Chance


def drawn(family: str, seed: int) -> list:
    chance = Chance(family, seed)
    return [chance.between(0, 9), chance.number(0, 1), *chance.normal(3).tolist()]


def test_family_and_seed_give_the_same_draws_each_time():
    assert drawn("loss", 1) == drawn("loss", 1)
    assert drawn("loss", 1) != drawn("loss", 2)
    assert drawn("loss", 1) != drawn("update", 1)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    drawn("loss", 1)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("wanted", ["everything", "nothing", "lengths", "holes", "an empty row"])
def test_masks_of_every_kind_are_drawn(wanted):
    masks = [Chance("loss", seed).mask(3, 6) for seed in range(60)]
    ends = [m for m in masks if (m.int().diff(dim=1) <= 0).all() and m.any() and not m.all()]
    kinds = {
        "everything": [m for m in masks if m.all()],
        "nothing": [m for m in masks if not m.any()],
        "lengths": ends,
        "holes": [m for m in masks if (m.int().diff(dim=1) > 0).any()],
        "an empty row": [m for m in masks if m.any() and not m.any(dim=1).all()],
    }
    assert kinds[wanted]
