"""Stages of a whole update, on the recorded cases: per-token values, gradients, weights, teacher.

The models' arithmetic is not within the oracle, so the budget is the reference's own distance from
the truth: the recorded update is repeated in float64, and a value may be `update_slack` times as
far from the recording as the recording is from the float64 run, plus a few roundings. The distance
is taken over all tensors of a kind, relative to each tensor's scale, so that a scaled or missing
gradient fails whatever its size. Before a value a little over its budget is called different, the
distance is taken from more float32 runs of the reference (`recording_spread`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.fixtures.models import build_model, build_optimizer
from sdpo.parity.cases.checked_call import CandidateError, guarded, same_bits
from sdpo.parity.compare.comparison import Comparison, Expected, compare_exact, compare_numeric
from sdpo.parity.compare.improvements import EMPTY_BATCH
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.value_dtypes import other_dtypes
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded.recording_spread import a_little_over, round_anew, widest
from sdpo.parity.recorded.update_places import norms_placed, placed
from sdpo.parity.truth.oracle import array_of
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.parity.truth.usable_budget import refusal, shows_a_factor_of_two
from sdpo.reference.update import Actor, TrustRegionTeacher, UpdateSettings
from sdpo.settings.config import SDPOConfig
from sdpo.update.actor_update import actor_update

STAGE_OF = {
    "student_log_probs": "log_probs",
    "teacher_log_probs": "log_probs",
    "student_topk_indices": "support",
    "student_topk_log_probs": "support",
    "teacher_topk_log_probs": "support",
    "student_all_log_probs": "support",
    "teacher_all_log_probs": "support",
    "per_token_loss": "importance",
    "loss": "aggregate",
}
OWN_NAMES = {
    "log_probs.student": "student_log_probs",
    "log_probs.teacher": "teacher_log_probs",
    "support.indices": "student_topk_indices",
    "importance": "per_token_loss",
    "loss_mask": "loss_mask",
    "aggregate": "loss",
}
NOT_OURS = {
    "entropy_coeff": "an entropy bonus",
    "use_kl_loss": "a KL term to a reference policy",
}

Tensors = dict[str, Tensor]
Progress = Callable[[str, int, int], None]


@dataclass
class UpdateRun:
    """Tensors under the golden names, and per update the losses and gradient norms of its steps."""

    tensors: Tensors = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    grad_norms: list[list[float]] = field(default_factory=list)


def run_update_family(
    candidate: Any, family: GoldenFamily, progress: Progress = lambda *_: None
) -> list[CaseResult]:
    """All recorded updates through a candidate with `update_run` and `update_gap`.

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


def run_case(candidate: Any, family: GoldenFamily, golden: GoldenCase) -> CaseResult:
    """One recorded case: one or three updates."""
    result = CaseResult(golden.id, "update", tuple(golden.tags))
    if reason := candidate.update_gap(golden):
        result.note = f"not covered: {reason}"
        return result
    recorded = golden.tensors()
    actual = guarded("accumulate", candidate.update_run, family, golden, recorded)
    if all_equal(recorded, actual.tensors):
        truth = UpdateRun(recorded, grad_norms=actual.grad_norms)
    else:
        truth = run_reference(family, golden, recorded, torch.float64)
    result.comparisons = compare_update(golden, recorded, truth, actual)
    if a_little_over(result.comparisons):
        spread = noise(family, golden, recorded, truth)
        result.comparisons = compare_update(golden, recorded, truth, actual, spread)
        if result.status == Status.PASS:
            runs = TOLERANCES.update_reruns
            result.note = f"budgets from {runs} more float32 runs: the recording is closer by luck"
    result.comparisons += other_dtypes(candidate, golden.id, actual.tensors, recorded, stage_of)
    return result


def noise(
    family: GoldenFamily, golden: GoldenCase, recorded: Tensors, truth: UpdateRun
) -> dict[str, float]:
    """As `relative_spread`, over the recording and several float32 runs of the transcription."""
    names = [name for name in recorded if stage_of(name)]
    runs = (
        run_reference(family, golden, recorded, torch.float32, rounded=seed).tensors
        for seed in range(TOLERANCES.update_reruns)
    )
    return widest(runs, recorded, lambda run: relative_spread(run, truth.tensors, names))


def all_equal(recorded: Tensors, actual: Tensors) -> bool:
    """Whether every compared tensor is bit-equal, so that no budget is needed."""
    wanted = [name for name in recorded if stage_of(name)]
    return all(name in actual and same_bits(actual[name], recorded[name]) for name in wanted)


