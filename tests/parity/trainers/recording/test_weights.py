"""Copies of weights and gradients of layers that one can multiply by hand."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.trainers.recording.weights import (
    effective_weights,
    gradients_of,
    teacher_weights,
    weights_of,
)


class Scale(nn.Module):
    """A layer of two inputs and one output, and a frozen offset."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        self.offset = nn.Parameter(torch.ones(1), requires_grad=False)
        self.config = {"model_type": "scale"}
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def forward(self, inputs):
        return self.linear(inputs) + self.offset


def test_copies_do_not_follow_the_module():
    module = Scale()
    copied, trained = weights_of(module), weights_of(module, trained_only=True)
    with torch.no_grad():
        module.linear.weight.zero_()
    assert {name: value.tolist() for name, value in copied.items()} == {
        "linear.weight": [[1, 2]],
        "offset": [1],
    }
    assert list(trained) == ["linear.weight"]


def test_gradients_of_trained_weights_and_only_where_there_is_one():
    module = Scale()
    assert gradients_of(module) == {}
    module(torch.tensor([3.0, 4.0])).backward()
    assert {n: g.tolist() for n, g in gradients_of(module).items()} == {"linear.weight": [[3, 4]]}


def test_an_adapter_adds_its_product_to_the_weight():
    """B A = [[1], …] of rank 1: 2 · [3, 5], times alpha ÷ rank = 1."""
    plain: Any = Scale()
    model: Any = get_peft_model(plain, LoraConfig(r=1, lora_alpha=1, target_modules=["linear"]))
    layer = model.base_model.model.linear
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.tensor([[3.0, 5.0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[2.0]]))
    assert effective_weights(model)["linear.weight"].tolist() == [[1 + 6, 2 + 10]]
    with pytest.raises(CandidateError, match="no layer has the teacher's adapter 'teacher'"):
        teacher_weights(model, model, "teacher")


def test_a_trainer_without_a_teacher_shows_no_weights():
    assert teacher_weights(None, Scale(), "teacher") == {}
