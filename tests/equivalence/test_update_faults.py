"""Planted faults: each must be caught, and first at the stage where it enters.

A fault is a patch of one name. The comparison is the one of `test_against_verl_update.py`.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import sdpo.reference.update as reference
from sdpo.loss import self_distillation
from sdpo.loss.support import Support, support
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.compare.first_in_time import first_observed
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded import updates as library
from sdpo.reference import forward
from sdpo.settings.determinism import deterministic
from sdpo.update import actor_update as update
from sdpo.update import ema_teacher
from tests.helpers.recorded import update_cases as cases

Patch = pytest.MonkeyPatch


class Fault(NamedTuple):
    """A name, the case that shows it, the stage it enters at, and how it is planted."""

    name: str
    case_id: str
    stage: str
    plant: Callable[[Patch], None]


def wrap(target: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Replace `target.name` by `change(original, *args, **kwargs)`."""

    def plant(patch: Patch) -> None:
        original = getattr(target, name)
        patch.setattr(target, name, lambda *a, **k: change(original, *a, **k))

    return plant


def scaled_by_one(plan, *args):
    return [[(rows, 1.0) for rows, _ in step] for step in plan(*args)]


def scaled_by_real_count(plan, *args):
    return [[(rows, 1 / len(step)) for rows, _ in step] for step in plan(*args)]


def average_per_micro_batch(accumulate, student, target, batch, micro_batches, *rest):
    total = 0.0
    for micro_batch in micro_batches:
        total += accumulate(student, target, batch, [micro_batch], *rest)
        ema_teacher.ema_update(target.parameters(), student.parameters(), 0.05)
    return total


def average_before_the_step(patch: Patch) -> None:
    step, sides = update.optimizer_step, {}
    accumulate = update.accumulate

    def remember(student, target, *rest):
        sides.update(student=student, teacher=target)
        return accumulate(student, target, *rest)

    def step_after_average(*args):
        ema_teacher.ema_update(sides["teacher"].parameters(), sides["student"].parameters(), 0.05)
        return step(*args)

    patch.setattr(update, "accumulate", remember)
    patch.setattr(update, "optimizer_step", step_after_average)
    patch.setattr(update, "teacher_update", lambda *args, **kwargs: None)


def always_finite(module: Any) -> Callable[[Patch], None]:
    everything = SimpleNamespace(isfinite=lambda norm: True)
    return lambda patch: patch.setattr(module, "math", everything)


def forget_momentum(optimizer_step, optimizer, *rest):
    optimizer.state.clear()
    return optimizer_step(optimizer, *rest)


def no_weight_decay(optimizer_step, optimizer, *rest):
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    return optimizer_step(optimizer, *rest)


def keep_gradients(actor_update, student, target, optimizer, *rest, **options):
    optimizer.zero_grad = lambda: None
    return actor_update(student, target, optimizer, *rest, **options)


def hot_teacher(teacher_logits, student, target, batch, config):
    return teacher_logits(student, target, batch, config) * config.temperature


def one_token_late(response_logits, model, batch, prefix=""):
    return response_logits(model, batch, prefix).roll(1, dims=1)


def own_indices(original, student_logits, teacher_logits, **options):
    student = support(student_logits, teacher_logits, **options)
    own = support(teacher_logits, student_logits, **options)
    return Support(student.indices, student.student, own.student)


def masked_rows_counted(aggregate, per_token_loss, loss_mask, **options):
    value = aggregate(per_token_loss, loss_mask, **options)
    rows = (loss_mask.sum(-1) > 0).float().mean()
    return value * rows


def without(name: str) -> Callable[..., Any]:
    return lambda original, *args, **kwargs: original(*args, **{**kwargs, name: None})


def with_option(name: str, value: Any) -> Callable[..., Any]:
    return lambda original, *args, **kwargs: original(*args, **{**kwargs, name: value})


def swapped(original, first, second, mix):
    return original(second, first, mix)


def inverted(ema_update, target, student, rate):
    return ema_update(target, student, 1 - rate)


