"""Faults planted in a training loop: the audit of trainers names the stage, and the fault.

The loop is the one of `examples/audit_my_trainer.py`, which without a fault passes.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdpo.parity.compare.statuses import FAILING, Status
from tests.helpers.spread import slow_are

pytest.importorskip("transformers", reason="the audited models are transformers'")

import audit_my_trainer as mine

from sdpo.parity.cases.stages import first_in_order
from sdpo.parity.compare.first_in_time import first_observed
from sdpo.parity.faults import catalogue
from sdpo.parity.trainers.judge.run_scenarios import run_trainer_family
from sdpo.parity.trainers.probes.catalogue import PROBES
from sdpo.parity.trainers.probes.run_probes import run_probe
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.parity.trainers.scenarios.fragments import SETTINGS

BY_ID = {scenario.id: scenario for scenario in SCENARIOS}


def changed(scenario, **settings):
    return replace(scenario, self_distillation={**scenario.self_distillation, **settings})


class Trainer(mine.MyTrainer):
    """The loop without a fault; faults change one method."""


def other_settings(**settings):
    class Faulty(Trainer):
        def teacher_batch(self, generation, batch, tokenizer):
            real = self.scenario
            self.scenario = changed(real, **settings)
            try:
                return super().teacher_batch(generation, batch, tokenizer)
            finally:
                self.scenario = real

    return Faulty


class SystemDropped(Trainer):
    def teacher_batch(self, generation, batch, tokenizer):
        last = tuple(conversation[-1:] for conversation in generation.conversations)
        return super().teacher_batch(replace(generation, conversations=last), batch, tokenizer)


class TeacherDropout(Trainer):
    def logits(self, module, batch, prefix=""):
        logits = super().logits(module, batch, prefix)
        if module is self.teacher:
            torch.manual_seed(0)
            logits = nn.functional.dropout(logits, 0.1)
        return logits


class LiveTeacher(Trainer):
    def logits(self, module, batch, prefix=""):
        return super().logits(self.model, batch, prefix)


class TemperatureOfStudentOnly(Trainer):
    def loss(self, student, teacher, batch, old):
        return super().loss(student, teacher * self.scenario.temperature, batch, old)


class OldOfOtherTemperature(Trainer):
    def old_log_probs(self, batch):
        real = self.scenario
        self.scenario = replace(real, temperature=1.0)
        try:
            return super().old_log_probs(batch)
        finally:
            self.scenario = real


class AllRowsCount(Trainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        mask = batch["response_mask"]
        share = (mask * batch["self_distillation_mask"][:, None]).sum() / mask.sum()
        return values | {"aggregate": values["aggregate"] * share}


class LossOnlyLooksRight(Trainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        loss = values["aggregate"]
        return values | {"aggregate": loss.detach() + 0.5 * (loss - loss.detach())}


class StepsOnNaN(Trainer):
    def clip(self):
        super().clip()
        return 1.0


class NoClipping(Trainer):
    def clip(self):
        return 1.0


def rates(rate):
    class Faulty(Trainer):
        def update_teacher(self):
            with torch.no_grad():
                for old, new in zip(
                    self.teacher.parameters(), self.model.parameters(), strict=True
                ):
                    old.lerp_(new, rate(self.scenario))

    return Faulty


def scaled_by(factor):
    class Faulty(Trainer):
        def __init__(self, model, scenario):
            super().__init__(model, scenario)
            self.micro_batch_weight *= factor(scenario.accumulation)

    return Faulty


def averages_early(per_micro_batch):
    class Adapter(mine.MyAdapter):
        def micro_batch(self, trainer, rows, batch, old):
            found = super().micro_batch(trainer, rows, batch, old)
            if per_micro_batch:
                real_update(trainer)
            return found

        def step(self, trainer, batch, parts, old):
            found = super().step(trainer, batch, parts, old)
            if not per_micro_batch:
                real_update(trainer)
            return found

    class Late(Trainer):
        def update_teacher(self):
            pass

    real_update = mine.MyTrainer.update_teacher
    Adapter.trainer = Late
    return Adapter


class AverageFromZero(Trainer):
    def update_teacher(self):
        with torch.no_grad():
            for old in self.teacher.parameters():
                old.zero_()
        super().update_teacher()


def of(trainer):
    class Adapter(mine.MyAdapter):
        pass

    Adapter.trainer = trainer
    return Adapter


FAULTS = {
    "none": (of(Trainer), "T03", None, None),
    "M11": (of(scaled_by(lambda n: n)), "T03", "accumulate", "M11"),
    "M12": (of(scaled_by(lambda n: 1 / n)), "T03", "accumulate", "M12"),
    "M24": (of(rates(lambda s: 0.95)), "T01", "teacher_update", "M24"),
    "M25": (averages_early(True), "T05", "log_probs", "M25"),
    "M109": (averages_early(False), "T05", "log_probs", "M109"),
    "M110": (of(rates(lambda s: 0.0)), "T01", "teacher_update", "M110"),
    "M111": (of(rates(lambda s: 1.0)), "T01", "teacher_update", "M111"),
    "M112": (of(AverageFromZero), "T01", "teacher_update", "M112"),
    "M116": (of(LiveTeacher), "T07", "log_probs", "M116"),
    "M26": (of(TeacherDropout), "T01", "log_probs", None),
    "M27": (of(SystemDropped), "T08", "teacher_prompt", "M27"),
    "M28": (
        of(other_settings(success_reward_threshold=1.0)),
        "T08",
        "demonstration",
        "M28",
    ),
    "M117": (
        of(other_settings(success_reward_threshold=0.7000001)),
        "T27",
        "demonstration",
        "M117",
    ),
    "M29": (
        of(other_settings(dont_reprompt_on_self_success=False)),
        "T01",
        "demonstration",
        "M29",
    ),
    "M30": (of(other_settings(reprompt_truncation="left")), "T20", "teacher_tokens", "M30"),
    "M106": (
        of(other_settings(remove_thinking_from_demonstration=False)),
        "T09",
        "demonstration",
        "M106",
    ),
    "M107": (
        of(other_settings(environment_feedback_only_without_solution=False)),
        "T08",
        "teacher_prompt",
        "M107",
    ),
    "M108": (
        of(other_settings(include_environment_feedback=False)),
        "T08",
        "feedback",
        "M108",
    ),
    "temperature of the student only": (
        of(TemperatureOfStudentOnly),
        "T02",
        "log_probs",
        None,
    ),
    "old log-probs of another temperature": (
        of(OldOfOtherTemperature),
        "T06",
        "log_probs",
        None,
    ),
    "masked rows in the denominator": (of(AllRowsCount), "T10", "aggregate", None),
    "half a gradient": (of(LossOnlyLooksRight), "T01", "gradient", None),
    "M113": (of(StepsOnNaN), "T19", "optimizer", "M113"),
    "M114": (of(NoClipping), "T23", "optimizer", "M114"),
}


AS_OTHERS = ("M106", "M107", "M109", "M110", "M111", "M117")
"""Planted by the means of another one, and found at its stage."""


@pytest.mark.filterwarnings("ignore::sdpo.prompt.demonstrations.RepromptWarning")
@pytest.mark.parametrize("fault", slow_are(AS_OTHERS, FAULTS))
def test_a_planted_fault_is_found_at_its_stage_and_named(fault):
    adapter, scenario, stage, name = FAULTS[fault]
    findings = run_trainer_family(adapter(), lambda *_: None, [BY_ID[scenario]])
    wrong = {
        c.stage
        for result in findings.results
        for c in result.comparisons
        if c.status in FAILING and not c.inherits
    }
    assert first_observed(findings.results) == stage, wrong
    assert first_in_order(wrong) == stage, wrong
    assert list(findings.effects[0].introduced)[:1] == ([stage] if stage else [])
    if name is not None:
        named = {label.split()[0]: cases for label, cases in findings.explained.items()}
        assert named[name] == {scenario}
        assert name in catalogue.BY_ID


class MovedBeforeTheStep(Trainer):
    """The teacher is averaged with the weights that the step is about to leave."""

    def clip(self):
        norm = super().clip()
        super().update_teacher()
        return norm

    def update_teacher(self):
        pass


@pytest.fixture(scope="module")
def moved_before_the_step():
    """Three scenarios, and a probe that is charged to the log-probs."""
    adapter = of(MovedBeforeTheStep)()
    scenarios = [BY_ID[id_] for id_ in ("T01", "T05", "T07")]
    findings = run_trainer_family(adapter, lambda *_: None, scenarios)
    probe = next(probe for probe in PROBES if probe.id == "C06")
    return findings.results, run_probe(adapter, probe, findings.runs)


def test_a_probe_inherits_from_the_scenarios(moved_before_the_step):
    results, probe = moved_before_the_step
    assert [result.first_stage for result in results] == ["teacher_update"] * 3
    assert probe.first_stage == "log_probs"
    assert first_observed([*results, probe]) == "teacher_update"
    assert first_observed([probe]) == "log_probs"


def test_a_teacher_that_is_never_updated_is_named_over_several_updates():
    adapter = of(rates(lambda scenario: 0.0))()
    (result,) = run_trainer_family(adapter, lambda *_: None, [BY_ID["T07"]]).results
    assert first_observed([result]) == "teacher_update"
    places = {c.place for c in result.comparisons if c.status == Status.DIVERGENT}
    assert min(places) == (0, 0, 0)


def test_the_settings_that_the_faults_change_are_not_the_default():
    assert SETTINGS["teacher_update_rate"] not in (0.0, 0.95, 1.0)


@pytest.mark.parametrize(("fault", "times"), [("none", 1), ("M11", 4), ("M12", 1 / 4)])
def test_the_optimised_loss_is_what_the_gradient_followed(fault, times):
    """Four micro-batches, each with the right loss, are summed, or divided twice."""
    adapter, scenario, _, _ = FAULTS[fault]
    (effect,) = run_trainer_family(adapter(), lambda *_: None, [BY_ID[scenario]]).effects
    assert effect.optimised_loss == pytest.approx(times * effect.reference_loss, rel=1e-4)
    assert effect.gradient_ratio == pytest.approx(times, rel=1e-4)
