"""What `SDPOTrainer` relies on inside TRL and transformers; any change there fails here by name."""

import inspect
from typing import Any

import pytest
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

OVERRIDDEN = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
}
"""Parameters, in order, of every method of the parent that is overridden."""

LISTENED_TO = {"_generate": ["self", "prompts"]}
"""The same for methods that `sdpo.lockstep.rollout_source` listens to, beside those above."""
RETURNED = "prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields"

CALLED_BY = {
    "_generate": "_generate_and_score_completions",
    "_calculate_rewards": "_generate_and_score_completions",
    "_generate_and_score_completions": "_prepare_inputs",
    "_prepare_inputs": "training_step",
    "compute_loss": "training_step",
    "_compute_loss": "compute_loss",
    "_get_grad_norm": "_run_epoch",
    "_save_checkpoint": "_maybe_log_save_evaluate",
    "_load_optimizer_and_scheduler": "_prepare_for_training",
    "training_step": "_run_epoch",
    "get_batch_samples": "_run_epoch",
}
ATTRIBUTES = (
    "_buffered_inputs",
    "_metrics",
    "_pending_extra_logs",
    "_step",
    "chat_template",
    "environment_factories",
    "eos_token_ids",
    "pad_to_multiple_of",
    "chat_template_kwargs",
    "max_completion_length",
    "num_generations",
    "num_generations_eval",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "tools",
)


def parameters(trainer: Any, name: str) -> list[str]:
    method = getattr(trainer, name, None)
    if method is None:
        return []
    return list(inspect.signature(inspect.unwrap(method)).parameters)


def changed(trainer: Any) -> list[str]:
    """Overridden methods whose parameters in the parent are not as expected."""
    return [name for name, expected in OVERRIDDEN.items() if parameters(trainer, name) != expected]


def test_overridden_methods_have_the_known_parameters():
    assert changed(GRPOTrainer) == []


def test_methods_that_the_audit_listens_to_are_as_known():
    for name, expected in LISTENED_TO.items():
        assert parameters(GRPOTrainer, name) == expected
    source = inspect.getsource(inspect.unwrap(GRPOTrainer._generate))
    assert f"return {RETURNED}" in source
    scored = inspect.getsource(inspect.unwrap(GRPOTrainer._calculate_rewards))
    for name in ("prompts=prompts", "completion_ids=completion_ids_list", '"log_extra"'):
        assert name in scored


def test_a_changed_or_removed_method_is_noticed():
    class Changed(GRPOTrainer):
        _get_grad_norm = None  # pyright: ignore[reportAssignmentType]

        def _compute_loss(self, model, inputs, more):  # pyright: ignore[reportIncompatibleMethodOverride]
            return None

    assert changed(Changed) == ["_compute_loss", "_get_grad_norm"]


def test_the_list_of_overridden_methods_is_complete():
    own = {name for name, value in vars(SDPOTrainer).items() if inspect.isfunction(value)}
    assert {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"} == set(OVERRIDDEN)


@pytest.mark.parametrize("name", CALLED_BY)
def test_an_overridden_method_is_still_called_from_where_it_was(name):
    callers = [vars(kind).get(CALLED_BY[name]) for kind in GRPOTrainer.__mro__]
    sources = [inspect.getsource(inspect.unwrap(caller)) for caller in callers if caller]
    assert any(f"self.{name}(" in source for source in sources)


def test_the_attributes_in_use_exist(tmp_path):
    trainer = tiny_trainer.trainer(tmp_path, kind=GRPOTrainer)
    assert [name for name in ATTRIBUTES if not hasattr(trainer, name)] == []
    assert trainer.loss_is_scaled_for_ga is True