def twice(ema_update, target, student, rate):
    ema_update(target, student, rate)
    return ema_update(target, student, rate)


def unclipped(original, parameters, max_norm):
    return original(parameters, max_norm=float("inf"))


OUR_FAULTS = [
    Fault(
        "loss not divided by accumulation",
        "P-U002",
        "accumulate",
        wrap(update, "plan", scaled_by_one),
    ),
    Fault(
        "short mini-batch divided by its own count",
        "P-U018",
        "accumulate",
        wrap(update, "plan", scaled_by_real_count),
    ),
    Fault(
        "gradients kept between steps",
        "P-U017",
        "accumulate",
        wrap(cases.library, "actor_update", keep_gradients),
    ),
    Fault(
        "teacher averaged per micro-batch",
        "P-U002",
        "log_probs",
        wrap(update, "accumulate", average_per_micro_batch),
    ),
    Fault("teacher averaged before the step", "P-U001", "teacher_update", average_before_the_step),
    Fault(
        "teacher averaged twice", "P-U001", "teacher_update", wrap(ema_teacher, "ema_update", twice)
    ),
    Fault(
        "teacher rate inverted",
        "P-U001",
        "teacher_update",
        wrap(ema_teacher, "ema_update", inverted),
    ),
    Fault(
        "teacher averaged after a skipped step",
        "P-U027",
        "teacher_update",
        wrap(update, "teacher_update", with_option("stepped", True)),
    ),
    Fault(
        "teacher not averaged if one step was skipped",
        "P-U028",
        "teacher_update",
        wrap(update, "teacher_update", with_option("stepped", False)),
    ),
    Fault(
        "trust region mixed the wrong way",
        "P-U012",
        "log_probs",
        wrap(update, "trust_region_logits", swapped),
    ),
    Fault(
        "temperature on the student only",
        "P-U036",
        "log_probs",
        wrap(update, "teacher_logits", hot_teacher),
    ),
    Fault(
        "logits one position late",
        "P-U001",
        "log_probs",
        wrap(update, "response_logits", one_token_late),
    ),
    Fault(
        "teacher's own top-k", "P-U001", "support", wrap(self_distillation, "support", own_indices)
    ),
    Fault(
        "on-policy ratio from the batch",
        "P-U001",
        "importance",
        wrap(update, "replace", lambda original, config, **changes: config),
    ),
    Fault(
        "rollout weights dropped",
        "P-U020",
        "importance",
        wrap(update, "self_distillation_stages", without("rollout_is_weights")),
    ),
    Fault(
        "rows without signal counted",
        "P-U023",
        "aggregate",
        wrap(self_distillation, "aggregate", masked_rows_counted),
    ),
    Fault(
        "distillation mask ignored",
        "P-U023",
        "aggregate",
        wrap(update, "self_distillation_stages", without("self_distillation_mask")),
    ),
    Fault(
        "step taken on a non-finite norm",
        "P-U027",
        "optimizer",
        always_finite(update),
    ),
    Fault(
        "gradient not clipped",
        "P-U030",
        "optimizer",
        wrap(torch.nn.utils, "clip_grad_norm_", unclipped),
    ),
    Fault(
        "momentum reset at each step",
        "P-U011",
        "optimizer",
        wrap(update, "optimizer_step", forget_momentum),
    ),
    Fault(
        "weight decay dropped",
        "P-U025",
        "optimizer",
        wrap(update, "optimizer_step", no_weight_decay),
    ),
]


def entropy_outside(method, actor, pg_loss, *rest):
    return method(actor, pg_loss.clone(), *rest)


def padded_instead(packed_forward, module, batch, temperature, **options):
    return reference.forward_micro_batch(module, batch, temperature, **options)


