"""Causal probes: on a sound training loop nothing deviates, on faulty ones the right probe does."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spread import one_in

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import audit_my_trainer as mine

from sdpo.parity.adapters.base import CandidateError, NotCoveredError
from sdpo.parity.adapters.trainers.base import TrainerAdapter
from sdpo.parity.adapters.trainers.own import OwnTrainer
from sdpo.parity.compare import DIVERGENT, ERROR, MATCH
from sdpo.parity.whole_step.probe_table import PROBES
from sdpo.parity.whole_step.probes import run_probe

BY_ID = {probe.id: probe for probe in PROBES}


def adapter(trainer):
    class Adapter(mine.MyAdapter):
        pass

    Adapter.trainer = trainer
    return Adapter()


class NoTemperature(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        tau = self.scenario.temperature
        return super().loss(student * tau, teacher * tau, batch, old)


class PlainPrompt(mine.MyTrainer):
    def teacher_batch(self, generation, batch, tokenizer):
        built = super().teacher_batch(generation, batch, tokenizer)
        fixed = torch.full_like(built.tokens.input_ids, 5)
        return built._replace(tokens=built.tokens._replace(input_ids=fixed))


class LiveTeacher(mine.MyTrainer):
    def logits(self, module, batch, prefix=""):
        return super().logits(self.model, batch, prefix)


class FrozenTeacher(mine.MyTrainer):
    def update_teacher(self):
        pass


class RewardWeighted(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        rewards = sum(rollout.reward for rollout in self.scenario.generations[0].rollouts)
        return values | {"aggregate": values["aggregate"] * rewards}


class UncappedRatio(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        real = self.scenario
        self.scenario = replace(real, self_distillation={**real.self_distillation, "is_clip": 50.0})
        try:
            return super().loss(student, teacher, batch, old)
        finally:
            self.scenario = real


FAULTS = {
    "C01": NoTemperature,
    "C03": PlainPrompt,
    "C05": FrozenTeacher,
    "C06": LiveTeacher,
    "C10": UncappedRatio,
    "C11": RewardWeighted,
}


@pytest.mark.parametrize("probe", FAULTS)
def test_a_probe_finds_the_fault_that_it_is_for(probe):
    result = run_probe(adapter(FAULTS[probe]), BY_ID[probe], {})
    assert [(c.stage, c.status) for c in result.comparisons] == [(BY_ID[probe].stage, DIVERGENT)]


NOT_BY_THE_EXAMPLE = {"C14", "C15", "C16", "C17", "C27", "C34", "C35"}
"""It has no hooks for a nudge, and no sampled tokens."""


@pytest.mark.parametrize("part", one_in(2, range(2)))
def test_a_sound_loop_deviates_in_no_probe(part):
    runs = {}
    probes = PROBES[part::2]
    results = [run_probe(adapter(mine.MyTrainer), probe, runs) for probe in probes]
    assert {c.status for result in results for c in result.comparisons} == {MATCH}
    untested = {result.id for result in results if not result.comparisons}
    assert untested == NOT_BY_THE_EXAMPLE & {probe.id for probe in probes}


class WrongWay(OwnTrainer):
    """The ratio is turned round, but all that must move moves."""

    def build(self, parts):
        import sdpo.loss
        from sdpo.importance import importance  # not the one turned by an earlier training

        trainer, settings = super().build(parts)

        def turned(per_token_loss, *, student_log_probs, old_log_probs, **others):
            both = {"student_log_probs": old_log_probs, "old_log_probs": student_log_probs}
            return importance(per_token_loss, **both, **others)

        sdpo.loss.importance = turned
        return trainer, settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status"), [(OwnTrainer, MATCH), (WrongWay, DIVERGENT)], ids=["sound", "wrong way"]
)
def test_a_loss_that_moves_the_wrong_way_is_found(kind, status, monkeypatch):
    import sdpo.loss

    monkeypatch.setattr(sdpo.loss, "importance", sdpo.loss.importance)
    (comparison,) = run_probe(kind(), BY_ID["C16"], {}).comparisons
    assert comparison.status == status
    if status == DIVERGENT:
        assert "where the reference's moves by" in comparison.note


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["C14", "C15", "C17", "C34", "C35"])
def test_what_is_nudged_alone_moves_what_it_must(probe):
    (comparison,) = run_probe(OwnTrainer(), BY_ID[probe], {}).comparisons
    assert comparison.status == MATCH, comparison.note


def test_what_a_trainer_cannot_express_is_not_covered_and_a_failure_is_an_error():
    class Failing(TrainerAdapter):
        name = "failing"
        error: Exception

        def run(self, scenario, folder):
            raise self.error

    failing = Failing()
    failing.error = NotCoveredError("no such setting")
    assert "no such setting" in run_probe(failing, PROBES[0], {}).note
    failing.error = CandidateError("config", "it broke")
    assert run_probe(failing, PROBES[0], {}).comparisons[0].status == ERROR
