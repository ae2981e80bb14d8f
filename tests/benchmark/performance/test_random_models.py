"""Random models are the same in every process."""

import torch

from sdpo.benchmark.performance.random_models import qwen2_shape, random_model, reward_every


def test_a_model_has_its_shape_and_the_same_weights_again():
    shape = qwen2_shape(8, 16, 1, 2, 1, 50, tied=True)
    first, second = random_model(shape), random_model(shape)
    assert first.lm_head.weight.shape == (50, 8)
    assert first.lm_head.weight is first.get_input_embeddings().weight
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_third_completion_succeeds():
    assert reward_every(3)(["a"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]
