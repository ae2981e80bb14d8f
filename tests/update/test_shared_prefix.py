"""Rows with the same prompt share its computation: the same gradients, from fewer tokens.

Budget kind: rounding of another order of summation, 1e-5 in float32, where a wrong prompt moves
them by half; over a training as for the fused loss, what rounding makes of its step.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from sdpo.fused.hidden_states import response_projection
from sdpo.lockstep.parity_callback import ParityWarning
from sdpo.settings.config import ConfigError
from sdpo.trainer.checks import check_shared_prompts
from sdpo.update import shared_prefix
from sdpo.update.actor_update import response_logits
from sdpo.update.shared_prefix import MODEL_INPUTS, distinct_prompts, model_inputs
from tests.helpers.spread import slow_are
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import audited, rows_of

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

WIDTH, PROMPT = 4, 9
ROUNDING = 1e-5


def batch(prompts: str = "aabab", padding: tuple[int, ...] = (2, 2, 5, 2, 5)) -> dict[str, Any]:
    """Rows of random tokens; equal letters have equal prompts, padded on the left."""
    random = torch.Generator().manual_seed(0)
    texts = {name: torch.randint(1, 400, (PROMPT,), generator=random) for name in "abcde"}
    responses = torch.randint(1, 400, (len(prompts), WIDTH), generator=random)
    ids = torch.cat([torch.stack([texts[name] for name in prompts]), responses], dim=1)
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    mask[1, -1] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = dict(zip(MODEL_INPUTS, (ids, mask, positions), strict=True))
    return inputs | {"responses": responses}


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.square().mean().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found)


def differences(**changes: Any) -> tuple[float, float]:
    """Distance of logits and gradients to those of whole rows."""
    model, rows = tiny_trainer.model(num_hidden_layers=2, initializer_range=0.2, **changes), batch()
    seen = rows["attention_mask"][:, -WIDTH:].unsqueeze(-1)
    whole = response_logits(model, rows) * seen
    shared = response_logits(model, rows, share_prompts=True) * seen
    expected = gradients(model, whole)
    gap = (gradients(model, shared) - expected).norm() / expected.norm()
    return float((shared - whole).detach().norm() / whole.detach().norm()), float(gap)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_gradients_are_those_of_whole_rows(attention):
    assert max(differences(attn_implementation=attention)) < ROUNDING


def test_a_sliding_window_shorter_than_the_prompt_is_kept():
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert max(differences(**window)) < ROUNDING


def test_hidden_states_are_those_of_whole_rows():
    model, rows = tiny_trainer.model(), batch()
    whole, shared = (
        response_projection(model, rows, share_prompts=share).hidden.detach()
        for share in (False, True)
    )
    seen = rows["attention_mask"][:, -WIDTH:].unsqueeze(-1)
    assert float(((shared - whole) * seen).norm()) < ROUNDING * float(whole.norm())


def test_each_distinct_prompt_is_computed_once():
    passes: list[tuple[int, ...]] = []
    model = tiny_trainer.model()
    model.register_forward_pre_hook(
        lambda module, inputs, named: passes.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    response_logits(model, batch(), share_prompts=True)
    # Two prompts without their last token and the padding of both, then the five rows.
    assert passes == [(2, PROMPT - 1 - 2), (5, 1 + WIDTH)]


def test_rows_without_a_common_prompt_are_computed_as_ever():
    rows = batch("abcde")
    named = model_inputs(tiny_trainer.model(), rows, share_prompts=True)
    assert named == {**{name: rows[name] for name in MODEL_INPUTS}, "use_cache": False}


def test_prompts_differ_by_tokens_or_by_padding():
    rows = batch("aaabb", padding=(0, 0, 1, 1, 2))
    rows["input_ids"][4, 1] = 7  # under the mask
    rows["input_ids"][3, 1] = 8  # not
    first, row = distinct_prompts(rows, PROMPT - 1)
    assert len(first) == 4
    assert row[0] == row[1]
    assert [int(first[number]) for number in row] == [0, 0, 2, 3, 4]


def other_rows(real: Any) -> Any:
    def planted(whole: Any, shared: int) -> Any:
        first, rows = real(whole, shared)
        return first, rows.flip(0)

    return planted


def one_token_short(real: Any) -> Any:
    def planted(model: Any, whole: Any, shared: int, first: Any, rows: Any) -> Any:
        short = {name: tensor.clone() for name, tensor in whole.items()}
        short["attention_mask"][:, shared - 1] = 0
        return real(model, short, shared, first, rows)

    return planted


def positions_from_zero(real: Any) -> Any:
    def planted(*arguments: Any) -> Any:
        found = real(*arguments)
        return {**found, "position_ids": found["position_ids"] * 0}

    return planted


def without_gradient(real: Any) -> Any:
    def planted(*arguments: Any) -> Any:
        found = real(*arguments)
        for layer in found["cache"].layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return found

    return planted


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("distinct_prompts", other_rows),
        ("continuation", one_token_short),
        ("continuation", positions_from_zero),
        ("continuation", without_gradient),
    ],
)
def test_planted_faults_are_seen(name, fault, monkeypatch):
    monkeypatch.setattr(shared_prefix, name, fault(getattr(shared_prefix, name)))
    assert max(differences()) > 0.1


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "teacher": ({"share_prompts": "teacher"}, {"gradient_checkpointing": True}),
    "both": ({}, {}),
    "fused": ({"loss_implementation": "fused"}, {}),
    "trust region": ({"teacher_mode": "trust_region"}, {}),
    "trust region, fused": ({"teacher_mode": "trust_region", "loss_implementation": "fused"}, {}),
    "off-policy": ({"is_clip": 1.1}, {"num_iterations": 2, "max_steps": 4}),
    "hybrid": ({"hybrid_lambda": 0.3}, {}),
}


@pytest.mark.parametrize("name", slow_are(("trust region", "fused"), RUNS))
def test_trainings_agree_and_take_fewer_tokens(name, tmp_path):
    settings, args = RUNS[name]
    sharing = {"share_prompts": "both", **settings}
    whole = tiny_trainer.trained(tmp_path / "a", {**settings, "share_prompts": "none"}, args)
    shared = tiny_trainer.trained(tmp_path / "b", sharing, args)
    assert tiny_trainer.near(shared, whole)
    # The student's passes are counted, its copy's are not.
    assert (sum(shared.tokens) < sum(whole.tokens)) == (sharing["share_prompts"] == "both")


@pytest.mark.parametrize("average", ["factors", "effective"])
def test_adapters_train_the_same(average, tmp_path):
    found = []
    for share in ("none", "both"):
        settings = {
            "teacher_mode": "lora_ema",
            "lora_average": average,
            "teacher_update_rate": 0.5,
            "share_prompts": share,
        }
        torch.manual_seed(0)
        peft = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        found.append(
            tiny_trainer.trained(tmp_path / share, settings, {"max_steps": 3}, peft_config=peft)
        )
    whole, shared = found
    assert tiny_trainer.near(shared, whole)
    assert sum(shared.tokens) < sum(whole.tokens)


@pytest.mark.parametrize("implementation", ["logits", "fused"])
def test_the_audit_finds_updates_within_their_budgets(implementation, tmp_path):
    trainer = audited(
        tmp_path,
        model=tiny_trainer.model(initializer_range=0.2),
        share_prompts="both",
        loss_implementation=implementation,
    )
    trainer.train()
    assert [row["first_moved"] for row in rows_of(trainer)] == ["", ""]


def test_the_audit_names_the_stage_of_a_wrong_prompt(tmp_path, monkeypatch):
    trainer = audited(tmp_path, share_prompts="both")
    real = shared_prefix.continuation
    monkeypatch.setattr(shared_prefix, "continuation", one_token_short(real))
    with pytest.warns(ParityWarning, match="log_probs moved first"):
        trainer.train()
    assert rows_of(trainer)[0]["first_moved"] == "log_probs"


def test_dropout_in_shared_prompts_is_not_audited(tmp_path):
    model = tiny_trainer.model(attention_dropout=0.2)
    with pytest.raises(ConfigError, match="dropout with share_prompts='both'"):
        audited(tmp_path, model=model, share_prompts="both")


@pytest.mark.parametrize("by_model", [False, True])
def test_gradient_checkpointing_cannot_keep_the_students_prompts(by_model, tmp_path):
    model = tiny_trainer.model()
    if by_model:
        model.gradient_checkpointing_enable()
    args = {"gradient_checkpointing": not by_model}
    with pytest.raises(ConfigError, match="use share_prompts='teacher'"):
        tiny_trainer.trained(tmp_path, {"share_prompts": "both"}, args, model=model)


SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_trainer.model(num_hidden_layers=3),
        lambda: GPT2LMHeadModel(GPT2Config(**SMALL, n_head=2, bos_token_id=0, eos_token_id=0)),
        lambda: get_peft_model(tiny_trainer.model(), LoraConfig(r=2, target_modules=["q_proj"])),
    ],
    ids=["Qwen2", "GPT2", "PEFT"],
)
def test_models_with_keys_and_values_are_accepted(model, dtype):
    check_shared_prompts(model().to(dtype))


def test_a_model_without_keys_and_values_is_refused():
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4))
    with pytest.raises(ConfigError, match="use share_prompts='none'"):
        check_shared_prompts(model)


def test_a_model_that_drops_its_keys_and_values_is_refused():
    model: Any = tiny_trainer.model()
    real = model.forward

    def forgetful(cache=None, **named):
        return real(cache=cache if cache is None else None, **named)

    model.forward = forgetful
    with pytest.raises(ConfigError, match="answers otherwise"):
        check_shared_prompts(model)
