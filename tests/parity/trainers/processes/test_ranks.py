"""Scenarios of two processes: our trainer passes, and faults that only show there are found."""

import pytest

from sdpo.parity.cases.stages import first_in_order
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
from sdpo.parity.trainers.judge.run_scenarios import run_trainer_family
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from tests.helpers.spread import slow_are

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

BY_ID = {scenario.id: scenario for scenario in SCENARIOS}


class OwnRowsOnly(OwnTrainer):
    """Each process looks for demonstrations among its own rows."""

    def build(self, parts):
        import sdpo.trainer.sdpo_trainer

        if parts.scenario.processes > 1:
            sdpo.trainer.sdpo_trainer.gather_object = lambda rows: (
                list(rows) * parts.scenario.processes
            )
        return super().build(parts)


class GradientsApart(OwnTrainer):
    """Gradients are not averaged over processes."""

    def build(self, parts):
        import contextlib

        trainer, settings = super().build(parts)
        inner = trainer.training_step

        def alone(model, *args, **kwargs):
            apart = getattr(model, "no_sync", contextlib.nullcontext)
            with apart():
                return inner(model, *args, **kwargs)

        trainer.training_step = alone
        return trainer, settings


class RaisesInTwo(OwnTrainer):
    """Fails as soon as there are several processes."""

    def build(self, parts):
        if parts.scenario.processes > 1:
            raise RuntimeError("one process only")
        return super().build(parts)


FAULTS = {
    "sound": (OwnTrainer, None, ""),
    "own rows": (OwnRowsOnly, "demonstration", "value"),
    "gradients apart": (GradientsApart, "accumulate", "value"),
    "raises": (RaisesInTwo, "accumulate", "failure"),
}


def first_failure(kind, scenarios):
    with TrainingPool(kind(), scenarios, twice=False) as apart:
        findings = run_trainer_family(apart, lambda *_: None, scenarios)
    wrong = [c for c in findings.results[-1].comparisons if c.status in FAILING and not c.inherits]
    stage = first_in_order({c.stage for c in wrong})
    return stage, {c.effect for c in wrong if c.stage == stage}, findings.results[-1].status


@pytest.mark.parametrize("fault", slow_are(FAULTS.keys() - {"sound", "own rows"}, FAULTS))
def test_a_fault_of_several_processes_is_found(fault):
    kind, stage, effect = FAULTS[fault]
    found, effects, status = first_failure(kind, [BY_ID["T01"], BY_ID["T31"]])
    assert found == stage
    assert effects == ({effect} if effect else set())
    assert status == (Status.DIVERGENT if stage else "PASS")


def test_a_trainer_that_never_trains_is_an_error_and_no_deviation():
    stage, _, status = first_failure(RaisesInTwo, [BY_ID["T31"]])
    assert (stage, status) == ("config", Status.ERROR)
