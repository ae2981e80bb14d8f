"""Copies of a model, and modes that come back."""

from typing import Any

import torch
from torch import nn

from sdpo.trainer.teacher_weights import CopyWeights, adding, copy_of, evaluating


def doubling() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    return layer


def test_a_copy_runs_its_own_weights_though_the_forward_was_replaced():
    """The replaced forward holds the original, whose weight becomes 5; the copy still doubles."""
    layer: Any = doubling()
    original = layer.forward
    layer.forward = lambda x: original(x)
    copied = copy_of(layer)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    assert layer(torch.ones(1)).item() == 5
    assert copied(torch.ones(1)).item() == 2
    assert "forward" in vars(layer)


def test_a_copy_takes_no_gradients_along():
    layer = doubling()
    layer(torch.ones(1)).sum().backward()
    assert copy_of(layer).weight.grad is None
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == 1


def test_only_what_the_student_trains_follows():
    model = nn.Sequential(doubling(), doubling())
    model[0].requires_grad_(False)
    weights = CopyWeights(model)
    assert weights.names == ["1.weight"]
    assert [p.item() for p in weights.parameters()] == [2.0]
    assert weights.parameters()[0] is not weights.student_parameters(model)[0]
    assert not weights.module.training


def test_each_module_goes_back_to_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model)
    assert [module.training for module in model] == [True, False]


def test_the_hook_adds_the_product_and_notes_the_layer():
    """2 · 3 from the layer and 4 · 3 from the matrix are 18."""
    layer, ran = doubling(), set()
    layer.register_forward_hook(adding(torch.tensor([[4.0]]), ran))
    assert layer(torch.tensor([3.0])).item() == 18
    assert ran == {layer}
