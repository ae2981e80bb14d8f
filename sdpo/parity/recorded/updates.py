"""Stages of a whole update, on the recorded cases: per-token values, gradients, weights, teacher.

The recorded update is repeated in float64, which gives the budgets (`measured_budgets.py`). The
error is taken over all tensors of a kind, so that a scaled or missing gradient fails whatever its
size. Before a value a little over its budget is called different, the error is taken from more
float32 runs of the reference (`recording_spread.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.parity.cases.checked_call import CandidateError, guarded, same_bits
from sdpo.parity.cases.run_reference import TraceHooks, in_dtype, run_reference_updates
from sdpo.parity.cases.stage_trace import GRAD_NORM, NO_STAGE, SCALED_LOSS, Place, StageTrace
from sdpo.parity.cases.tensor_distances import float32_error, largest_by_kind
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.value_dtypes import other_dtypes
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded.golden_updates import (
    Tensors,
    batches,
    build,
    golden_names,
    golden_tensors,
    moments_of,
    recorded_trace,
)
from sdpo.parity.recorded.measured_budgets import compare_measured
from sdpo.parity.recorded.recording_spread import a_little_over, round_anew, widest
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.reference.update import UpdateSettings
from sdpo.settings.config import SDPOConfig
from sdpo.settings.stage_settings import POLICY_TERMS
from sdpo.update.actor_update import ForwardSettings, actor_update

Progress = Callable[[str, int, int], None]
Errors = dict[str, float]
"""Of each kind of value the error of float32, relative to the value's scale."""
Sides = tuple[StageTrace, StageTrace, StageTrace]
"""Recording, transcription in float64, candidate."""


class UpdateCandidate(Protocol):
    """A candidate that makes recorded updates."""

    def update_trace(
        self, family: GoldenFamily, golden: GoldenCase, tensors: Tensors
    ) -> StageTrace:
        """What the candidate computes on a case; `tensors` are the recorded ones."""
        ...


def run_update_family(
    candidate: UpdateCandidate, family: GoldenFamily, progress: Progress = lambda *_: None
) -> list[CaseResult]:
    """All recorded updates through a candidate.

    Raises:
        CandidateError: transformers, which provides the models, is not installed.
    """
    results = []
    for number, golden in enumerate(family):
        progress(family.name, number, len(family))
        try:
            results.append(run_case(candidate, family, golden))
        except ImportError as error:
            raise CandidateError(
                "accumulate", "the update stages need transformers: pip install 'sdpo[train]'"
            ) from error
    progress(family.name, len(family), len(family))
    return results


def run_case(candidate: UpdateCandidate, family: GoldenFamily, golden: GoldenCase) -> CaseResult:
    """One recorded case: one or three updates."""
    result = CaseResult(golden.id, "update", tuple(golden.tags))
    tensors = golden.tensors()
    recorded = recorded_trace(golden, tensors)
    actual = guarded("accumulate", candidate.update_trace, family, golden, tensors)
    if _all_equal(recorded, actual):  # no budget is needed
        truth = StageTrace(recorded | {p: v for p, v in actual.items() if p.name == GRAD_NORM})
    else:
        truth = run_reference(family, golden, tensors, torch.float64)
    result.comparisons = compare_update(golden, recorded, truth, actual)
    if a_little_over(result.comparisons):
        runs = (
            run_reference(family, golden, tensors, torch.float32, rounded=seed).at(recorded)
            for seed in range(TOLERANCES.update_reruns)
        )
        errors = widest(runs, recorded, lambda run: float32_errors(run, truth))
        result.comparisons = compare_update(golden, recorded, truth, actual, errors)
        if result.status == Status.PASS:
            more = TOLERANCES.update_reruns
            result.note = f"budgets from {more} more float32 runs: the recording is closer by luck"
    stages = {name: place.stage or None for place, name in golden_names(actual).items()}
    result.comparisons += other_dtypes(
        candidate, golden.id, golden_tensors(actual), tensors, stages.get
    )
    return result


