"""The lockstep audit: quiet on our trainer in real training, and it names what was planted.

Budget kind: measured, 16 times what float32 itself moves a value by against float64.
"""

from typing import Any

import pytest
import torch

from sdpo.lockstep import parity_callback
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.faulty_trainers import (
    NotDivided,
)
from tests.helpers.trainers.tiny_variants import audited, lora, rows_of

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

EFFECTIVE = {"teacher_mode": "lora_ema", "lora_average": "effective"}
TERMS = {"entropy_coeff": 0.05, "use_kl_loss": True, "kl_loss_coef": 0.5}


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
        ({**TERMS, "temperature": 0.7}, {"temperature": 0.7, "max_steps": 3}),
        pytest.param({**TERMS, "hybrid_lambda": 0.3}, {"bf16": True}, marks=pytest.mark.slow),
        pytest.param({**TERMS, **EFFECTIVE}, {}, marks=pytest.mark.slow),
        pytest.param(
            {**TERMS, "loss_agg_mode": "seq-mean-token-sum-norm"},
            {"max_completion_length": 9},
            marks=pytest.mark.slow,
        ),
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
