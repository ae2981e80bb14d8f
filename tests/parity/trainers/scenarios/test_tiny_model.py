"""The model that every side of a trainer's audit starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SMALLER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
DISGUISED = replace(SCENARIOS[0], disguise="shifted head")


def test_a_model_that_is_there_already_is_taken(tmp_path: Path):
    """The benchmark of trainers puts a larger one there."""
    Qwen2ForCausalLM(Qwen2Config(**SMALLER)).save_pretrained(tmp_path / "model")
    taken: Any = tiny_model(SCENARIOS[0], tmp_path)
    assert taken.config.hidden_size == SMALLER["hidden_size"]


@pytest.mark.parametrize("scenario", [SCENARIOS[0], DISGUISED], ids=["plain", "disguised"])
def test_a_model_is_its_own_and_lies_where_its_configuration_says(scenario, tmp_path: Path):
    first: Any = tiny_model(scenario, tmp_path)
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    assert first.config.name_or_path == first.name_or_path == str(tmp_path / "model")
    second: Any = tiny_model(scenario, tmp_path / "second")
    path = second.config.name_or_path
    assert path == second.name_or_path == str(tmp_path / "second" / "model")
    written = Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32)
    for (name, ours), theirs in zip(second.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert any(weight.any() for weight in second.parameters())
    assert not second.training
    again: Any = tiny_model(scenario, tmp_path)
    assert all(map(torch.equal, again.parameters(), second.parameters()))