def _all_equal(recorded: StageTrace, actual: StageTrace) -> bool:
    """Whether every compared tensor is bit-equal."""
    wanted = recorded.compared().items()
    return all(place in actual and same_bits(actual[place], value) for place, value in wanted)


def run_reference(
    family: GoldenFamily,
    golden: GoldenCase,
    tensors: Tensors,
    dtype: torch.dtype,
    *,
    rounded: int | None = None,
) -> StageTrace:
    """The case through the transcription, in a dtype; `rounded` is the seed of `round_anew`."""
    config, hooks = golden.config, TraceHooks()
    actor, teacher, optimizer = build(family, golden, dtype)
    if rounded is not None:
        round_anew([actor, teacher], rounded)
    run_reference_updates(
        actor,
        teacher,
        optimizer,
        UpdateSettings(**config["actor"], **config["self_distillation"]),
        config["temperature"],
        ((in_dtype(batch, dtype), groups) for batch, groups in batches(golden, tensors)),
        hooks=hooks,
    )
    return hooks.trace


def own_config(golden: GoldenCase) -> SDPOConfig:
    """The case's settings as ours."""
    config, actor = golden.config, golden.config["actor"]
    return SDPOConfig(
        **config["self_distillation"],
        **{name: actor[name] for name in ("loss_agg_mode", "grad_clip", *POLICY_TERMS)},
        temperature=config["temperature"],
    )


def run_ours(family: GoldenFamily, golden: GoldenCase, tensors: Tensors) -> StageTrace:
    """The case through our implementation."""
    actor, teacher, optimizer = build(family, golden)
    sizes, trace = golden.config["actor"], StageTrace()
    forward = ForwardSettings(
        getattr(torch, sizes["compute_dtype"]), use_remove_padding=sizes["use_remove_padding"]
    )
    for update, (batch, groups) in enumerate(batches(golden, tensors)):
        report = actor_update(
            actor,
            teacher,
            optimizer,
            batch,
            own_config(golden),
            mini_batch_size=sizes["ppo_mini_batch_size"],
            micro_batch_size=sizes["ppo_micro_batch_size_per_gpu"],
            epochs=sizes["ppo_epochs"],
            groups=groups,
            forward=forward,
            record=True,
        )
        steps = moments_of(golden, update)
        moments = [moment for step in steps for moment in step]
        for moment, values in zip(moments, report.micro_batches, strict=False):
            trace.put(moment, values)
        of_steps = zip(steps, report.gradients, report.grad_norms, report.losses, strict=False)
        for step, gradients, norm, loss in of_steps:
            trace.put(step[-1], gradients, "accumulate")
            trace.put(step[-1], {GRAD_NORM: norm, SCALED_LOSS: loss}, NO_STAGE)
        for stage, module in (("optimizer", actor), ("teacher_update", teacher)):
            weights = {} if module is None else module.state_dict()
            trace.put(moments[-1], {name: v.clone() for name, v in weights.items()}, stage)
    return trace


def compare_update(
    golden: GoldenCase,
    recorded: StageTrace,
    truth: StageTrace,
    actual: StageTrace,
    errors: Errors | None = None,
) -> list[Comparison]:
    """Compare every recorded tensor and the gradient norms; a missing tensor is an error.

    Args:
        golden: the case.
        recorded: its values.
        truth: the same by the transcription in float64.
        actual: the candidate's.
        errors: of float32; those of the recording if they are not given.
    """
    errors = float32_errors(recorded, truth) if errors is None else errors
    # one number may be close to the truth by luck: scalars are judged by the widest error
    largest = max(errors.values(), default=0.0)
    names = golden_names(recorded)
    missing, found = [], []
    for place in recorded.compared():
        if place not in actual:
            note = f"{names[place]} is missing"
            comparison = Comparison(place.stage, Status.ERROR, golden.id, note=note)
            missing.append(placed(place, comparison))
            continue
        error = largest if place.stage == "aggregate" else errors.get(kind_of(place), 0.0)
        sides = (recorded, truth, actual)
        comparison = _compare_at(place, golden.id, sides, error, names[place])
        found.append(placed(place, comparison))
    norms = [
        compare_norms(golden.id, update, (recorded, truth, actual), largest)
        for update in range(len(golden.entry["results"]))
    ]
    return missing + found + norms


