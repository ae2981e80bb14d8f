"""Causal probes: on a sound training loop nothing deviates, on faulty ones the right probe does."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import audit_my_trainer as mine
import pytest
import torch

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
from sdpo.parity.trainers.probes.catalogue import PROBES
from sdpo.parity.trainers.probes.run_probes import run_probe
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.recording.fingerprints import PARTS, fingerprint, fingerprints_of_parts
from sdpo.parity.trainers.recording.hf_trainer import make_parts
from sdpo.parity.trainers.recording.nudges import Nudge
from sdpo.parity.trainers.scenarios.catalogue import BY_ID
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)
from tests.helpers.spread import one_in

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

PROBE = {probe.id: probe for probe in PROBES}


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
    result = run_probe(adapter(FAULTS[probe]), PROBE[probe], {})
    assert [(c.stage, c.status) for c in result.comparisons] == [
        (PROBE[probe].stage, Status.DIVERGENT)
    ]


NOT_BY_THE_EXAMPLE = {"C14", "C15", "C16", "C17", "C27", "C34", "C35"}
"""It has no hooks for a nudge, and no sampled tokens."""


@pytest.mark.parametrize("part", one_in(2, range(2)))
def test_a_sound_loop_deviates_in_no_probe(part):
    runs = {}
    probes = PROBES[part::2]
    results = [run_probe(adapter(mine.MyTrainer), probe, runs) for probe in probes]
    assert {c.status for result in results for c in result.comparisons} == {Status.MATCH}
    untested = {result.id for result in results if not result.comparisons}
    assert untested == NOT_BY_THE_EXAMPLE & {probe.id for probe in probes}


class WrongWay(OwnTrainer):
    """The ratio is turned round, but all that must move moves."""

    def build(self, parts):
        import sdpo.loss.self_distillation
        from sdpo.loss.importance import importance  # not the one turned by an earlier training

        trainer, settings = super().build(parts)

        def turned(per_token_loss, *, student_log_probs, old_log_probs, **others):
            both = {"student_log_probs": old_log_probs, "old_log_probs": student_log_probs}
            return importance(per_token_loss, **both, **others)

        sdpo.loss.self_distillation.importance = turned
        return trainer, settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status"),
    [(OwnTrainer, Status.MATCH), (WrongWay, Status.DIVERGENT)],
    ids=["sound", "wrong way"],
)
def test_a_loss_that_moves_the_wrong_way_is_found(kind, status, monkeypatch):
    import sdpo.loss.self_distillation

    monkeypatch.setattr(
        sdpo.loss.self_distillation, "importance", sdpo.loss.self_distillation.importance
    )
    (comparison,) = run_probe(kind(), PROBE["C16"], {}).comparisons
    assert comparison.status == status
    if status == Status.DIVERGENT:
        assert "where the reference's moves by" in comparison.note


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["C14", "C15", "C17", "C34", "C35"])
def test_what_is_nudged_alone_moves_what_it_must(probe):
    (comparison,) = run_probe(OwnTrainer(), PROBE[probe], {}).comparisons
    assert comparison.status == Status.MATCH, comparison.note


# --- every probe checks something ------------------------------------------------------------


def a_run(number: float, handed: float | None = None) -> TrainerRun:
    """A record of two updates in which every value that a probe names is one number."""
    values = {"aggregate": torch.tensor(number)}
    logits = {side: torch.full((1, 1, 2), number) for side in ("student", "teacher")}
    micro = MicroBatch([0], {"response_mask": torch.ones(1, 1)}, logits, values)
    tensors = {"w": torch.tensor([number])}
    step = OptimizerStep([micro], tensors, parameters=tensors)
    prompt = {"teacher_tokens": [{"input_ids": [int(number)]}], "distillation_mask": [number]}
    run = TrainerRun(updates=[Update(prompt, [step], tensors) for _ in range(2)])
    given = dict.fromkeys(PARTS, str(number if handed is None else handed))
    return replace(run, given=given)


class Replayed(TrainerAdapter):
    """Gives one record for the base of a probe, and another for what it is changed to."""

    name = "replayed"

    def __init__(self, base: Scenario, before: TrainerRun, after: TrainerRun):
        self.base, self.before, self.after = base, before, after

    def run(self, scenario, folder):
        if scenario == self.base:
            return self.before
        return replace(self.after, settings=dict(scenario.self_distillation))


def probed(probe, before: TrainerRun, after: TrainerRun):
    undirected = replace(probe, directed=False)
    return run_probe(Replayed(BY_ID[probe.base], before, after), undirected, {})


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_a_probe_fails_where_nothing_moves_or_nothing_stays(probe):
    before = a_run(1.0)
    deaf, restless = a_run(1.0, handed=2.0), a_run(2.0)
    (nothing_moves,) = probed(probe, before, deaf).comparisons
    assert nothing_moves.status == (Status.DIVERGENT if probe.moves else Status.MATCH)
    (everything_moves,) = probed(probe, before, restless).comparisons
    assert everything_moves.status == (Status.DIVERGENT if probe.stays else Status.MATCH)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_a_probe_that_changes_nothing_is_an_error(probe):
    (comparison,) = probed(probe, a_run(1.0), a_run(1.0)).comparisons
    assert comparison.status == Status.ERROR
    assert "hands the trainer nothing else" in comparison.note
    idle = replace(probe, change=lambda scenario: scenario)
    (comparison,) = run_probe(
        Replayed(BY_ID[probe.base], a_run(1.0), a_run(2.0)), idle, {}
    ).comparisons
    assert comparison.status == Status.ERROR
    assert "the script is not changed" in comparison.note


def test_what_a_probe_cannot_see_is_not_covered():
    blind = a_run(2.0)
    for update in blind.updates:
        update.prompt = {}
    result = probed(PROBE["C23"], a_run(1.0), blind)
    assert not result.comparisons
    assert "shows none of teacher_tokens, distillation_mask" in result.note

    class Silent(Replayed):
        def run(self, scenario, folder):
            return replace(super().run(scenario, folder), settings={})

    probe = PROBE["C13"]
    result = run_probe(Silent(BY_ID[probe.base], a_run(1.0), a_run(2.0)), probe, {})
    assert not result.comparisons
    assert "does not show max_reprompt_len among the settings in effect" in result.note


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_each_probe_changes_what_a_trainer_is_handed(probe, tmp_path):
    base = BY_ID[probe.base]
    changed = probe.change(base)
    if changed.nudge:
        pytest.skip("moved after the trainer is built; the recorder notes whether it was")
    handed = []
    for name, scenario in (("base", base), ("changed", changed)):
        parts, script = make_parts(OwnTrainer(), scenario, tmp_path / name)
        rows = [[script.completions, rollout_values(scenario)]]
        handed.append(fingerprints_of_parts(parts) | {"script": fingerprint(rows)})
    assert handed[0] != handed[1]


def rollout_values(scenario: Scenario) -> list:
    return [[r.reward, r.feedback] for g in scenario.generations for r in g.rollouts]


def test_a_nudge_that_moves_nothing_leaves_no_trace():
    trainer: Any = SimpleNamespace()
    nudge = Nudge(OwnTrainer(), trainer, replace(BY_ID["T01"], nudge="student"))
    nudge.note("a", "a")
    assert nudge.fingerprint == {}
    nudge.note("a", "b")
    assert nudge.fingerprint == {"nudge": "b"}


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
    assert run_probe(failing, PROBES[0], {}).comparisons[0].status == Status.ERROR
