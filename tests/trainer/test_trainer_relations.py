"""Relations of trainers, and what they log: sound loops keep them, faults break the right one."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spread import slow_are

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import audit_my_trainer as mine

from sdpo.parity.adapters.trainers.recorder import Recorder
from sdpo.parity.compare import DIVERGENT, MATCH, NOT_COVERED
from sdpo.parity.relations import RELATION_NAMES, RELATIONS, VIOLATED
from sdpo.parity.whole_step import trainer_relations
from sdpo.parity.whole_step.logged import LOSS, METRIC, NORM, compare_logged
from sdpo.parity.whole_step.record import MicroBatch, OptimizerStep, TrainerRun, Update
from sdpo.parity.whole_step.scenario import Generation
from sdpo.parity.whole_step.scenario_parts import SUMS
from sdpo.parity.whole_step.tiny_model import completion_ids
from sdpo.parity.whole_step.trainer_claims import EVEN, PAIRS, all_scripts
from sdpo.parity.whole_step.trainer_relations import First, row_of, teacher_gradient

BY_NAME = {relation.name: relation for relation in RELATIONS}


def adapter(trainer):
    class Adapter(mine.MyAdapter):
        pass

    Adapter.trainer = trainer
    return Adapter()


class Summed(mine.MyTrainer):
    def __init__(self, model, scenario):
        super().__init__(model, scenario)
        self.micro_batch_weight = 1.0


class AllRowsCount(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        share = batch["self_distillation_mask"].mean()
        return values | {"aggregate": values["aggregate"] * share}


class FirstRowWins(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        return values | {"aggregate": values["importance"][0].mean()}


class ClampedLogits(mine.MyTrainer):
    def logits(self, module, batch, prefix=""):
        return super().logits(module, batch, prefix).clamp(max=2.0)


class BySpecialId(mine.MyTrainer):
    def logits(self, module, batch, prefix=""):
        logits = super().logits(module, batch, prefix)
        bias = torch.zeros(logits.shape[-1])
        bias[424] = 1.0
        return logits + bias * (prefix == "teacher_")


class NeverSilent(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        return values | {"aggregate": values["aggregate"] + 0.01 * student.square().mean()}


FAULTS = {
    "gradient accumulation": Summed,
    "masked row": AllRowsCount,
    "row order": FirstRowWins,
    "logit shift": ClampedLogits,
    "vocabulary order": BySpecialId,
    "nothing counts": NeverSilent,
    "equal sides": NeverSilent,
}


@pytest.mark.parametrize("name", slow_are(("nothing counts",), FAULTS))
def test_a_fault_violates_its_relation(name):
    row = row_of(adapter(FAULTS[name]), BY_NAME[name], {})
    assert row["status"] == "VIOLATED", row
    assert row["worst"]["used"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_sound_loop_violates_only_what_the_reference_violates(name):
    row = row_of(adapter(mine.MyTrainer), BY_NAME[name], {})
    assert row["status"] == {"process split": "NOT_COVERED"}.get(name, row["of_reference"]) or (
        row["status"] == "INHERITED" and row["of_reference"] == "VIOLATED"
    )
    assert row["of_reference"] == ("VIOLATED" if name in SPLITS else "HOLDS")


SPLITS = ("micro-batch split", "process split", "gradient accumulation")


def test_even_rows_have_equally_many_tokens():
    lengths = {len(ids) for ids in completion_ids(Generation(SUMS[:2], EVEN))}
    assert len(lengths) == 1


def test_every_pair_is_of_a_relation_and_its_scripts_are_scenarios():
    assert PAIRS.keys() <= set(RELATION_NAMES)
    assert len(all_scripts()) == sum(
        1 + (pair.right is not None) for pairs in PAIRS.values() for pair in pairs
    )


# --- what is logged --------------------------------------------------------------------------


def a_run(**logged):
    micro = MicroBatch([0], values={"aggregate": torch.tensor(0.5)})
    step = OptimizerStep([micro], {"w": torch.tensor([3.0, 4.0])}, logged=logged)
    return TrainerRun(updates=[Update(steps=[step])])


@pytest.mark.parametrize(
    ("logged", "statuses"),
    [
        ({"loss": 0.5, "own": 0.5, "grad_norm": 5.0}, (MATCH, MATCH, MATCH)),
        ({"loss": 0.51, "own": 0.5, "grad_norm": 5.0}, (DIVERGENT, MATCH, MATCH)),
        ({"loss": 0.5, "own": 1.0, "grad_norm": 5.0}, (MATCH, DIVERGENT, MATCH)),
        ({"loss": 0.5, "own": 0.5, "grad_norm": 1.0}, (MATCH, MATCH, DIVERGENT)),
        ({"loss": float("nan"), "own": 0.5, "grad_norm": 5.0}, (DIVERGENT, MATCH, MATCH)),
        ({}, (NOT_COVERED, NOT_COVERED, NOT_COVERED)),
    ],
)
def test_what_is_logged_is_compared_with_what_was_optimised(logged, statuses):
    found = compare_logged({"T01": a_run(**logged)}, {"T01": [0.5]}, ("own",))
    assert tuple(result.status for result in found) == statuses
    assert [result.id for result in found] == [LOSS, METRIC, NORM]


def test_a_metric_is_judged_in_one_process_alone():
    run = a_run(own=9.0)
    run.ranks = [replace(run)]
    (_, metric, _) = compare_logged({"T31": run}, {}, ("own",))
    assert metric.status == NOT_COVERED


def test_a_relation_without_a_budget_says_nothing(monkeypatch):
    """A trainer that sums its micro-batches violates it, if rounding is not of that size."""
    pair, first = PAIRS["micro-batch split"][0], First(1.0, {"w": torch.ones(2)})
    monkeypatch.setattr(trainer_relations, "reference_first", lambda scenario: first)
    for spread, status in ((1e-7, VIOLATED), (0.1, NOT_COVERED)):
        monkeypatch.setattr(trainer_relations, "spread_of", lambda scenario, value=spread: value)
        sides = iter([first, First(1.5, {"w": 1.5 * torch.ones(2)})])
        found = trainer_relations.outcome_of(lambda scenario, s=sides: next(s), pair)
        assert found.status == status
        assert ("no budget" in found.note) == (status == NOT_COVERED)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e-30])
def test_any_gradient_on_the_teacher_is_noted(bad):
    teacher, run = torch.nn.Linear(2, 2), TrainerRun({})
    adapter = SimpleNamespace(teacher=lambda trainer: teacher)
    recorder: Any = SimpleNamespace(adapter=adapter, trainer=SimpleNamespace(model=None), run=run)
    for gradient in (0.0, bad, 0.0):
        teacher.weight.grad = torch.zeros(2, 2)
        teacher.bias.grad = torch.full((2,), gradient)
        Recorder.look_at_teacher(recorder)
    (outcome,) = teacher_gradient({"scenario": run})
    assert outcome.status == VIOLATED
