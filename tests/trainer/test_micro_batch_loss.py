"""The trainer with the fused loss: the same updates, without the logits.

Budget kind: the recorded updates within the bounds of another instruction set, as for the logits;
trainings within a few times what rounding makes of their step.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

import sdpo.trainer.micro_batch_loss
from sdpo.fused.hidden_states import check_head, head_of, response_projection
from sdpo.fused.lm_head import logits_of
from sdpo.parity.recorded.updates import own_config
from sdpo.settings.config import ConfigError
from sdpo.update.actor_update import response_logits
from sdpo.update.shared_prefix import MODEL_INPUTS
from tests.helpers.recorded import golden_trainer
from tests.helpers.recorded.golden_trainer import cases
from tests.helpers.spread import slow_are
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (2, 7), generator=random)
    inputs = (ids, torch.ones_like(ids), torch.arange(7).expand(2, 7))
    return dict(zip(MODEL_INPUTS, inputs, strict=True)) | {"responses": ids[:, -3:]}


def families():
    torch.manual_seed(0)
    yield "Qwen2", tiny_trainer.model()
    yield "Gemma2", Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=5.0))
    yield "Cohere", CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25))


MODELS: dict[str, Any] = dict(families())


@pytest.mark.parametrize("family", MODELS)
def test_hidden_states_and_head_give_the_models_logits(family):
    model = MODELS[family].eval()
    check_head(model)
    projection = response_projection(model, batch())
    expected = response_logits(model, batch())
    hidden = projection.hidden.flatten(0, 1)
    width = expected.shape[-1]
    actual = logits_of(projection._replace(hidden=hidden), slice(0, width), 1.0)
    torch.testing.assert_close(actual.view_as(expected), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_step_behind_the_head_is_refused():
    model: Any = tiny_trainer.model()
    inner = model.forward

    def shifted(*arguments, **named):
        found = inner(*arguments, **named)
        found.logits = found.logits * 1.01
        return found

    model.forward = shifted
    with pytest.raises(ConfigError, match="does not know"):
        check_head(model)


def test_a_cap_that_the_settings_hide_is_seen():
    model: Any = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=5.0))
    model.config.final_logit_softcapping = None
    check_head(model)
    inner = model.forward

    def capped(*arguments, **named):
        found = inner(*arguments, **named)
        found.logits = 30 * torch.tanh(found.logits / 30)
        return found

    model.forward = capped
    with pytest.raises(ConfigError, match="does not know"):
        check_head(model)


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_adapted_head_is_refused(where):
    settings: dict[str, Any] = {"target_modules": ["q_proj"], where: ["lm_head"]}
    model = get_peft_model(tiny_trainer.model(), LoraConfig(r=2, **settings))
    with pytest.raises(ConfigError, match="PEFT adapts it"):
        head_of(model)


def test_a_model_that_does_not_call_its_head_is_refused():
    model: Any = tiny_trainer.model()

    def direct(input_ids, **named):
        return model.model(input_ids=input_ids).last_hidden_state @ model.lm_head.weight.T

    model.forward = direct
    with pytest.raises(ConfigError, match="0 times"):
        response_projection(model, batch())


@pytest.mark.parametrize("case_id", ["P-U002", "P-U015", "P-U027", "P-U044"])
def test_recorded_updates_are_reproduced(case_id, tmp_path, monkeypatch):
    """The recorder makes the trainer take all rows and keep all stages."""
    monkeypatch.setattr(sdpo.trainer.micro_batch_loss, "self_distillation_stages", None)
    config = replace(own_config(cases.case(case_id)), loss_implementation="fused")
    run = golden_trainer.run(case_id, tmp_path, sdpo_config=config)
    skip = ("old_log_probs_used", "entropy")
    assert cases.tensor_differences(case_id, run, exact=False, counted_only=True, skip=skip) == []


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ema": ({}, {}),
    "trust region": ({"teacher_mode": "trust_region"}, {}),
    "off-policy": ({"is_clip": 1.1}, {"num_iterations": 2, "max_steps": 4}),
    "cap below one": ({"is_clip": 0.5}, {}),
    "full vocabulary": ({"distillation_topk": None, "alpha": 1.0}, {}),
    "exact": ({"micro_batch_semantics": "exact"}, {}),
    "by rows": ({"loss_agg_mode": "seq-mean-token-sum-norm"}, {}),
    "hybrid": ({"hybrid_lambda": 0.3}, {}),
}


class FirstGroupOnly(tiny_trainer.Alternating):
    """Half of the first group succeeds, nobody of the others: their rows have no signal."""

    def __call__(self, completions, **columns):
        super().__call__(completions, **columns)
        return [float(row in (0, 2)) for row in range(len(completions))]


def trained(folder, implementation, settings, args, **changes):
    settings = {"loss_implementation": implementation, **settings}
    return tiny_trainer.trained(folder, settings, args, **changes)


@pytest.mark.parametrize("name", slow_are(("trust region", "cap below one", "by rows"), RUNS))
def test_fused_and_unfused_trainings_agree(name, tmp_path):
    settings, args = RUNS[name]
    runs = [trained(tmp_path / kind, kind, settings, args) for kind in ("logits", "fused")]
    assert tiny_trainer.near(runs[1], runs[0])


@pytest.mark.parametrize("mode", ["lora_ema", "ema"])
def test_adapters_train_the_same(mode, tmp_path):
    peft = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    runs = []
    for implementation in ("logits", "fused"):
        torch.manual_seed(0)
        runs.append(
            trained(
                tmp_path / implementation,
                implementation,
                {"teacher_mode": mode},
                {"max_steps": 3},
                peft_config=peft,
            )
        )
    assert tiny_trainer.near(runs[1], runs[0])


def test_tied_embeddings_train_the_same(tmp_path):
    wide: dict[str, Any] = {"tie_word_embeddings": True, "initializer_range": tiny_trainer.WIDE}
    runs = [
        trained(tmp_path / kind, kind, {}, {}, model=tiny_trainer.model(**wide))
        for kind in ("logits", "fused")
    ]
    assert tiny_trainer.near(runs[1], runs[0])


def test_rows_without_signal_cost_the_models_nothing(tmp_path):
    runs = {
        kind: trained(tmp_path / kind, kind, {}, {}, reward_funcs=[FirstGroupOnly()])
        for kind in ("logits", "fused")
    }
    assert tiny_trainer.near(runs["fused"], runs["logits"])
    assert sum(runs["fused"].tokens) < sum(runs["logits"].tokens)


def test_a_planted_fault_is_seen(tmp_path, monkeypatch):
    """Hidden states one token late."""
    expected = trained(tmp_path / "a", "logits", {}, {})
    real = sdpo.trainer.micro_batch_loss.response_projection

    def late(*arguments, **named):
        found = real(*arguments, **named)
        return found._replace(hidden=found.hidden.roll(1, dims=1))

    monkeypatch.setattr(sdpo.trainer.micro_batch_loss, "response_projection", late)
    assert not tiny_trainer.near(trained(tmp_path / "b", "fused", {}, {}), expected)
