"""Entropy bonus and KL anchor in the audit of a trainer: right ones pass, planted faults show."""

from typing import Any

import pytest
import torch

from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
from sdpo.parity.trainers.judge.run_scenarios import follow
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.scenarios.catalogue import BY_ID
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update import policy_terms

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

BONUS, ANCHOR = "T45", "T46"


def divergent(scenario: str, folder: Any) -> dict[str, tuple[int, int, int]]:
    """The divergent stages, and the place where each departs first."""
    result, _ = follow(OwnTrainer(), BY_ID[scenario], folder, trains=True)
    assert result.comparisons
    found: dict[str, Any] = {}
    for comparison in result.comparisons:
        if comparison.status == Status.DIVERGENT:
            found.setdefault(comparison.stage, comparison.place)
    return found


@pytest.mark.parametrize("scenario", [BONUS, ANCHOR])
def test_our_trainer_passes(scenario, tmp_path):
    assert divergent(scenario, tmp_path) == {}


def test_a_bonus_of_the_wrong_sign_departs_at_the_gradient(tmp_path, monkeypatch):
    real = policy_terms.PolicyTerms.added_to
    monkeypatch.setattr(
        policy_terms.PolicyTerms,
        "added_to",
        lambda self, loss, config: 2 * loss - real(self, loss, config),
    )
    assert divergent(BONUS, tmp_path) == {"gradient": (0, 0, 0)}


def test_a_bonus_of_the_rows_with_signal_alone_departs_at_the_gradient(tmp_path, monkeypatch):
    real = policy_terms.aggregate

    def wrong(values, mask, *, loss_agg_mode):
        return real(values[:4], mask[:4], loss_agg_mode=loss_agg_mode)

    monkeypatch.setattr(policy_terms, "aggregate", wrong)
    assert divergent(BONUS, tmp_path) == {"gradient": (0, 0, 0)}


def test_an_anchor_that_follows_the_student_departs_once_it_has_moved(tmp_path, monkeypatch):
    real = SDPOTrainer._generate_and_score_completions

    def wrong(self, inputs):
        live = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in self.reference_policy.named_parameters().items():
                weight.copy_(live[name])
        return real(self, inputs)

    monkeypatch.setattr(SDPOTrainer, "_generate_and_score_completions", wrong)
    assert divergent(ANCHOR, tmp_path)["gradient"] == (1, 0, 0)


def test_a_trainer_that_does_not_claim_the_terms_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTrainer, "policy_terms", False)
    scenarios = [BY_ID["T01"], BY_ID[BONUS]]
    pool = TrainingPool(OwnTrainer(), scenarios, twice=False)
    assert [scenario.policy_terms for scenario in pool.scenarios] == [{}]
    result, _ = follow(pool, BY_ID[BONUS], tmp_path, trains=True)
    assert result.status == Status.NOT_COVERED
    assert "policy_terms" in result.note
