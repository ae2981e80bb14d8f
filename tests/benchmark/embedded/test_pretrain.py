"""Pre-training makes the same weights again, cut off or not."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sdpo.benchmark.embedded import pretrain
from sdpo.benchmark.embedded.recipe import PACKAGED, qwen2

SMALL = {"echo": 2, "plain": 2, "shown": 2, "told": 1}
TINY = replace(PACKAGED, architecture=qwen2(32, 64, 2, 2), stages=((9, SMALL),), steps=4)


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def whole(tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    pretrain.pretrain(folder, tmp_path / "whole.state", TINY)
    return weights(folder)


def test_the_same_weights_again(whole, tmp_path):
    for seed, same in ((TINY.seed, True), (TINY.seed + 1, False)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        pretrain.pretrain(folder, tmp_path / f"{seed}.state", replace(TINY, seed=seed))
        assert equal(weights(folder), whole) == same


def test_a_run_that_was_cut_off_continues(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)
    folder, state, made = tmp_path / "cut", tmp_path / "cut.state", []
    folder.mkdir()
    train_step = pretrain.train_step

    def cut_off(*arguments):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(pretrain, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(folder, state, TINY)
    pretrain.pretrain(folder, state, TINY)
    assert len(made) == 4 + 2
    assert equal(weights(folder), whole)


@pytest.mark.slow
def test_the_first_steps_of_the_packaged_recipe_repeat(tmp_path):
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        recipe = replace(PACKAGED, steps=20)
        pretrain.pretrain(folder, tmp_path / f"{name}.state", recipe)
        found.append((folder / "model.safetensors").read_bytes())
    assert found[0] == found[1]
