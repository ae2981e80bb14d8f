"""A recorded update: its models and batches, and what was recorded as a `StageTrace`.

A recording holds the per-token values of every micro-batch, the gradient's norm of every optimizer
step, and the weights of student and teacher after the whole update only. Its names are
`u0.mb3.loss` (micro-batches are counted through the update), `u0.mini1.grad.…` (of an optimizer
step), `u0.actor.…`, `u0.teacher.…`, and for the inputs `u0.in.…`.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.fixtures.models import build_model, build_optimizer
from sdpo.parity.cases.run_reference import Groups
from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, Moment, Place, StageTrace
from sdpo.parity.cases.value_names import by_our_names, verl_name

Tensors = dict[str, Tensor]

WHOLE_UPDATE = {"optimizer": "actor", "teacher_update": "teacher"}
"""Stages whose tensors are recorded after an update, and the recording's name of each."""


def build(
    family: GoldenFamily, golden: GoldenCase, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module | None, torch.optim.Optimizer]:
    """Actor, teacher weights and optimizer of a case.

    Numerics: eager attention takes its softmax in float32 whatever the dtype; in float64 another
    implementation is used.
    """
    name = golden.config["model"]
    attention = "sdpa" if dtype == torch.float64 else None
    actor = build_model(family, name, attention=attention).to(dtype)
    teacher = None
    if golden.config["teacher"] != "none":
        role = "teacher" if golden.config["teacher_init"] == "perturbed" else "actor"
        teacher = build_model(family, name, role, attention=attention).to(dtype)
    return actor, teacher, build_optimizer(golden.config["optimizer"], actor.parameters())


def batches(golden: GoldenCase, tensors: Tensors) -> Iterator[tuple[Tensors, Groups | None]]:
    """The batch of each update, and of a dynamic one the rows of its micro-batches."""
    for number, outcome in enumerate(golden.entry["results"]):
        start = f"u{number}.in."
        batch = {
            name.removeprefix(start): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(start)
        }
        groups = None
        if golden.config["actor"]["use_dynamic_bsz"]:
            rows = iter(outcome["micro_batch_row_indices"])
            groups = [[next(rows) for _ in range(size)] for size in _micro_batches_of(outcome)]
        yield batch, groups


class _Outcome(TypedDict):
    """What a manifest says of one recorded update, as far as it is used here."""

    metrics: dict[str, float | str | list[float | str]]
    micro_batch_row_indices: list[list[int]]
    micro_batches_per_optimizer_step: list[int]


def _micro_batches_of(outcome: _Outcome) -> list[int]:
    """How many micro-batches each optimizer step of a recorded update has."""
    return outcome["micro_batches_per_optimizer_step"]


def moments_of(golden: GoldenCase, update: int) -> list[list[Moment]]:
    """The micro-batches of each optimizer step of an update."""
    sizes = _micro_batches_of(golden.entry["results"][update])
    return [[Moment(update, step, m) for m in range(n)] for step, n in enumerate(sizes)]


def recorded_trace(golden: GoldenCase, tensors: Tensors) -> StageTrace:
    """The recorded values, in the order of the file, and the norms from the manifest."""
    trace = StageTrace()
    for name, tensor in tensors.items():
        update, part, value = name.split(".", 2)
        steps = moments_of(golden, int(update.removeprefix("u")))
        if part.startswith("mb"):
            moment = [moment for step in steps for moment in step][int(part.removeprefix("mb"))]
            trace.put(moment, by_our_names({value: tensor}))
        elif part.startswith("mini"):
            moment = steps[int(part.removeprefix("mini"))][-1]
            trace.put(moment, {value.removeprefix("grad."): tensor}, "accumulate")
        elif part != "in":
            (stage,) = (stage for stage, recorded in WHOLE_UPDATE.items() if recorded == part)
            trace.put(steps[-1][-1], {value: tensor}, stage)
    for update, outcome in enumerate(golden.entry["results"]):
        norms = numbers(outcome["metrics"]["actor/grad_norm"])
        for norm, step in zip(norms, moments_of(golden, update), strict=False):
            trace.put(step[-1], {GRAD_NORM: norm}, NO_STAGE)
    return trace


def numbers(value: Any) -> list[float]:
    """A recorded metric as a list of floats; non-finite ones are recorded as text."""
    return [float(entry) for entry in (value if isinstance(value, list) else [value])]


def golden_names(trace: StageTrace) -> dict[Place, str]:
    """The name that a recording has for each value of a trace; none for what it does not hold."""
    numbers: dict[Moment, int] = {}
    for moment in sorted(trace.moments()):
        numbers[moment] = sum(other.update == moment.update for other in numbers)
    names = {}
    for place in trace:
        part: str | None = f"mini{place.step}.grad.{place.name}"
        if place.stage in WHOLE_UPDATE:
            part = f"{WHOLE_UPDATE[place.stage]}.{place.name}"
        elif place.stage != "accumulate":
            topk = Place(*place.moment, "support", "support.indices") in trace
            verl = verl_name(place.name, topk=topk)
            part = verl and f"mb{numbers[place.moment]}.{verl}"
        if part is not None:
            names[place] = f"u{place.update}.{part}"
    return names


def golden_tensors(trace: StageTrace) -> Tensors:
    """The values of a trace under the names that a recording has for them."""
    return {name: trace[place] for place, name in golden_names(trace).items()}
