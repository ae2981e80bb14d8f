"""The lockstep audit: quiet on our trainer in real training, and it names what was planted.

Budget kind: measured, 16 times what float32 itself moves a value by against float64.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import sdpo.trainer.micro_batch_loss
from sdpo.lockstep import parity_callback
from sdpo.lockstep.parity_callback import ParityWarning
from sdpo.lockstep.reference_update import RepeatedUpdate
from sdpo.lockstep.update_distances import Delta, budgets, first_moved, noise, refused, sizeless
from sdpo.loss import self_distillation as loss_stages
from sdpo.parity.cases.stage_trace import Moment, StageTrace
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.tensor_distances import match
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import shows_a_factor_of_two
from sdpo.prompt import teacher_batch
from sdpo.settings.config import ConfigError
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.spread import slow_are
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.faulty_trainers import (
    AveragedPerMicroBatch,
    DroppingTeacher,
    NotDivided,
    Unscaled,
    WrongRate,
    WrongStep,
)
from tests.helpers.trainers.tiny_variants import OneSuccess, audited, lora, rows_of

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

EFFECTIVE = {"teacher_mode": "lora_ema", "lora_average": "effective"}


@pytest.fixture
def undrawn(monkeypatch):
    """A picture of each of many trainings takes as long as some of them."""
    monkeypatch.setattr(parity_callback, "plot_drift", lambda *_: None)


@pytest.mark.parametrize(
    ("settings", "args"),
    [
        ({}, {"max_steps": 3}),
        pytest.param(
            {"alpha": 1.0},
            {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 8},
            marks=pytest.mark.slow,
        ),
        ({"teacher_mode": "trust_region"}, {"temperature": 0.7}),
        ({"micro_batch_semantics": "exact", "loss_agg_mode": "seq-mean-token-mean"}, {}),
        pytest.param(
            {"distillation_add_tail": False, "alpha": 0.0},
            {"lr_scheduler_type": "linear"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"full_logit_distillation": False, "alpha": 1.0},
            {"optim": "sgd"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"distillation_topk": None}, {"max_grad_norm": 0.01}, marks=pytest.mark.slow),
        ({"teacher_mode": "lora_ema"}, {}),
        (EFFECTIVE, {}),
        pytest.param(
            EFFECTIVE,
            {"bf16": True, "num_iterations": 2, "max_steps": 4},
            marks=pytest.mark.slow,
        ),
        ({"is_clip": 0.9}, {"steps_per_generation": 4, "max_steps": 4}),
        ({}, {"bf16": True}),
        pytest.param(
            {"teacher_mode": "trust_region", "alpha": 1.0}, {"bf16": True}, marks=pytest.mark.slow
        ),
        ({"hybrid_lambda": 0.3}, {"num_iterations": 2, "max_steps": 4}),
        pytest.param(
            {"hybrid_lambda": 0.3, "micro_batch_semantics": "exact"},
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"loss_agg_mode": "seq-mean-token-sum-norm"},
            {"max_completion_length": 9},
            marks=pytest.mark.slow,
        ),
        pytest.param({"hybrid_lambda": 0.3, "teacher_mode": "dropout"}, {}, marks=pytest.mark.slow),
        ({"teacher_mode": "dropout"}, {"bf16": True}),
    ],
)
def test_our_trainer_makes_the_updates_of_the_reference(settings, args, tmp_path, undrawn):
    # Without larger weights the loss is 1e-7, which is rounding: float64 behind the same bfloat16
    # logits has another gradient by 3 %, whoever computes it in float32.
    weights: dict[str, Any] = {"initializer_range": tiny_trainer.WIDE}
    model = tiny_trainer.model(**weights)
    model = lora(model) if settings.get("teacher_mode") == "lora_ema" else model
    if settings.get("teacher_mode") == "dropout":
        model = tiny_trainer.model(attention_dropout=0.2, **weights)
        settings = {**settings, "teacher_mode": "ema"}
    trainer = audited(tmp_path, args=args, model=model, audit_lockstep=True, **settings)
    trainer.train()
    rows = rows_of(trainer)
    assert trainer.audit is not None
    assert len(rows) == trainer.audit.updates >= 2
    assert [row["first_moved"] for row in rows] == [""] * len(rows)
    assert {row["verdict"] for row in rows} <= {"PASS", "INCONCLUSIVE"}
    for row in rows:
        wide = [
            float(row[f"{n}_budget"]) >= TOLERANCES.usable_budget_share
            for n in ("loss", "gradient", "weights")
        ]
        assert row["verdict"] == "INCONCLUSIVE" or not any(wide)
        assert ("no budget" in row["reason"]) == (row["verdict"] == "INCONCLUSIVE")
    assert all(float(row["gradient_cosine"]) > 1 - 1e-6 for row in rows)
    for name in ("loss", "gradient", "weights", "teacher"):
        assert all(float(row[f"{name}_relative"]) <= float(row[f"{name}_budget"]) for row in rows)
    logged = [row for row in trainer.state.log_history if "parity/first_moved" in row]
    assert [row["parity/first_moved"] for row in logged] == [0.0] * len(rows)
    drift = rows_of(trainer, "drift.csv")
    assert len(drift) == len(rows)
    # In mixed precision a last bit of the loss moves a bfloat16 gradient by 4e-3.
    assert float(drift[-1]["weights"]) < (0.5 if args.get("bf16") else 0.05)


def test_a_gradient_in_bfloat16_has_a_budget_though_its_roundings_agreed_by_luck():
    """A token's error of 3e-7 moves a few entries by a whole bfloat16 unit, or none."""
    unit = torch.finfo(torch.bfloat16).eps
    found = [Delta("importance", "importance", 3e-7), Delta("accumulate", "gradient", 0.0)]
    allowed = budgets(noise(found, unit), {"gradient", "weights", "teacher"})
    logits = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    moved = logits * (1 + 3e-7 * torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    exact, other = logits.bfloat16().double(), moved.bfloat16().double()
    flips = float((exact - other).norm() / exact.norm())
    assert 0 < flips < allowed["gradient"] < 100 * flips
    assert allowed["weights"] == allowed["teacher"] == allowed["gradient"]
    assert budgets(noise(found), {"gradient"})["gradient"] < flips


SAME_PROMPT = {
    "reprompt_template": "{prompt}",
    "solution_template": "{successful_previous_attempt}",
    "feedback_template": "{feedback_raw}",
}


@pytest.mark.parametrize("kind", [SDPOTrainer, NotDivided])
def test_a_budget_that_shows_no_factor_of_two_is_refused(kind, tmp_path):
    """The teacher reads what the student reads: what is left of the gradient is rounding.

    A trainer that makes it twice as large cannot be told from one that does not. With some kernels
    the reference's gradient is exactly zero.
    """
    trainer = audited(tmp_path, kind=kind, args={"max_steps": 1}, **SAME_PROMPT)
    trainer.train()
    (row,) = rows_of(trainer)
    assert (row["verdict"], row["first_moved"]) == ("INCONCLUSIVE", "")
    assert float(row["gradient_budget"]) > 1
    assert "gradient by" in row["reason"]
    assert "no factor of two shows" in row["reason"]
    logged = [row for row in trainer.state.log_history if "parity/inconclusive" in row]
    assert [row["parity/inconclusive"] for row in logged] == [1.0]


def test_a_great_distance_within_a_refused_budget_is_inconclusive_and_beyond_it_divergent():
    allowed = {"gradient": 2.0}
    within, beyond = (Delta("accumulate", "gradient", value) for value in (0.9, 2.1))
    assert first_moved([within], allowed) is None
    assert first_moved([beyond], allowed) is beyond
    for delta in (within, beyond):
        assert "gradient by 2 of its size" in refused([delta], allowed)
    assert refused([within], {"gradient": 0.1}) == ""


def test_a_gradient_of_exactly_zero_where_tokens_count_is_no_size_to_compare_with():
    """Without tokens zero is right, and what is not finite is never excused."""
    nothing, some = {"a": torch.zeros(3)}, {"a": torch.full((3,), 1e-9)}
    broken = {"a": torch.full((3,), math.nan)}

    def names_of(mine, theirs, counts):
        trace = StageTrace()
        trace.put(Moment(), {"loss_mask": torch.full((2, 3), counts)})
        return set(sizeless(RepeatedUpdate(trace, [match(mine, theirs)])))

    assert names_of(some, nothing, 1.0) == {"gradient", "weights", "teacher"}
    assert not shows_a_factor_of_two(math.inf)
    for case in ((some, nothing, 0.0), (nothing, nothing, 1.0), (some, some, 1.0)):
        assert names_of(*case) == set()
    assert names_of(broken, nothing, 1.0) == names_of(nothing, some, 1.0) == set()


def test_every_nth_update_is_checked(tmp_path):
    trainer = audited(tmp_path, args={"max_steps": 3}, audit_every=2)
    trainer.train()
    assert [row["step"] for row in rows_of(trainer)] == ["1", "3"]


def test_freed_memory_is_kept_from_the_first_update_to_the_last(tmp_path, monkeypatch):
    events = []
    for name in ("keep_freed_memory", "return_freed_memory"):
        monkeypatch.setattr(parity_callback, name, lambda name=name: events.append(name))
    trainer = audited(tmp_path, args={"max_steps": 1})
    monkeypatch.setattr(trainer.audit, "_check", lambda *rest: events.append("check"))
    trainer.train()
    assert events == ["keep_freed_memory", "check", "return_freed_memory"]


def test_the_audit_does_not_change_the_training(tmp_path):
    """Bit-identical: weights, teacher, optimizer, completions, generators, everything logged."""
    sides = [traces_of(tmp_path / str(on), on, attention_dropout=0.1) for on in (False, True)]
    assert tiny_trainer.same(*(side["tensors"] for side in sides))
    for name in ("completions", "log"):
        assert sides[0][name] == sides[1][name]
    assert len(sides[0]["completions"]) == 3


class Remembering(tiny_trainer.Alternating):
    """Keeps what was sampled."""

    def __init__(self):
        super().__init__(3, feedback=True)
        self.seen: list[list[list[int]]] = []

    def __call__(self, completions, *, completion_ids, **others):
        self.seen.append([list(ids) for ids in completion_ids])
        return super().__call__(completions, **others)


def traces_of(folder, on: bool, **changes):
    """All that a run leaves behind, with or without the audit."""
    reward = Remembering()
    trainer = audited(
        folder,
        reward=reward,
        model=tiny_trainer.model(**changes),
        args={"max_steps": 3},
        audit_every=int(on),
        audit_lockstep=on,
    )
    trainer.train()
    tensors = tiny_trainer.weights(trainer.model)
    tensors |= {f"teacher.{name}": tensor for name, tensor in trainer.teacher.state_dict().items()}
    optimizer: Any = trainer.optimizer
    for number, state in enumerate(optimizer.state.values()):
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    tensors["generator"] = torch.get_rng_state()
    timed = ("parity", "train_", "step_time")
    log = [
        {name: value for name, value in row.items() if not name.startswith(timed)}
        for row in trainer.state.log_history
    ]
    return {"tensors": tensors, "completions": reward.seen, "log": log}


@pytest.mark.parametrize("inside", [False, True], ids=["between updates", "inside an update"])
def test_a_resumed_run_goes_on_with_its_rows(inside, tmp_path, monkeypatch):
    args: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    if inside:
        args |= {"steps_per_generation": 4, "max_steps": 6, "save_steps": 3}
    whole = audited(tmp_path, args=args, audit_lockstep=True)
    with monkeypatch.context() as patched:
        patched.setattr(parity_callback, "plot_drift", lambda *_: None)
        whole.train()
    expected = {name: rows_of(whole, name) for name in ("parity.csv", "drift.csv")}
    # The files already hold rows of steps behind the checkpoint, as after a crash.
    resumed = audited(tmp_path, args=args, audit_lockstep=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{args['save_steps']}"))
    assert rows_of(resumed, "drift.csv") == expected["drift.csv"]
    assert resumed.audit is not None
    assert (resumed.audit.folder / "drift.png").stat().st_size > 1000
    for mine, theirs in zip(rows_of(resumed), expected["parity.csv"], strict=True):
        if inside and mine["step"] == "4":
            assert "resumed inside" in mine["audited"]
            continue
        # With a check left out, budgets are measured at another one.
        differing = {"seconds", *(name for name in mine if inside and name.endswith("budget"))}
        assert all(mine[name] == theirs[name] for name in mine.keys() - differing)


# --- planted faults -------------------------------------------------------------------------


def one_sided_temperature(monkeypatch):
    real = sdpo.trainer.micro_batch_loss.self_distillation_stages

    def wrong(student, teacher, *tensors, config, **others):
        return real(student, teacher * config.temperature, *tensors, config=config, **others)

    monkeypatch.setattr(sdpo.trainer.micro_batch_loss, "self_distillation_stages", wrong)


def no_system_message(monkeypatch):
    real = teacher_batch.teacher_prompt

    def wrong(prompts, *others, **settings):
        return real([prompt[-1:] for prompt in prompts], *others, **settings)

    monkeypatch.setattr(teacher_batch, "teacher_prompt", wrong)


def own_support(monkeypatch):
    real = loss_stages.support

    def wrong(student, teacher, **settings):
        chosen = real(teacher, student, **settings)
        return chosen._replace(student=chosen.teacher, teacher=chosen.student)

    monkeypatch.setattr(loss_stages, "support", wrong)


def masked_rows_counted(monkeypatch):
    def wrong(per_token_loss, loss_mask, loss_agg_mode):
        return (per_token_loss * loss_mask).sum() / loss_mask.numel()

    monkeypatch.setattr(loss_stages, "aggregate", wrong)


def own_success_shown(monkeypatch):
    real = teacher_batch.demonstration

    def wrong(*rows, **settings):
        return real(*rows, **{**settings, "dont_reprompt_on_self_success": False})

    monkeypatch.setattr(teacher_batch, "demonstration", wrong)


def ratio_twice(monkeypatch):
    real = loss_stages.importance

    def wrong(loss, **tensors):
        return real(real(loss, **tensors), **tensors)

    monkeypatch.setattr(loss_stages, "importance", wrong)


class GRPOForgotten(SDPOTrainer):
    def _compute_loss(self, model, inputs):
        share = self.sdpo_config.hybrid_lambda
        return (1 - share) * self._self_distillation_loss(model, inputs)


class SharesSwapped(SDPOTrainer):
    def _compute_loss(self, model, inputs):
        share, grpo = self.sdpo_config.hybrid_lambda, super(SDPOTrainer, self)._compute_loss
        own = self._self_distillation_loss(model, inputs)
        return share * own + (1 - share) * grpo(model, inputs)


class Undropped(SDPOTrainer):
    """The student's dropout is off while the loss is computed."""

    def _self_distillation_loss(self, model, inputs):
        modules: list[Any] = [m for m in model.modules() if hasattr(m, "attention_dropout")]
        for module in modules:
            module.attention_dropout = 0.0
        loss = super()._self_distillation_loss(model, inputs)
        for module in modules:
            module.attention_dropout = 0.2
        return loss


class TeacherNotUnderAutocast(SDPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        real = self.teacher.logits

        def wrong(student, batch):
            with torch.autocast("cpu", enabled=False):
                return real(student, batch)

        self.teacher.logits = wrong


def not_normalised(monkeypatch):
    """The loss is divided by the width of the batch, not by the greatest length."""
    real = SDPOTrainer._self_distillation_loss

    def wrong(self, model, inputs):
        right = self.micro_batch_loss
        self.micro_batch_loss = replace(right, padded_width=6)
        loss = real(self, model, inputs)
        self.micro_batch_loss = right
        return loss

    monkeypatch.setattr(SDPOTrainer, "_self_distillation_loss", wrong)


NORM = "seq-mean-token-sum-norm"
OTHER_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "temperature on one side only": ({"temperature": 0.7}, {}, {}),
    "ratio applied twice": ({"steps_per_generation": 4, "max_steps": 6}, {"is_clip": 10.0}, {}),
    "hybrid: GRPO forgotten": ({}, {"hybrid_lambda": 0.3}, {}),
    "hybrid: shares swapped": ({}, {"hybrid_lambda": 0.3}, {}),
    "hybrid: teacher's own top-k": ({}, {"hybrid_lambda": 0.3}, {}),
    "dropout: student without it": ({}, {}, {"attention_dropout": 0.2}),
    "bf16: loss not divided": ({"bf16": True}, {}, {}),
    "bf16: teacher in float32": ({"bf16": True}, {}, {}),
    "bf16: teacher's own top-k": ({"bf16": True}, {}, {}),
    "effective: average without the scale": ({}, EFFECTIVE, {}),
    "effective: teacher's own top-k": ({}, EFFECTIVE, {}),
    "norm: divided by the batch's width": (
        {"max_completion_length": 9},
        {"loss_agg_mode": NORM},
        {},
    ),
}
"""Arguments of TRL, of SDPO and of the model for faults that need others."""

FAULTS = {
    "hybrid: GRPO forgotten": (GRPOForgotten, "accumulate"),
    "hybrid: shares swapped": (SharesSwapped, "accumulate"),
    "hybrid: teacher's own top-k": (own_support, "support"),
    "dropout: student without it": (Undropped, "log_probs"),
    "bf16: loss not divided": (NotDivided, "accumulate"),
    "bf16: teacher in float32": (TeacherNotUnderAutocast, "log_probs"),
    "bf16: teacher's own top-k": (own_support, "support"),
    "effective: average without the scale": (Unscaled, "teacher_update"),
    "effective: teacher's own top-k": (own_support, "support"),
    "norm: divided by the batch's width": (not_normalised, "aggregate"),
    "loss not divided by accumulation steps": (NotDivided, "accumulate"),
    "EMA per micro-batch": (AveragedPerMicroBatch, "teacher_update"),
    "teacher in train mode with dropout": (DroppingTeacher, "log_probs"),
    "temperature on one side only": (one_sided_temperature, "log_probs"),
    "system message dropped": (no_system_message, "teacher_prompt"),
    "teacher's own top-k": (own_support, "support"),
    "masked rows counted in the denominator": (masked_rows_counted, "aggregate"),
    "own success shown": (own_success_shown, "demonstration"),
    "ratio applied twice": (ratio_twice, "importance"),
    "EMA twice": (WrongRate, "teacher_update"),
    "gradient changed before the step": (WrongStep, "optimizer"),
}


AS_OTHERS = (
    "hybrid: GRPO forgotten",
    "hybrid: teacher's own top-k",
    "bf16: teacher's own top-k",
    "effective: teacher's own top-k",
)


@pytest.mark.parametrize("fault", slow_are(AS_OTHERS, FAULTS))
def test_a_planted_fault_is_named_with_its_stage(fault, tmp_path, monkeypatch, undrawn):
    plant, stage = FAULTS[fault]
    args, settings, changes = OTHER_RUNS.get(fault, ({}, {}, {}))
    reward = OneSuccess() if fault == "masked rows counted in the denominator" else None
    kind = SDPOTrainer
    if isinstance(plant, type):
        kind = plant
    else:
        plant(monkeypatch)
    model = lora() if settings == EFFECTIVE else tiny_trainer.model(**changes)
    trainer = audited(tmp_path, kind=kind, args=args, reward=reward, model=model, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ParityWarning)
        trainer.train()
    named = [row["first_moved"] for row in rows_of(trainer) if row["first_moved"]]
    # In the first update the teacher is still the student, and a divergence is mostly rounding.
    assert set(named[1:] or named) == {stage}
    assert any(f"{stage} moved first" in str(warning.message) for warning in caught)
    assert stage in NAMES


@pytest.mark.parametrize(
    ("settings", "args", "reason"),
    [
        ({"reprompt_truncation": "error"}, {}, "always fails"),
        ({}, {"fp16": True}, "loss scaling"),
        ({}, {"per_device_train_batch_size": 4, "steps_per_generation": 1}, "never makes"),
        ({"loss_implementation": "fused"}, {"bf16": True}, "bf16 with loss_implementation"),
        ({"share_prompts": "teacher"}, {"bf16": True}, "bf16 with share_prompts"),
        ({"teacher_mode": "trust_region"}, {"model": 0.1}, "draws in another order"),
        ({"micro_batch_semantics": "exact"}, {"model": 0.1}, "other masks"),
        ({"micro_batch_semantics": "exact"}, {"bf16": True}, "rounds otherwise"),
    ],
)
def test_what_is_not_covered_is_refused(settings, args, reason, tmp_path):
    model = tiny_trainer.model(attention_dropout=args.get("model", 0.0))
    args = {name: value for name, value in args.items() if name != "model"}
    with pytest.raises(ConfigError, match=reason):
        audited(tmp_path, args=args, model=model, **settings)