def _compare_at(place: Place, case: str, sides: Sides, error: float, name: str) -> Comparison:
    """Compare one value; per-token values only at the tokens that count in the recording.

    Args:
        place: of the value.
        case: identifier of the case.
        sides: recording, float64 and candidate.
        error: of float32, for the value's kind.
        name: of the value in the recording.
    """
    expected, truth, actual = (side[place] for side in sides)
    if actual.shape != expected.shape:
        shapes = tuple(actual.shape), tuple(expected.shape)
        return compare_exact(place.stage, case, f"shape of {name}", *shapes)
    excused = False
    if place.family == "loss":
        counts = sides[0][Place(*place.moment, NO_STAGE, "loss_mask")] != 0
        excused = not counts.any()
        if place.stage != "aggregate":
            expected, truth, actual = expected[counts], truth[counts], actual[counts]
    if not expected.is_floating_point():
        return compare_exact(place.stage, case, name, actual.tolist(), expected.tolist())
    return compare_measured(
        place.stage, case, expected, truth, actual, error=error, excused=excused
    )


def kind_of(place: Place) -> str:
    """Values of a kind share one error: one value of all micro-batches, gradients, weights."""
    return place.name if place.family == "loss" else place.stage


def float32_errors(single: StageTrace, double: StageTrace) -> Errors:
    """Of each kind of value that both hold, the largest float32 error."""
    return largest_by_kind(
        (kind_of(place), float32_error(value, double[place]))
        for place, value in single.compared().items()
        if value.is_floating_point() and place in double
    )


def placed(place: Place, comparison: Comparison) -> Comparison:
    """The comparison with its place, and what it may follow from."""
    return replace(comparison, place=place[:3], may_follow=not_recorded(place))


def not_recorded(place: Place) -> tuple[str, ...]:
    """Stages since whose last recording weights may have moved that a value depends on.

    Weights are recorded after the whole update only: what is wrong from the second step on may be
    wrong because the first left other weights behind.
    """
    if place.stage in ("optimizer", "teacher_update"):
        return ()
    of_student = place.name.endswith(".student") or place.name == "support.indices"
    moved = []
    if place.step > 0 and not place.name.endswith(".teacher"):
        moved.append("optimizer")
    if (place.step, place.micro_batch) != (0, 0) and not of_student:
        moved.append("teacher_update")
    return tuple(moved)


def compare_norms(case: str, update: int, sides: Sides, error: float) -> Comparison:
    """Compare the gradient norms of an update, placed at the first optimizer step that is off."""
    expected, truth, actual = (_norms_of(side, update) for side in sides)
    expected, actual = expected.float(), actual.float()
    compare = partial(compare_measured, "accumulate", case, expected, truth, error=error)
    comparison, step = compare(actual), 0
    if comparison.status in FAILING and actual.shape == expected.shape:
        up_to = (torch.cat([actual[:n], expected[n:]]) for n in range(1, len(actual) + 1))
        step = next(n for n, norms in enumerate(up_to) if compare(norms).status in FAILING)
    steps = [p for p in sides[0] if (p.update, p.name) == (update, GRAD_NORM)]
    return placed(steps[step], comparison)


def _norms_of(trace: StageTrace, update: int) -> Tensor:
    """The gradient's norm at each optimizer step of an update, `(steps,)` float64."""
    norms = [v for p, v in trace.items() if (p.update, p.name) == (update, GRAD_NORM)]
    return torch.tensor(norms, dtype=torch.float64)