def not_ours(golden: GoldenCase) -> str | None:
    """Why our pure update does not run a case, None if it does."""
    actor = golden.config["actor"]
    for name, what in NOT_OURS.items():
        if actor[name]:
            return f"{what} is no part of the SDPO loss"
    if actor["compute_dtype"] != "float32":
        return "autocast is left to the trainer"
    if actor["use_remove_padding"] and "mask_holes" in golden.tags:
        return "rows are not packed, so that holes in the mask do not lose the teacher's values"
    return None


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


def updates(golden: GoldenCase, recorded: Tensors) -> Iterator[tuple[str, Tensors, Any]]:
    """Per update its prefix, its batch, and the groups of a dynamic batch."""
    for number, outcome in enumerate(golden.entry["results"]):
        start = f"u{number}.in."
        batch = {
            name.removeprefix(start): tensor.clone()
            for name, tensor in recorded.items()
            if name.startswith(start)
        }
        groups = None
        if golden.config["actor"]["use_dynamic_bsz"]:
            rows = iter(outcome["micro_batch_row_indices"])
            sizes = outcome["micro_batches_per_optimizer_step"]
            groups = [[next(rows) for _ in range(size)] for size in sizes]
        yield f"u{number}.", batch, groups


def run_reference(
    family: GoldenFamily,
    golden: GoldenCase,
    recorded: Tensors,
    dtype: torch.dtype,
    *,
    rounded: int | None = None,
) -> UpdateRun:
    """The case through the transcription, in a dtype; `rounded` is the seed of `round_anew`."""
    config = golden.config
    actor, teacher, optimizer = build(family, golden, dtype)
    if rounded is not None:
        round_anew([actor, teacher], rounded)
    settings = UpdateSettings(**config["actor"], **config["self_distillation"])
    if teacher is not None and config["teacher"] == "trust_region":
        teacher = TrustRegionTeacher(teacher, actor, settings.teacher_update_rate)
    run = UpdateRun()
    updater = Actor(actor, optimizer, settings, teacher, run.tensors)
    for _, batch, groups in updates(golden, recorded):
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        metrics = updater.update_policy(cast, config["temperature"], groups)
        run.grad_norms.append([float(norm) for norm in metrics["actor/grad_norm"]])
    return run


def own_config(config: Mapping[str, Any]) -> SDPOConfig:
    """The case's settings as ours."""
    return SDPOConfig(
        **config["self_distillation"],
        temperature=config["temperature"],
        loss_agg_mode=config["actor"]["loss_agg_mode"],
        grad_clip=config["actor"]["grad_clip"],
    )


def run_own(family: GoldenFamily, golden: GoldenCase, recorded: Tensors) -> UpdateRun:
    """The case through our implementation."""
    actor, teacher, optimizer = build(family, golden)
    sizes = golden.config["actor"]
    run = UpdateRun()
    for prefix, batch, groups in updates(golden, recorded):
        report = actor_update(
            actor,
            teacher,
            optimizer,
            batch,
            own_config(golden.config),
            mini_batch_size=sizes["ppo_mini_batch_size"],
            micro_batch_size=sizes["ppo_micro_batch_size_per_gpu"],
            epochs=sizes["ppo_epochs"],
            groups=groups,
            record=True,
        )
        run.losses.append(report.losses)
        run.grad_norms.append(report.grad_norms)
        for number, trace in enumerate(report.micro_batches):
            run.tensors |= {f"{prefix}mb{number}.{k}": v for k, v in golden_names(trace)}
        for number, gradients in enumerate(report.gradients):
            run.tensors |= {f"{prefix}mini{number}.grad.{k}": v for k, v in gradients.items()}
        for label, module in (("actor", actor), ("teacher", teacher)):
            weights = {} if module is None else module.state_dict()
            run.tensors |= {f"{prefix}{label}.{k}": v.clone() for k, v in weights.items()}
    return run


