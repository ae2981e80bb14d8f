"""QLoRA on a CPU: a 4-bit base model with two adapters, where bitsandbytes is installed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.bitsandbytes_cpu import PACKS, keep_trainable
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")


@pytest.fixture
def quantized(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    tiny_trainer.model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, attn_implementation="eager"
    )


def test_layers_that_would_be_packed_are_kept_trainable():
    """As on a CPU with bfloat16 in AVX-512, where packed layers have no derivative."""

    class Layer(torch.nn.Linear):
        support_avx512bf16_for_cpu = True

    model = torch.nn.Sequential(Layer(2, 2), torch.nn.Linear(2, 2))
    keep_trainable(model)
    assert not model[0].support_avx512bf16_for_cpu
    assert not hasattr(model[1], PACKS)


@pytest.mark.slow
def test_the_flag_is_still_that_of_bitsandbytes(quantized):
    assert any(hasattr(module, PACKS) for module in quantized.modules())


@pytest.mark.slow
@pytest.mark.parametrize("average", ["factors", "effective"])
def test_adapters_on_a_4_bit_model_are_trained_and_averaged(average, quantized, tmp_path):
    model = get_peft_model(quantized, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    config = SDPOConfig(teacher_mode="lora_ema", lora_average=average, distillation_topk=20)
    trainer = tiny_trainer.trainer(tmp_path, config, model=model, args={"max_steps": 3})
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    trainer.train()
    after = trainer.teacher.state_dict()
    assert not tiny_trainer.same(before, after)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    name = "self_distillation/reprompt_sample_fraction"
    assert [row[name] for row in trainer.state.log_history if name in row] == [1, 1, 1]


@pytest.mark.slow
def test_a_4_bit_model_without_adapters_is_refused(quantized, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=r"quantized|adapters"):
        tiny_trainer.trainer(tmp_path, SDPOConfig(), model=quantized)
