"""Losses of other shapes than the protocol's, as functions that have it.

What an argument means is told by its name. What cannot be told is refused with the command that
writes a wrapper (`sdpo init`).
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.candidates.argument_names import (
    CONFIG_NAMES,
    INPUT_NAMES,
    LOGITS_ARGUMENTS,
    setting_of,
)
from sdpo.parity.cases.callables import signature_of
from sdpo.parity.cases.checked_call import NotCoveredError
from sdpo.parity.cases.loss_case import LOSS_SETTINGS

_IGNORED = -100
_LABELS = "labels"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Matched:
    """What each parameter of a loss is given.

    Attributes:
        given: by parameter, an input, a setting or `config`, under verl's names.
        settings_class: the class of an own configuration object; None without one.
        unknown: parameters that must be given, and are none of these.
    """

    given: Mapping[str, str]
    settings_class: Callable[..., object] | None
    unknown: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether both sides are known, and nothing is missing."""
        return not self.unknown and {"student_logits", "teacher_logits"} <= {*self.given.values()}

    @property
    def notes(self) -> list[str]:
        """Say what was taken as what, where the names differ."""
        renamed = [(name, meaning) for name, meaning in self.given.items() if name != meaning]
        return [f"argument {name!r} is taken as {meaning!r}" for name, meaning in renamed]


def meaning_of(name: str) -> str:
    """Tell what a parameter of this name is given, under verl's names; empty if unknown."""
    for meaning, names in INPUT_NAMES.items():
        if name in names:
            return meaning
    return "config" if name in CONFIG_NAMES else setting_of(name)


def matched(function: Callable[..., Any]) -> Matched:
    """Match the parameters of a loss by their names."""
    given: dict[str, str] = {}
    unknown: list[str] = []
    settings_class = None
    hints = _hints(function)
    for name, p in signature_of(function).parameters.items():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        kind = hints.get(name)
        if meaning_of(name) in ("config", "") and _is_settings_class(kind):
            given[name], settings_class = "config", kind
        elif meaning := meaning_of(name):
            given[name] = meaning
        elif p.default is p.empty:
            unknown.append(name)
    return Matched(given, settings_class, tuple(unknown))


def needs_wrapping(function: Callable[..., Any], found: Matched) -> bool:
    """Whether a loss cannot be called as the protocol says: inputs elsewhere, an own config."""
    parameters = signature_of(function).parameters
    places = [name for name, p in parameters.items() if p.kind in _POSITIONAL]
    named = all(argument in parameters for argument in LOGITS_ARGUMENTS)
    # a function of any arguments is given the protocol's
    anything = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    here = [meaning_of(name) for name in places[:4]]
    in_place = len(here) == len(LOGITS_ARGUMENTS) and all(
        meaning in ("", argument) for meaning, argument in zip(here, LOGITS_ARGUMENTS, strict=True)
    )
    hidden = {"student_weight", "teacher_weight"} & set(found.given.values())
    return found.settings_class is not None or bool(hidden) or not (named or in_place or anything)


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Annotations of a function; none where they cannot be resolved."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return typing.get_type_hints(target)
    except (TypeError, NameError, AttributeError):
        return {}


def _is_settings_class(kind: object) -> bool:
    """Whether an annotation is a class of settings: all that it must be given is known."""
    if not inspect.isclass(kind) or kind.__module__ in ("builtins", "typing", "torch"):
        return False
    return bool(_settings_of(kind))


def _settings_of(kind: Callable[..., object]) -> dict[str, str]:
    """Settings that a class takes, by its own names; none if it must be given anything else."""
    found: dict[str, str] = {}
    for name, p in signature_of(kind).parameters.items():
        if meaning := setting_of(name):
            found[name] = meaning
        elif p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            return {}
    return found


def wrapped(function: Callable[..., Any], found: Matched) -> Callable[..., Any]:
    """Give a loss the protocol's signature: inputs and settings by verl's names.

    Raises when called:
        NotCoveredError: the case has padding and the loss has neither mask nor labels, or an
            infinite logit and the loss is given hidden states.
    """
    meanings = set(found.given.values())
    settings = set(LOSS_SETTINGS) & meanings
    if found.settings_class is not None:
        settings |= set(_settings_of(found.settings_class).values())
    optional = set(INPUT_NAMES) & meanings - {*LOGITS_ARGUMENTS, "student_weight", "teacher_weight"}
    names = [*LOGITS_ARGUMENTS, *sorted(optional - {_LABELS}), *sorted(settings)]
    if found.settings_class is None and "config" in meanings:
        names.append("config")

    @functools.wraps(function)
    def loss(**values: Any) -> Any:
        return _loss_of(function(**_arguments(found, values)))

    kinds = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kinds) for name in names]
    loss.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return loss


def _arguments(found: Matched, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a loss, under its own names."""
    meanings, mask = set(found.given.values()), values["response_mask"]
    if not meanings & {"response_mask", _LABELS} and not bool((mask != 0).all()):
        raise NotCoveredError("takes no mask, the case has tokens that do not count")
    known = dict(values)
    known[_LABELS] = torch.where(mask != 0, values["responses"], _IGNORED)
    if "student_weight" in meanings:
        student, teacher = values["student_logits"], values["teacher_logits"]
        if not bool(student.isfinite().all() and teacher.isfinite().all()):
            raise NotCoveredError("takes hidden states, and none gives an infinite logit")
        if torch.is_autocast_enabled("cpu"):
            raise NotCoveredError("takes hidden states, whose product autocast rounds")
        # the product of hidden states and this head is exactly the case's logits
        known["student_weight"] = torch.eye(student.shape[-1], dtype=student.dtype)
        known["teacher_weight"] = torch.eye(teacher.shape[-1], dtype=teacher.dtype)
    if found.settings_class is not None:
        names = _settings_of(found.settings_class)
        known["config"] = found.settings_class(**{n: values[m] for n, m in names.items()})
    return {name: known[meaning] for name, meaning in found.given.items() if meaning in known}


def _loss_of(result: Any) -> Any:
    """The loss in a mapping or object that holds it as `loss`; anything else as it is."""
    if isinstance(result, Mapping) and "loss" in result:
        return result["loss"]
    return getattr(result, "loss", result) if not isinstance(result, (Tensor, tuple)) else result


def per_call(kind: type) -> Callable[..., Any]:
    """A class whose settings are arguments of its `__init__`, as one function of all of them.

    Each call makes an object; parameters that are no settings keep their defaults.
    """
    call = kind.forward if issubclass(kind, torch.nn.Module) else kind.__call__
    made = signature_of(kind).parameters
    own = {name for name in made if meaning_of(name) in {*LOSS_SETTINGS, "config"}}
    inputs = list(signature_of(call).parameters.values())[1:]

    @functools.wraps(call)
    def loss(*args: Any, **given: Any) -> Any:
        settings = {name: given.pop(name) for name in own & given.keys()}
        return kind(**settings)(*args, **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [p.replace(kind=keyword) for name, p in made.items() if name in own]
    loss.__signature__ = inspect.Signature([*inputs, *extra])  # type: ignore[attr-defined]
    return loss
