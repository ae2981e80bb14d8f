"""The reference policy of a KL anchor: the student as training begins, whatever becomes of it."""

import warnings

import pytest
import torch

from sdpo.settings.config import SDPOConfig
from sdpo.trainer.checks import SDPOWarning
from sdpo.trainer.log_probs_before_update import ReferencePolicy
from sdpo.update.actor_update import response_logits
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import lora

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {"position_ids": torch.arange(7).expand(2, 7), "responses": ids[:, -3:]}


@pytest.mark.parametrize("build", [tiny_trainer.model, lora])
@torch.no_grad()
def test_it_answers_as_the_student_did_before_it_moved(build):
    model = build().eval()
    policy, before = ReferencePolicy(model), response_logits(model, batch())
    torch.testing.assert_close(policy.answer(model, batch(), response_logits), before)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(0.1)
    torch.testing.assert_close(policy.answer(model, batch(), response_logits), before)
    assert not torch.allclose(response_logits(model, batch()), before)


def test_its_digest_tells_weights_apart():
    model = tiny_trainer.model()
    first = ReferencePolicy(model).digest()
    assert ReferencePolicy(model).digest() == first
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0].add_(1e-3)
    assert ReferencePolicy(model).digest() != first


def test_the_terms_are_logged_and_start_at_no_distance(tmp_path):
    config = SDPOConfig(distillation_topk=20, entropy_coeff=0.01, use_kl_loss=True)
    trainer = tiny_trainer.trainer(tmp_path, config, args={"max_steps": 3})
    trainer.train()
    logs = [row for row in trainer.state.log_history if "self_distillation/kl_loss" in row]
    distances = [row["self_distillation/kl_loss"] for row in logs]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[-1] > 1e-6
    assert all(row["self_distillation/entropy"] > 0 for row in logs)


def test_an_anchor_keeps_the_policy_nearer(tmp_path):
    gone = []
    for coefficient in (0.001, 1.0):
        config = SDPOConfig(distillation_topk=20, use_kl_loss=True, kl_loss_coef=coefficient)
        args = {"max_steps": 6, "optim": "sgd", "learning_rate": 0.02}
        model = tiny_trainer.model(initializer_range=tiny_trainer.WIDE)
        trainer = tiny_trainer.trainer(tmp_path, config, model=model, args=args)
        trainer.train()
        gone.append(trainer.state.log_history[-2]["self_distillation/kl_loss"])
    assert gone[1] < gone[0]


@pytest.mark.parametrize(("name", "share", "warned"), [("beta", 0.0, 1), ("entropy_coef", 0.3, 0)])
def test_a_term_of_trl_that_nothing_of_its_loss_is_taken_of_is_warned_of(
    name, share, warned, tmp_path
):
    args = tiny_trainer.arguments(tmp_path, entropy_coef=0.01)
    config = SDPOConfig(hybrid_lambda=share)
    if name == "beta":  # TRL would load a reference model from the model's path
        args.entropy_coef, args.beta = 0.0, 0.04
    from sdpo.trainer.checks import effective_config
    from sdpo.update.schedule import Schedule

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        effective_config(config, args, Schedule(1, 1))
    found = [w for w in caught if w.category is SDPOWarning and name in str(w.message)]
    assert len(found) == warned
