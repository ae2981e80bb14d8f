"""Models and tokenizers load as asked for, and what is missing is named."""

import json

import pytest

from sdpo.benchmark.runs import models
from sdpo.benchmark.runs.settings import ModelSettings, SettingsError, load


def test_a_model_that_is_not_there_is_named(tmp_path):
    missing = str(tmp_path / "nothing")
    for loaded in (models.load_tokenizer, lambda name: models.load_model(ModelSettings(name=name))):
        with pytest.raises(SettingsError, match="cannot load the model") as error:
            loaded(missing)
        assert missing in str(error.value)
        assert "give a folder" in str(error.value)


def test_the_dtype_is_the_one_asked_for():
    model = models.load_model(ModelSettings(dtype="bfloat16"))
    assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16"}


def test_prompts_are_padded_on_the_left():
    tokenizer = models.load_tokenizer("embedded")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<|endoftext|>")


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    models.load_tokenizer("embedded").save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    file = tmp_path / "tokenizer_config.json"
    content = json.loads(file.read_text())
    content.pop("chat_template", None)
    file.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="has no chat template"):
        models.load_tokenizer(str(tmp_path))


def test_adapters_follow_the_section():
    assert models.adapter_config(ModelSettings(lora_r=0)) is None
    lora = models.adapter_config(ModelSettings(lora_r=8, lora_alpha=16))
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 16, "all-linear")


def test_four_bits_need_adapters(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: name)
    with pytest.raises(SettingsError, match=r"needs adapters to train: set model\.lora_r"):
        models.check_hardware(load("sdpo", ["model.four_bit=true"]))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="needs bitsandbytes"):
        models.check_hardware(load("sdpo", ["model.four_bit=true"]))
