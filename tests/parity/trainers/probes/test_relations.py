"""Relations of trainers, and what they log: sound loops keep them, faults break the right one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import audit_my_trainer as mine
import pytest
import torch

from sdpo.parity.compare.statuses import RelationStatus, Status
from sdpo.parity.relations.catalogue import RELATION_NAMES, RELATIONS
from sdpo.parity.trainers.judge.logged_metrics import LOSS, METRIC, NORM, compare_logged
from sdpo.parity.trainers.probes import relations
from sdpo.parity.trainers.probes.changed_experiment import changed, why_one_experiment
from sdpo.parity.trainers.probes.relation_pairs import EVEN, PAIRS, all_scripts
from sdpo.parity.trainers.probes.relations import (
    NEVER_LEARNS,
    FirstUpdate,
    never_negative,
    row_of,
    teacher_gradient,
)
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.recording.fingerprints import (
    fingerprints_of_parts,
    fingerprints_of_script,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter, make_parts
from sdpo.parity.trainers.recording.recorder import Recorder
from sdpo.parity.trainers.scenarios.fragments import SUMS
from sdpo.parity.trainers.scenarios.scenario import Generation
from sdpo.parity.trainers.scenarios.tiny_model import completion_ids
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.spread import slow_are
from tests.helpers.trainers import laid_out_trainers as laid_out

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

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


class PaddingCounts(mine.MyTrainer):
    """The mean is over the columns of a batch, padding included."""

    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        mask = batch["response_mask"]
        return values | {"aggregate": values["aggregate"] * mask.sum() / mask.numel()}


FAULTS = {
    "micro-batch split": Summed,
    "gradient accumulation": Summed,
    "extra padding": PaddingCounts,
    "masked row": AllRowsCount,
    "row order": FirstRowWins,
    "logit shift": ClampedLogits,
    "vocabulary order": BySpecialId,
    "nothing counts": NeverSilent,
    "equal sides": NeverSilent,
}


@pytest.mark.parametrize("name", slow_are(("nothing counts", "micro-batch split"), FAULTS))
def test_a_fault_violates_its_relation(name):
    row = row_of(adapter(FAULTS[name]), BY_NAME[name], {})
    assert row.status == "VIOLATED", row
    assert row.worst is not None
    assert float(row.worst.used) > 2


def test_a_trainer_whose_padding_follows_the_tokenizer_violates_the_padding_side():
    rows = [
        row_of(laid_out.adapter_of(kind), BY_NAME["padding side"], {})
        for kind in (laid_out.TokenizerDecides, SDPOTrainer)
    ]
    assert [row.status for row in rows] == [RelationStatus.VIOLATED, RelationStatus.HOLDS]


@pytest.mark.slow
def test_gradients_that_are_added_over_processes_violate_the_process_split():
    (relation,) = [r for r in RELATIONS if r.name == "process split"]
    for kind, status in (
        (laid_out.SummedOverProcesses, RelationStatus.VIOLATED),
        (SDPOTrainer, RelationStatus.INHERITED),
    ):
        with TrainingPool(laid_out.adapter_of(kind), all_scripts(), twice=False) as apart:
            assert row_of(apart, relation, {}).status == status


def test_a_negative_divergence_violates_never_negative():
    micro = MicroBatch([0], values={"divergence": torch.tensor([[0.2, -1e-3]])})
    run = TrainerRun(updates=[Update(steps=[OptimizerStep([micro])])])
    (outcome,) = never_negative({"T01": run})
    assert outcome.status == RelationStatus.VIOLATED


# --- a change that changes nothing -----------------------------------------------------------


class Handed(TrainerAdapter):
    """Records what it is handed, and learns the same from everything."""

    name = "handed"
    hands = staticmethod(lambda scenario: scenario)

    def run(self, scenario, folder):
        parts, script = make_parts(cast("HFTrainerAdapter", self), self.hands(scenario), folder)
        start = script.rank * script.rows_per_process
        rows = script.prompts[0][start : start + script.rows_per_process]
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        script.generate(padded, mask)
        for reward in parts.rewards:
            reward([list(row) for row in script.completions[0]])
        step = OptimizerStep(gradient={"w": torch.ones(1)})
        given = fingerprints_of_parts(parts) | fingerprints_of_script(script)
        return TrainerRun(updates=[Update(steps=[step])], given=given)

    feedback_columns = ()


REACHES = {
    "micro-batch split": {"arguments"},
    "process split": {"arguments", "sampled"},
    "gradient accumulation": {"arguments"},
    "padding side": {"tokenizer"},
    "extra padding": {"sampled"},
    "row order": {"data", "sampled", "rewards"},
    "masked row": {"arguments", "data", "sampled", "rewards"},
    "logit shift": {"model"},
    "vocabulary order": {"model"},
}
"""What a trainer is handed otherwise in each relation; the others compare with zero."""


@pytest.mark.parametrize("name", REACHES)
def test_each_relation_changes_what_a_trainer_is_handed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found: set[str] = set()
    for number, pair in enumerate(PAIRS[name]):
        assert pair.right is not None
        runs = [
            Handed().run(script, tmp_path / f"{number}{side}")
            for side, script in (("left", pair.left), ("right", pair.right))
        ]
        reached = changed(runs[0].given, runs[1].given)
        assert reached
        assert why_one_experiment(pair.left, pair.right, *runs) is None
        found |= reached
    assert found == REACHES[name]


def test_every_relation_is_one_of_two_scripts_or_of_zero():
    zero = {name for name, pairs in PAIRS.items() if all(pair.right is None for pair in pairs)}
    assert zero == {"nothing counts", "equal sides"}
    assert PAIRS.keys() - zero == REACHES.keys()


def test_a_change_that_hands_the_trainer_nothing_else_is_an_error():
    class Undisguised(Handed):
        hands = staticmethod(lambda scenario: replace(scenario, disguise=""))

    row = row_of(Undisguised(), BY_NAME["padding side"], {})
    assert row.status == "ERROR"
    assert "hands the trainer nothing else" in row.note


class Unplayed(mine.MyAdapter):
    """Plays no disguise."""

    def run(self, scenario, folder):
        run = super().run(replace(scenario, disguise=""), folder)
        return replace(run, given={})


@pytest.mark.parametrize("name", ["padding side", "logit shift"])
def test_a_loop_that_does_not_play_the_change_is_not_covered(name):
    row = row_of(Unplayed(), BY_NAME[name], {})
    assert row.status == "NOT_COVERED"
    assert "does not play it" in row.note


class Frozen(mine.MyTrainer):
    """Learns nothing."""

    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        return values | {"aggregate": values["aggregate"] * 0.0}


@pytest.mark.parametrize("name", ["equal sides", "row order"])
def test_a_trainer_that_never_learns_keeps_no_relation(name):
    row = row_of(adapter(Frozen), BY_NAME[name], {})
    assert (row.status, row.note) == ("NOT_COVERED", NEVER_LEARNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_sound_loop_violates_only_what_the_reference_violates(name):
    row = row_of(adapter(mine.MyTrainer), BY_NAME[name], {})
    assert row.status == {"process split": "NOT_COVERED"}.get(name, row.of_reference) or (
        row.status == "INHERITED" and row.of_reference == "VIOLATED"
    )
    assert row.of_reference == ("VIOLATED" if name in SPLITS else "HOLDS")


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
        ({"loss": 0.5, "own": 0.5, "grad_norm": 5.0}, (Status.MATCH, Status.MATCH, Status.MATCH)),
        (
            {"loss": 0.51, "own": 0.5, "grad_norm": 5.0},
            (Status.DIVERGENT, Status.MATCH, Status.MATCH),
        ),
        (
            {"loss": 0.5, "own": 1.0, "grad_norm": 5.0},
            (Status.MATCH, Status.DIVERGENT, Status.MATCH),
        ),
        (
            {"loss": 0.5, "own": 0.5, "grad_norm": 1.0},
            (Status.MATCH, Status.MATCH, Status.DIVERGENT),
        ),
        (
            {"loss": float("nan"), "own": 0.5, "grad_norm": 5.0},
            (Status.DIVERGENT, Status.MATCH, Status.MATCH),
        ),
        ({}, (Status.NOT_COVERED, Status.NOT_COVERED, Status.NOT_COVERED)),
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
    assert metric.status == Status.NOT_COVERED


def test_a_relation_without_a_budget_says_nothing(monkeypatch):
    """A trainer that sums its micro-batches violates it, if rounding is not of that size."""
    pair, first = PAIRS["micro-batch split"][0], FirstUpdate(1.0, {"w": torch.ones(2)})
    monkeypatch.setattr(relations, "reference_first", lambda scenario: first)
    for spread, status in ((1e-7, RelationStatus.VIOLATED), (0.1, Status.NOT_COVERED)):
        monkeypatch.setattr(relations, "spread_of", lambda scenario, value=spread: value)
        sides = iter([first, FirstUpdate(1.5, {"w": 1.5 * torch.ones(2)})])
        found = relations.outcome_of(lambda scenario, s=sides: next(s), pair)
        assert found.status == status
        assert ("no budget" in found.note) == (status == Status.NOT_COVERED)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e-30])
def test_any_gradient_on_the_teacher_is_noted(bad):
    teacher, run = torch.nn.Linear(2, 2), TrainerRun({})
    adapter = SimpleNamespace(teacher=lambda trainer: teacher)
    recorder: Any = SimpleNamespace(adapter=adapter, trainer=SimpleNamespace(model=None), run=run)
    for gradient in (0.0, bad, 0.0):
        teacher.weight.grad = torch.zeros(2, 2)
        teacher.bias.grad = torch.full((2,), gradient)
        Recorder.note_teacher_gradient(recorder)
    (outcome,) = teacher_gradient({"scenario": run})
    assert outcome.status == RelationStatus.VIOLATED
