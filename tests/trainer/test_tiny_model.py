"""The model that every side of a trainer's audit starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2ForCausalLM

from sdpo.parity.whole_step.scenarios import SCENARIOS
from sdpo.parity.whole_step.tiny_model import tiny_model

DISGUISED = replace(SCENARIOS[0], disguise="shifted head")


@pytest.mark.parametrize("scenario", [SCENARIOS[0], DISGUISED], ids=["plain", "disguised"])
def test_a_model_is_its_own_and_lies_where_its_configuration_says(scenario, tmp_path: Path):
    first: Any = tiny_model(scenario, tmp_path)
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    second: Any = tiny_model(scenario, tmp_path)
    path = second.config.name_or_path
    assert path == second.name_or_path == str(tmp_path / "model")
    written = Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32)
    for (name, ours), theirs in zip(second.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert any(weight.any() for weight in second.parameters())
    assert not second.training
    elsewhere: Any = tiny_model(scenario, tmp_path / "elsewhere")
    assert elsewhere.config.name_or_path != path == second.config.name_or_path
