"""Run the recorded updates through either side and compare under the golden names.

Bounds, all from the golden data's README. Where this machine's kernels give the recorded bits
(`update_canaries.py`): the largest change seen under another vector instruction set. Elsewhere the
bounds suggested there for checking a recording on other hardware.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily, packaged_family
from sdpo.parity.cases.run_reference import TraceHooks, run_reference_updates
from sdpo.parity.cases.stage_trace import GRAD_NORM, SCALED_LOSS, StageTrace
from sdpo.parity.cases.stage_trace import stage_of as stage_of_value
from sdpo.parity.cases.value_names import VALUE_NAMES
from sdpo.parity.recorded import golden_updates
from sdpo.parity.recorded import updates as library
from sdpo.parity.recorded.golden_updates import golden_tensors
from sdpo.reference.update import UpdateSettings
from tests.helpers.recorded.update_canaries import of_each_update, update_has_recorded_bits

STAGES = (
    "log_probs",
    "support",
    "importance",
    "aggregate",
    "accumulate",
    "optimizer",
    "teacher_update",
)
STAGE_OF = {
    **{name.verl: stage_of_value(name.ours) for name in VALUE_NAMES},
    "entropy": "log_probs",
    "old_log_probs_used": "importance",
    "loss_mask": "aggregate",
}
# (relative, absolute)
PER_TOKEN = (0.0, 1.5e-4)
TEACHER = {"SGD": (0.0, 3e-7), "AdamW": (0.0, 6e-6)}
# one case of each optimizer, measured before any test plants a fault
if update_has_recorded_bits("P-U002") and update_has_recorded_bits("P-U009"):
    LOSS = {"SGD": (3e-6, 0.0), "AdamW": PER_TOKEN}
    WEIGHTS = {"SGD": (0.0, 1e-6), "AdamW": (0.0, 1e-4)}
else:
    LOSS = {"SGD": (2e-4, 1e-5), "AdamW": (2e-4, 1e-5)}
    WEIGHTS = {"SGD": (1e-4, 3e-5), "AdamW": (0.0, 5e-4)}


@dataclass
class Run:
    """What a side produced: tensors under the golden names, and the metrics of each update.

    `trace` holds the same, where a driver of the library made it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    trace: StageTrace = field(default_factory=StageTrace)


@dataclass(frozen=True)
class Difference:
    """A recorded value that a side does not reproduce within its bound."""

    name: str
    stage: str
    detail: str


def family() -> GoldenFamily:
    return packaged_family("update")


def case(case_id: str) -> GoldenCase:
    return family().case(case_id)


@functools.cache
def recorded(case_id: str) -> dict[str, Tensor]:
    return case(case_id).tensors()


def build(golden: GoldenCase) -> tuple[torch.nn.Module, torch.nn.Module | None, Any]:
    """Actor, teacher weights and optimizer of a case."""
    return golden_updates.build(family(), golden)


def updates(golden: GoldenCase) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Per update its batch, and the groups of a dynamic batch."""
    return golden_updates.batches(golden, recorded(golden.id))


def run_reference(case_id: str) -> Run:
    golden, hooks = case(case_id), TraceHooks()
    config = golden.config
    settings = UpdateSettings(**config["actor"], **config["self_distillation"])
    metrics = run_reference_updates(
        *build(golden), settings, config["temperature"], updates(golden), hooks=hooks
    )
    return Run(golden_tensors(hooks.trace), metrics, hooks.trace)


def run_ours(case_id: str) -> Run:
    trace = library.run_ours(family(), case(case_id), recorded(case_id))
    numbers = (of_each_update(trace, name) for name in (SCALED_LOSS, GRAD_NORM))
    metrics = [
        {"actor/pg_loss": sum(losses), "actor/grad_norm": norms}
        for losses, norms in zip(*numbers, strict=True)
    ]
    return Run(golden_tensors(trace), metrics, trace)


def stage_of(name: str) -> str:
    """The stage that a recorded tensor or metric belongs to."""
    _, part, *rest = name.split(".", 2)
    if part.startswith("mb"):
        return STAGE_OF[rest[0]]
    return {"actor": "optimizer", "teacher": "teacher_update"}.get(part, "accumulate")


def bound_of(name: str, expected: Tensor, optimizer: dict[str, Any]) -> tuple[float, float]:
    """Largest relative and absolute difference allowed."""
    kind, stage = optimizer["name"], stage_of(name)
    if not expected.is_floating_point() or name.endswith("loss_mask"):
        return 0.0, 0.0
    if name.endswith(".loss"):
        return LOSS[kind]
    if stage == "accumulate":
        return 0.0, WEIGHTS[kind][1] / optimizer["lr"]
    return {"optimizer": WEIGHTS[kind], "teacher_update": TEACHER[kind]}.get(stage, PER_TOKEN)


def outputs(case_id: str) -> list[str]:
    """Names of the recorded values, in the order in which an update produces them."""
    names = [name for name in recorded(case_id) if ".in." not in name]
    return sorted(names, key=lambda n: (n.split(".")[0], STAGES.index(stage_of(n)), n))


def same(actual: Tensor, expected: Tensor) -> bool:
    """Equal dtype, shape and bits; NaN equals NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