def golden_names(trace: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Stage values of our trace under the names of the recording."""
    kind = "topk" if "support.indices" in trace else "all"
    for name, value in trace.items():
        if name in OWN_NAMES:
            yield OWN_NAMES[name], value
        elif name.startswith("support."):
            yield f"{name.removeprefix('support.')}_{kind}_log_probs", value


def stage_of(name: str) -> str | None:
    """The stage that a recorded tensor belongs to, None for one that is not compared."""
    _, part, *rest = name.split(".", 2)
    if part == "in":
        return None
    if part.startswith("mb"):
        return STAGE_OF.get(rest[0])
    return {"actor": "optimizer", "teacher": "teacher_update"}.get(part, "accumulate")


def compare_update(
    golden: GoldenCase,
    recorded: Tensors,
    truth: UpdateRun,
    actual: UpdateRun,
    spread: dict[str, float] | None = None,
) -> list[Comparison]:
    """Compare every recorded tensor and the gradient norms; a missing tensor is an error.

    `spread` is that of the recording if it is not given.
    """
    wanted = [name for name in recorded if stage_of(name)]
    names = [name for name in wanted if name in actual.tensors]
    spread = spread or relative_spread(recorded, truth.tensors, names)
    # one number may be close to the truth by luck: scalars are judged by the widest distance
    widest = max(spread.values(), default=0.0)
    missing = [name for name in wanted if name not in names]
    found = [
        placed(
            golden,
            n,
            Comparison(stage_of(n) or "", Status.ERROR, golden.id, note=f"{n} is missing"),
        )
        for n in missing
    ]
    for name in names:
        stage = stage_of(name) or ""
        sides = [recorded[name], truth.tensors[name], actual.tensors[name]]
        counts = None
        if name.split(".")[1].startswith("mb"):
            counts = recorded[name.rsplit(".", 1)[0] + ".loss_mask"] != 0
            if stage != "aggregate":
                sides = [side[counts] for side in sides]
        if not sides[0].is_floating_point():
            exact = compare_exact(stage, golden.id, name, sides[2].tolist(), sides[0].tolist())
            found.append(placed(golden, name, exact))
            continue
        empty = counts is not None and not counts.any()
        distance = widest if stage == "aggregate" else spread.get(kind_of(name), 0.0)
        expected, true, value = sides
        compared = compare_tensor(
            stage, golden.id, expected, true, value, distance, excused=bool(empty)
        )
        found.append(placed(golden, name, compared))
    for number, outcome in enumerate(golden.entry["results"]):
        norms = numbers(outcome["metrics"]["actor/grad_norm"])
        expected = torch.tensor(norms, dtype=torch.float32)
        ours = torch.tensor(actual.grad_norms[number], dtype=torch.float32)
        true = torch.tensor(truth.grad_norms[number], dtype=torch.float64)
        compare = partial(compare_norms, golden.id, expected, true, widest)
        found.append(norms_placed(golden, number, compare, (ours, expected)))
    return found


def compare_norms(
    case: str, expected: Tensor, truth: Tensor, spread: float, actual: Tensor
) -> Comparison:
    """Compare the gradient norms of an update, one for each optimizer step."""
    return compare_tensor("accumulate", case, expected, truth, actual, spread)


def numbers(value: Any) -> list[float]:
    """A recorded metric as a list of floats; non-finite ones are recorded as text."""
    return [float(entry) for entry in (value if isinstance(value, list) else [value])]


def kind_of(name: str) -> str:
    """Tensors of a kind share one relative distance: a micro-batch value, gradients, weights."""
    _, part, rest = name.split(".", 2)
    if part.startswith("mb"):
        return rest
    return "grad" if part.startswith("mini") else part


def relative_spread(
    recorded: Mapping[str, Tensor], truth: Tensors, names: list[str]
) -> dict[str, float]:
    """Per kind, the largest distance of the recording from the float64 run ÷ tensor scale."""
    spread: dict[str, float] = {}
    for name in names:
        if recorded[name].is_floating_point():
            error = (recorded[name].double() - truth[name].double()).abs()
            error = error.nan_to_num(nan=0.0, posinf=0.0)
            scale = scale_of(truth[name])
            kind = kind_of(name)
            if scale > 0:
                spread[kind] = max(spread.get(kind, 0.0), error.max().item() / scale)
    return spread


def scale_of(tensor: Tensor) -> float:
    """Largest finite magnitude of a tensor."""
    sizes = tensor.abs().nan_to_num(nan=0.0, posinf=0.0)
    return sizes.max().item() if sizes.numel() else 0.0


def compare_tensor(
    stage: str,
    case: str,
    expected: Tensor,
    truth: Tensor,
    actual: Tensor,
    spread: float,
    *,
    excused: bool = False,
) -> Comparison:
    """Compare with the budget `update_slack · spread · scale` plus roundings, for every element.

    `excused` lets 0 stand for the reference's NaN on a micro-batch in which nothing counts. Within
    a budget that shows no factor of two nothing is said of the value: NOT_COVERED, with the reason.
    """
    epsilon = torch.finfo(expected.dtype).eps
    scale = scale_of(truth)
    bound = TOLERANCES.update_slack * spread + TOLERANCES.update_roundings * epsilon / 2
    bound = bound * scale
    reference = array_of(expected)
    true = np.where(np.isnan(reference), 0.0, reference) if excused else reference
    limit = np.full(reference.shape, bound)
    wanted = Expected(reference, true, limit, epsilon, {EMPTY_BATCH: excused})
    found = compare_numeric(stage, case, array_of(actual), wanted)
    widest = float(wanted.allowed.max(initial=0.0))
    if found.status != Status.PASS or shows_a_factor_of_two(widest, scale):
        return found
    return replace(found, status=Status.NOT_COVERED, note=refusal({"the value": widest / scale}))
