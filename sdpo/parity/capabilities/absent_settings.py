"""Finds out by trying what a loss computes where it has no argument for a setting.

The loss is called on two small problems. Absent settings have the values at which the reference's
gradient lies closest in direction, then in size. No faulty loss is as close, and the note says so.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError, NotCoveredError
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase, transcription_trace
from sdpo.parity.truth.tolerances import TOLERANCES
from sdpo.settings.config import SDPOConfig

Trace = Callable[[LossCase], Mapping[str, Tensor]]
Settings = Mapping[str, object]

OFF: Mapping[str, object] = {"temperature": 1.0, "is_clip": None}
"""Settings that a loss without an argument for them leaves out."""

_TRIED: Mapping[str, tuple[object, ...]] = {
    "full_logit_distillation": (True, False),
    "distillation_topk": (None, 100, 20, 10, 8, 16, 32, 50, 64, 128, 5, 4, 2, 1),
    "distillation_add_tail": (True, False),
    "alpha": (0.5, 0.0, 1.0, 0.1, 0.25, 0.75, 0.9),
    "loss_agg_mode": (
        "token-mean",
        "seq-mean-token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
    ),
}
"""The values that are tried, the usual one first."""

_TOPK = 6
_ON: Settings = {"distillation_topk": _TOPK, "is_clip": 2.0}
"""Settings that are off at None, with a value of each."""

_MEANS = "loss_agg_mode"
_VOCABULARY = 160


@dataclass(frozen=True)
class Assumed:
    """The values of settings that a loss has no argument for, and a sentence on them."""

    settings: Settings
    note: str = ""


def found_by_trying(trace: Trace, absent: Collection[str], known: Settings) -> Assumed:
    """Find the values of absent settings.

    Args:
        trace: calls the loss on a case, whatever settings the case asks for.
        absent: settings without an argument, under verl's names.
        known: values that are declared.
    """
    settings = {name: value for name, value in {**OFF, **known}.items() if name in absent}
    tried = [name for name in _TRIED if name in absent and name not in known]
    # only a top-k shows what becomes of the tail
    given = {} if "distillation_topk" in absent else {"distillation_topk": _TOPK}
    far = 0.0
    for ragged in (False, True):
        # only rows of several lengths tell the means apart
        if names := [name for name in tried if (name == _MEANS) == ragged]:
            problem = _problem({**known, **given, **settings}, ragged)
            best, distance = _closest(trace, problem, names)
            settings, far = {**settings, **best}, max(far, distance)
    return Assumed(settings, _note({name: settings[name] for name in tried}, far))


def failing_at_none(trace: Trace, names: Collection[str]) -> frozenset[str]:
    """Name the settings with which the loss fails at None, and does not at a value.

    Args:
        trace: calls the loss on a case, whatever settings the case asks for.
        names: settings whose arguments do not say that they take None.
    """
    return frozenset(
        name
        for name, value in _ON.items()
        if name in names and _fails(trace, name, None) and not _fails(trace, name, value)
    )


def _fails(trace: Trace, name: str, value: object) -> bool:
    """Whether the loss raises at a value of a setting; what it refuses, it does not fail at."""
    others = {other: on for other, on in _ON.items() if other != name}
    failures = 0
    for rest in ({}, others):
        try:
            trace(_problem({**rest, name: value}, ragged=False))
        except CandidateError:
            failures += 1
        except NotCoveredError:
            continue
        except BrokenGradientError:
            return False
        else:
            return False
    return failures > 0


def _closest(trace: Trace, case: LossCase, names: list[str]) -> tuple[Settings, float]:
    """The values of some settings at which the reference comes closest, and how far it is.

    The usual values, infinitely far, where the loss cannot be called or has no gradient.
    """
    usual = {name: _TRIED[name][0] for name in names}
    try:
        actual = trace(case)
    except (BrokenGradientError, CandidateError, NotCoveredError):
        return usual, math.inf
    slope = actual.get("gradient")
    if slope is None or not bool(slope.isfinite().all()) or not bool(slope.any()):
        return usual, math.inf
    sampled = "full_logit_distillation" in names and _reads_responses(trace, case)
    found: list[tuple[tuple[bool, float, bool], Settings]] = []
    for settings in _choices(names):
        if settings.get("full_logit_distillation", not sampled) == sampled:
            continue
        expected = transcription_trace(_with(case, settings))
        distance = _distance(slope.double(), expected["gradient"].double())
        if distance == (TOLERANCES.assumed_setting_distance, False):
            return settings, distance[0]
        # of a mean the loss may tell what a wrong gradient does not
        same = names == [_MEANS] and _same_size(actual["aggregate"], expected["aggregate"])
        found.append(((not same, *distance), settings))
    common = [entry for entry in found if _is_common(entry[1])]
    (other_loss, distance, _), best = min(common, key=lambda entry: entry[0])
    if names == [_MEANS] and other_loss and distance > TOLERANCES.assumed_setting_distance:
        return usual, distance
    return best, distance


def _same_size(actual: Tensor, expected: Tensor) -> bool:
    """Whether two losses are one number but for rounding."""
    gap = (actual.double() - expected.double()).abs()
    return bool(gap <= TOLERANCES.assumed_setting_distance * expected.double().abs())


def _reads_responses(trace: Trace, case: LossCase) -> bool:
    """Whether the loss depends on the sampled tokens, as one of a whole distribution does not."""
    other = replace(case, responses=(case.responses + 1) % _VOCABULARY)
    return not torch.equal(trace(case)["gradient"], trace(other)["gradient"])


def _is_common(settings: Settings) -> bool:
    """Whether a faulty loss may be taken for this: a K and a rare alpha must match exactly."""
    return not settings.get("distillation_topk") and settings.get("alpha", 0.5) in (0.5, 0.0, 1.0)


def _choices(names: list[str]) -> Iterator[Settings]:
    """Every choice of values that means something of its own."""
    for values in product(*(_TRIED[name] for name in names)):
        settings = dict(zip(names, values, strict=True))
        sampled = settings.get("full_logit_distillation") is False
        topk = settings.get("distillation_topk")
        # few losses fix both K and an unusual alpha
        alphas = (1.0,) if sampled else (0.5, 0.0, 1.0) if topk else _TRIED["alpha"]
        if settings.get("alpha", 1.0 if sampled else 0.5) not in alphas or (sampled and topk):
            continue
        whole = sampled or ("distillation_topk" in settings and topk is None)
        if settings.get("distillation_add_tail", True) or not whole:
            yield settings


def _distance(actual: Tensor, expected: Tensor) -> tuple[float, bool]:
    """How far two gradients are apart in direction, and whether their sizes differ."""
    if actual.shape != expected.shape or not bool(expected.any()):
        return math.inf, True
    ratio = float(actual.norm() / expected.norm())
    cosine = float(torch.sum(actual * expected) / actual.norm() / expected.norm())
    near = TOLERANCES.assumed_setting_distance
    return max(1 - cosine, near), abs(math.log(ratio)) > near


def _with(case: LossCase, settings: Settings) -> LossCase:
    """The case at other settings; sampled tokens have alpha 1."""
    changed = {name: getattr(case.config, name) for name in LOSS_SETTINGS} | dict(settings)
    if changed["full_logit_distillation"] is False:
        changed["alpha"] = 1.0
    return replace(case, config=SDPOConfig.from_dict(changed))


def _problem(settings: Settings, ragged: bool) -> LossCase:
    """A well-conditioned problem in float32, its rows of one length or not."""
    generator = torch.Generator().manual_seed(20260)
    shape = (3, 5)
    # eight tokens in three rows: no mean is another one by a factor that a mistake may have
    lengths = torch.tensor([[1], [3], [4]]) if ragged else torch.full((3, 1), 5)
    sampled = settings.get("full_logit_distillation") is False
    usual = {"distillation_topk": None, "is_clip": None, "alpha": 1.0 if sampled else 0.5}
    return LossCase(
        id="found by trying",
        config=SDPOConfig.from_dict({**usual, **settings}),
        student_logits=1.5 * torch.randn(*shape, _VOCABULARY, generator=generator),
        teacher_logits=1.5 * torch.randn(*shape, _VOCABULARY, generator=generator),
        responses=torch.randint(_VOCABULARY, shape, generator=generator),
        response_mask=(torch.arange(5) < lengths).long(),
        old_log_probs=-1 - torch.rand(shape, generator=generator),
    )


def _note(found: Settings, distance: float) -> str:
    """Say what was found, and how close it is where that is not close."""
    if not found:
        return ""
    if found.get("full_logit_distillation") is False:
        found = {n: v for n, v in found.items() if n in ("full_logit_distillation", _MEANS)}
    values = ", ".join(f"{name}={value}" for name, value in found.items())
    how = "found by trying"
    if distance > TOLERANCES.assumed_setting_distance:
        near = f"cosine of the gradients {1 - distance:.2g}" if distance < math.inf else "not seen"
        how = f"the closest by trying, {near}; declare it where it is another"
    return f"has no argument for {', '.join(found)}: taken as {values} ({how})"