def within(actual: Tensor, expected: Tensor, bound: tuple[float, float]) -> bool:
    """Equal dtype and shape, and each entry within the bound; non-finite ones equal in kind."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    sides, (rtol, atol) = (actual.double(), expected.double()), bound
    return torch.allclose(*sides, rtol=rtol, atol=atol, equal_nan=True)


def tensor_differences(
    case_id: str, run: Run, *, exact: bool, counted_only: bool = False, skip: Iterable[str] = ()
) -> list[Difference]:
    """Recorded tensors that the run lacks or misses, in the order of production.

    `counted_only` compares per-token values only where the loss mask counts them.
    """
    found = []
    for name in outputs(case_id):
        expected, actual = recorded(case_id)[name], run.tensors.get(name)
        if any(name.endswith(ending) for ending in skip):
            continue
        if actual is None:
            found.append(Difference(name, stage_of(name), "missing"))
            continue
        if counted_only and ".mb" in name and name.rsplit(".", 1)[1] not in ("loss", "loss_mask"):
            mask = recorded(case_id)[name.rsplit(".", 1)[0] + ".loss_mask"] != 0
            actual, expected = actual[mask], expected[mask]
        bound = (0.0, 0.0) if exact else bound_of(name, expected, case(case_id).config["optimizer"])
        if not (same(actual, expected) if exact else within(actual, expected, bound)):
            worst = (actual.double() - expected.double()).abs().nan_to_num().max().item()
            found.append(Difference(name, stage_of(name), f"{worst:.3g} beyond {bound}"))
    return found


def metric_differences(
    case_id: str, run: Run, *, exact: bool, names: Iterable[str] | None = None
) -> list[Difference]:
    """Recorded metrics that the run misses; with `names` only those."""
    found = []
    for number, result in enumerate(case(case_id).entry["results"]):
        metrics = result["metrics"]
        for name in metrics if names is None else names:
            expected, actual = numbers(metrics[name]), numbers(run.metrics[number].get(name, []))
            bounds = metric_bounds(name, number, case(case_id).config["optimizer"])
            if not close(actual, expected, [(0.0, 0.0)] if exact else bounds):
                found.append(Difference(f"u{number}.metrics.{name}", "accumulate", f"{actual}"))
    return found


def metric_bounds(name: str, update: int, optimizer: dict[str, Any]) -> list[tuple[float, float]]:
    """Bounds of a metric's first entry and of the others; relative or absolute suffices."""
    per_token = PER_TOKEN[1]
    if name.startswith("rollout_corr/"):
        # chi2 squares a product of up to seven ratios of per-token probabilities.
        return [(14 * per_token, 14 * per_token)]
    if name == "actor/grad_norm" and update == 0:
        # From the second step on the weights differ by what the bounds allow them to.
        return [LOSS["SGD"], (per_token, per_token)]
    if name == "actor/grad_norm":
        return [(per_token, per_token)]
    return [LOSS[optimizer["name"]]]


def numbers(value: Any) -> list[float]:
    return [float(entry) for entry in (value if isinstance(value, list) else [value])]


def close(actual: list[float], expected: list[float], bounds: list[tuple[float, float]]) -> bool:
    if len(actual) != len(expected):
        return False
    bounds = bounds + bounds[-1:] * len(actual)
    return all(
        (math.isnan(a) and math.isnan(e)) or math.isclose(a, e, rel_tol=rtol, abs_tol=atol)
        for a, e, (rtol, atol) in zip(actual, expected, bounds, strict=False)
    )


def first_stage(case_id: str, differences: list[Difference]) -> str | None:
    """Stage of the first difference: earliest update, then earliest stage."""
    order = sorted(differences, key=lambda d: (d.name.split(".")[0], STAGES.index(d.stage)))
    return order[0].stage if order else None