REFERENCE_FAULTS = [
    Fault(
        "hole quirk missing",
        "P-U045",
        "log_probs",
        wrap(forward, "packed_forward", padded_instead),
    ),
    Fault(
        "teacher's own top-k",
        "P-U001",
        "support",
        wrap(
            forward,
            "topk_log_probs",
            lambda original, logits, topk, indices=None: original(logits, topk),
        ),
    ),
    Fault(
        "logged loss without entropy",
        "P-U040",
        "accumulate",
        wrap(reference.Actor, "_with_entropy_and_kl", entropy_outside),
    ),
    Fault(
        "KL estimate of the wrong sign",
        "P-U042",
        "accumulate",
        wrap(reference, "low_var_kl", lambda original, *sides: original(*reversed(sides))),
    ),
    Fault("step taken on a non-finite norm", "P-U027", "optimizer", always_finite(reference)),
    Fault(
        "teacher rate inverted",
        "P-U001",
        "teacher_update",
        wrap(reference, "ema_update", inverted),
    ),
]


def name_of(fault: Fault) -> str:
    return fault.name


@pytest.mark.parametrize("fault", OUR_FAULTS, ids=name_of)
def test_a_fault_of_ours_is_caught_at_its_stage(fault, monkeypatch):
    fault.plant(monkeypatch)
    run = cases.run_ours(fault.case_id)
    skip = ("old_log_probs_used", "entropy")
    found = cases.tensor_differences(
        fault.case_id, run, exact=False, counted_only=True, skip=skip
    ) + cases.metric_differences(
        fault.case_id, run, exact=False, names=["actor/grad_norm", "actor/pg_loss"]
    )
    assert cases.first_stage(fault.case_id, found) == fault.stage


@pytest.mark.parametrize("fault", REFERENCE_FAULTS, ids=name_of)
def test_a_fault_of_the_transcription_is_caught_at_its_stage(fault, monkeypatch):
    fault.plant(monkeypatch)
    run = cases.run_reference(fault.case_id)
    found = cases.tensor_differences(fault.case_id, run, exact=False)
    found += cases.metric_differences(fault.case_id, run, exact=False)
    assert cases.first_stage(fault.case_id, found) == fault.stage


class Faulty(Own):
    """Ours with a fault, which the runs that it is judged by do not have."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def update_trace(self, family, golden, tensors):
        with pytest.MonkeyPatch.context() as patch:
            self.fault.plant(patch)
            return super().update_trace(family, golden, tensors)


NOT_UPDATED = Fault(
    "teacher not updated",
    "P-U011",
    "teacher_update",
    wrap(update, "teacher_update", lambda *_, **__: None),
)
SEVERAL = ("P-U001", "P-U002", "P-U010", "P-U011", "P-U014", "P-U017", "P-U018", "P-U023")
"""One update and three, several steps, several micro-batches."""
FEW = ("P-U001", "P-U011", "P-U014")
ACCEPTED = {"teacher averaged per micro-batch": "teacher_update"}
"""It shows in the log-probs where a step has several micro-batches, else in the teacher alone."""
TELLING = (
    "teacher not updated",
    "teacher averaged before the step",
    "gradient not clipped",
    "momentum reset at each step",
    "teacher's own top-k",
)


def headline(fault: Fault, ids) -> str | None:
    """The first stage of the recorded updates of a candidate with a fault, as a report has it."""
    with deterministic():
        chosen = dict.fromkeys([*ids, fault.case_id])
        run = [library.run_case(Faulty(fault), cases.family(), cases.case(id_)) for id_ in chosen]
    assert Status.DIVERGENT in {result.status for result in run}
    return first_observed(run)


@pytest.mark.parametrize(
    "fault", [f for f in [NOT_UPDATED, *OUR_FAULTS] if f.name in TELLING], ids=name_of
)
def test_what_came_first_in_time_is_named_and_not_the_lowest_stage(fault):
    """Later updates and steps see other weights, so that their log-probs depart as well."""
    assert headline(fault, FEW) == fault.stage


@pytest.mark.slow
@pytest.mark.parametrize("fault", [NOT_UPDATED, *OUR_FAULTS], ids=name_of)
def test_the_headline_of_every_fault_is_its_stage(fault):
    assert headline(fault, SEVERAL) == ACCEPTED.get(fault.name, fault.stage)


def test_every_stage_has_a_planted_fault():
    assert {fault.stage for fault in OUR_FAULTS + REFERENCE_FAULTS} == set(cases.STAGES)
