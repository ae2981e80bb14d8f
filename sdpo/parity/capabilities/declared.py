"""Knobs that the author of a loss declares: a decorator, or a table in pyproject.toml."""

import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct, structs

if TYPE_CHECKING:
    from sdpo.parity.cases.loss_case import LossCase

_ATTRIBUTE = "sdpo_capabilities"
_Loss = TypeVar("_Loss", bound=Callable[..., object])
Numbers = bool | frozenset[float]
"""Whether a setting is there at all, or the values that it may have."""


class CapabilitiesError(ValueError):
    """A declaration that cannot be read; the message names value, rule and fix."""


class Capabilities(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a loss can be asked; what is left out, it takes.

    Attributes:
        sampled: sampled tokens (`full_logit_distillation=False`).
        full_vocabulary: every entry of the vocabulary (no `distillation_topk`).
        topk: the student's top-k; a set of numbers for a loss that knows only these K.
        tail: a top-k with the rest of the mass as one more entry.
        renormalised: a top-k without it.
        alpha: the values of `alpha`; None for any.
        temperature: another than 1; a set for a loss that knows only these.
        is_clip: a ratio to `old_log_probs`; a set for a loss that knows only these caps.
        loss_agg_mode: the means; None for all four.
        rollout_is_weights: weights of the rollout correction.
        self_distillation_mask: rows without a teacher.
    """

    sampled: bool = True
    full_vocabulary: bool = True
    topk: Numbers = True
    tail: bool = True
    renormalised: bool = True
    alpha: frozenset[float] | None = None
    temperature: Numbers = True
    is_clip: Numbers = True
    loss_agg_mode: frozenset[str] | None = None
    rollout_is_weights: bool = True
    self_distillation_mask: bool = True

    @property
    def pinned(self) -> dict[str, object]:
        """The settings that can have one value only, under verl's names."""
        pinned: dict[str, object] = {}
        if not (self.full_vocabulary or self.tail or self.renormalised):
            pinned["full_logit_distillation"] = False
        elif not self.sampled:
            pinned["full_logit_distillation"] = True
        if self.tail != self.renormalised:
            pinned["distillation_add_tail"] = self.tail
        if self.topk is False or not (self.tail or self.renormalised):
            pinned["distillation_topk"] = None
        sets = {"alpha": self.alpha, "loss_agg_mode": self.loss_agg_mode}
        sets |= {} if self.full_vocabulary else {"distillation_topk": self.topk}
        sets |= {"temperature": self.temperature}
        for name, values in sets.items():
            if isinstance(values, frozenset) and len(values) == 1:
                pinned[name] = next(iter(values))
        return pinned

    def lacking(self, case: "LossCase") -> str:
        """Name what a case needs and the loss lacks; empty if there is nothing."""
        config, mode = case.config, case.mode
        modes = {"sampled": self.sampled, "full_vocab": self.full_vocabulary}
        modes |= {"topk_tail": self.tail, "topk_renorm": self.renormalised}
        weights, rows = case.rollout_is_weights, case.self_distillation_mask
        needed = {
            f"mode {mode}": modes[mode],
            f"distillation_topk={config.distillation_topk}": not mode.startswith("topk")
            or _takes(self.topk, config.distillation_topk, None),
            f"alpha={config.alpha:g}": mode == "sampled"
            or self.alpha is None
            or config.alpha in self.alpha,
            f"temperature={config.temperature:g}": _takes(self.temperature, config.temperature, 1),
            f"is_clip={config.is_clip}": _takes(self.is_clip, config.is_clip, None),
            config.loss_agg_mode: self.loss_agg_mode is None
            or config.loss_agg_mode in self.loss_agg_mode,
            "rollout_is_weights": self.rollout_is_weights or weights is None,
            "self_distillation_mask": self.self_distillation_mask or rows is None,
        }
        return ", ".join(name for name, taken in needed.items() if not taken)


def _takes(declared: Numbers, value: float | None, off: float | None) -> bool:
    """Whether a setting may have a value; `off` is the one that leaves it out."""
    if isinstance(declared, bool):
        return declared or value == off
    return value in declared


def capabilities(**knobs: object) -> Callable[[_Loss], _Loss]:
    """Declare what a loss can be asked, for audits of it: `@sdpo.capabilities(alpha={0.5})`.

    Cases that need anything else are NOT_COVERED, and the report lists what is lacking. Keywords
    are the fields of `Capabilities`.

    Raises:
        CapabilitiesError: an unknown knob, or a value that it cannot have.
    """
    declared = checked(knobs, "capabilities")

    def decorate(loss: _Loss) -> _Loss:
        setattr(loss, _ATTRIBUTE, declared)
        return loss

    return decorate


def checked(knobs: Mapping[str, object], where: str) -> Capabilities:
    """Read a declaration.

    Raises:
        CapabilitiesError: an unknown knob, or a value that it cannot have; `where` is named.
    """
    known = structs.fields(Capabilities)
    unknown = sorted(set(knobs) - {field.name for field in known})
    if unknown:
        names = ", ".join(field.name for field in known)
        raise CapabilitiesError(f"{where}: unknown {', '.join(unknown)}; knobs are {names}")
    plain = {name: _plain(value) for name, value in knobs.items()}
    try:
        return msgspec.convert(plain, Capabilities)
    except msgspec.ValidationError as error:
        raise CapabilitiesError(f"{where}: {error}") from error


def _plain(value: object) -> object:
    """A set, list or single value as a list; True, False and None as they are."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Collection) and not isinstance(value, str):
        return list(value)
    return [value]


def declared_by(candidate: object) -> Capabilities | None:
    """Return what the decorator said of a candidate; None without one."""
    return getattr(candidate, _ATTRIBUTE, None)


def declared_in_project(name: str, folder: Path) -> Capabilities | None:
    """Read `[tool.sdpo.capabilities."NAME"]` of the folder's pyproject.toml; None without one.

    Raises:
        CapabilitiesError: the file is no TOML, or the table has an unknown knob or value.
    """
    file = folder / "pyproject.toml"
    if not file.is_file():
        return None
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CapabilitiesError(f"{file} is not TOML: {error}") from error
    table = tool.get("sdpo", {}).get("capabilities", {}).get(name)
    where = f'{file.name} [tool.sdpo.capabilities."{name}"]'
    return None if table is None else checked(table, where)
