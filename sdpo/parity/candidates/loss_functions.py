"""A loss function as a candidate: what it takes, how it is called; and its usual shape."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor

from sdpo.parity.candidates.argument_names import (
    ALIASES,
    CONFIG_NAMES,
    LOGITS_ARGUMENTS,
    OFFERED,
    OPTIONAL_TENSORS,
)
from sdpo.parity.capabilities.absent_settings import (
    Assumed,
    failing_at_none,
    found_by_trying,
)
from sdpo.parity.capabilities.declared import Capabilities, declared_by
from sdpo.parity.capabilities.reach import Reach, reach_of
from sdpo.parity.cases.callables import location_of, signature_of
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError, checked_call
from sdpo.parity.cases.fresh_inputs import another, as_called
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.runtime.time_limit import TIMEOUT, CallTimeoutError, time_limit

_OBSERVED = ("aggregate", "gradient")
_MOST_HUNG = 2
"""Calls that do not return before none is made any more."""
_IDLE = {
    "sampled": {"alpha", "distillation_topk", "distillation_add_tail"},
    "full_vocab": {"distillation_add_tail"},
}
"""Settings that have no effect on a case of a mode."""


class LossFunction:
    """What both shapes share: which arguments the function takes, and how settings reach it."""

    stages: tuple[str, ...] = _OBSERVED
    inputs: tuple[str, ...] = ()
    passes_inputs: tuple[str, ...] = ("by name",)
    """How the inputs can be passed, of the ways that generated cases ask for."""

    renamed: tuple[str, ...] = ()
    """What was taken as what, before the function had this signature."""

    def __init__(self, name: str, kind: str, function: Callable[..., Any]) -> None:
        self.name, self.kind, self.function = name, kind, function
        self.location = location_of(function)
        parameters = signature_of(function).parameters
        self.takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.takes_positions = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        self.parameters = {
            name: p
            for name, p in parameters.items()
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        self.declared = declared_by(function) or Capabilities()
        self.trying = False
        self.timeout, self.hung = float(TIMEOUT), 0
        self.check_parameters()
        self.aliases = {
            alias: setting
            for alias, setting in ALIASES.items()
            if alias in self.parameters and setting not in self.parameters
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed: of arguments with other names, and of settings without an argument."""
        aliases = [f"argument {a!r} is taken as {name!r}" for a, name in self.aliases.items()]
        return tuple(filter(None, [*self.renamed, *aliases, self.assumed.note]))

    @contextmanager
    def asked_anything(self) -> Iterator[None]:
        """Refuse no case for a while, whatever it asks for."""
        self.trying = True
        try:
            yield
        finally:
            self.trying = False

    @cached_property
    def assumed(self) -> Assumed:
        """What settings are that have no argument, found out by trying."""
        if any(self.takes_config(name) for name in CONFIG_NAMES):
            return Assumed({})
        absent = {name for name in self.needed if not self.gives(name)}
        with self.asked_anything():
            return found_by_trying(self.trace, absent, self.declared.pinned)

    @cached_property
    def never_none(self) -> frozenset[str]:
        """Settings that must have a value, though nothing says so: found out by trying."""
        arguments = {self.aliases.get(name, name): p for name, p in self.parameters.items()}
        silent = {
            name
            for name, p in arguments.items()
            if p.default is not None and not re.search("None|Optional", str(p.annotation))
        }
        with self.asked_anything():
            return failing_at_none(self.trace, silent & set(self.needed))

    @cached_property
    def reach(self) -> Reach | None:
        """What it takes of what generated cases vary, found out by trying."""
        return reach_of(self.trace, {**self.assumed.settings, **self.declared.pinned})

    @property
    def base_settings(self) -> dict[str, object]:
        """The plainest settings that it takes; empty where none was found."""
        return self.reach.base_settings if self.reach else {}

    @property
    def needed(self) -> tuple[str, ...]:
        """The settings that a case is described by, for this shape."""
        return LOSS_SETTINGS

    def takes_config(self, name: str) -> bool:
        """Whether all settings arrive in one argument of this name."""
        return name in self.parameters or (self.takes_anything and name == "config")

    def check_parameters(self) -> None:
        """Refuse a function that needs an argument which no case offers.

        Raises:
            CandidateError: there is such an argument.
        """
        for name, p in self.parameters.items():
            needed = p.default is p.empty and name not in OFFERED
            if needed and not self.is_positional_input(name):
                raise CandidateError(
                    "config",
                    f"needs the argument {name!r}, which a loss is not offered; offered are "
                    f"{', '.join(self.inputs)}, config and the settings by name",
                )

    def is_positional_input(self, name: str) -> bool:
        """Whether a parameter of any name stands for one of the inputs by its position."""
        return False

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Loss and gradient on fresh copies of the inputs."""
        raise NotImplementedError

    def call_on(
        self,
        case: LossCase,
        arguments: Mapping[str, object],
        positional: tuple[object, ...],
        inputs: Mapping[str, Tensor],
        leaves: tuple[Tensor, Tensor | None],
    ) -> Mapping[str, Tensor]:
        """Call the function in the order that the case asks for; arguments as of `checked_call`."""

        def on_other_values() -> None:
            self.trace(another(case))

        if case.call.order == "after another":
            on_other_values()
        around = case.call.order == "around another"
        if self.hung >= _MOST_HUNG:
            raise CandidateError(
                "aggregate",
                f"is not called again: {self.hung} calls did not return within "
                f"{self.timeout:g} s (--timeout)",
            )
        try:
            with time_limit(self.timeout, f"case {case.id}"):
                return checked_call(
                    self.function,
                    arguments,
                    positional,
                    inputs,
                    leaves,
                    call=case.call,
                    between=on_other_values if around else lambda: None,
                )
        except (CallTimeoutError, CandidateError) as error:
            late = isinstance(error, CallTimeoutError) or isinstance(
                error.__cause__, CallTimeoutError
            )
            self.hung += late
            message = f"did not return within {self.timeout:g} s (--timeout)"
            raise (CandidateError("aggregate", message) if late else error) from error

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name."""
        return name in self.parameters or self.takes_anything

    def gives(self, setting: str) -> bool:
        """Whether a setting has an argument of its own, under its name or an alias."""
        return setting in self.parameters or setting in self.aliases.values()

    def settings(self, case: LossCase, names: tuple[str, ...]) -> dict[str, object]:
        """The case's settings as the function takes them: one object, or one argument each."""
        arguments: dict[str, object] = {}
        for name in CONFIG_NAMES:
            if self.takes_config(name):
                arguments[name] = case.config
        for name in names:
            if name in self.parameters:
                arguments[name] = getattr(case.config, name)
        for alias, name in self.aliases.items():
            if name in names:
                arguments[alias] = getattr(case.config, name)
        return arguments

    def refuse_what_is_lacking(self, case: LossCase) -> None:
        """Refuse a case that needs a setting at another value than the loss has, or declares.

        Raises:
            NotCoveredError: there is such a setting.
        """
        if self.trying:
            return
        for name in self.never_none:
            if getattr(case.config, name) is None:
                raise NotCoveredError(f"fails at {name}=None, and does not say that it takes it")
        if lacking := self.declared.lacking(case):
            raise NotCoveredError(f"declared as lacking: {lacking}")
        for name, assumed in self.assumed.settings.items():
            value = getattr(case.config, name)
            if value != assumed and name not in _IDLE.get(case.mode, ()):
                raise NotCoveredError(f"takes no {name}, the case needs {name}={value!r}")

    def optional_tensors(self, case: LossCase) -> dict[str, Tensor | None]:
        """Masks, weights and old log-probs that the function takes, as they are.

        An absent one is passed as None where the parameter has no default.

        Raises:
            NotCoveredError: one that has an effect on the case has no argument.
        """
        given: dict[str, Tensor | None] = {}
        for name in OPTIONAL_TENSORS:
            value = getattr(case, name)
            if value is None:
                parameter = self.parameters.get(name)
                if parameter is not None and parameter.default is parameter.empty:
                    given[name] = None
            elif self.takes(name):
                given[name] = value
            elif _has_effect(case, name, value):
                raise NotCoveredError(f"takes no {name}, the case needs it")
        return given


def _has_effect(case: LossCase, name: str, value: Tensor) -> bool:
    """Whether leaving out an optional tensor would change the loss."""
    if name == "old_log_probs":
        return case.config.is_clip is not None
    return bool((value != 1).any())


class FromLogits(LossFunction):
    """`f(student_logits, teacher_logits, responses, response_mask, *, …, config)`.

    The four inputs are passed by position where they have other names.
    """

    inputs = LOGITS_ARGUMENTS

    def is_positional_input(self, name: str) -> bool:
        """The first four positional parameters are the inputs, whatever their names."""
        places = [n for n, p in self.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        return name in places[: len(LOGITS_ARGUMENTS)]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, "loss from logits", function)
        places = [p for p in self.parameters.values() if p.kind is not p.KEYWORD_ONLY]
        named = all(argument in self.parameters for argument in LOGITS_ARGUMENTS)
        if not named:
            self.passes_inputs = ("by position",)
        elif [p.name for p in places[:4]] == list(LOGITS_ARGUMENTS):
            self.passes_inputs = ("by name", "by position")
        if len(places) < len(LOGITS_ARGUMENTS) and not (named or self.takes_positions):
            raise CandidateError(
                "config",
                f"takes {len(places)} arguments by position; a loss from logits takes "
                f"{', '.join(LOGITS_ARGUMENTS)}",
            )

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Loss and gradient on fresh copies of the inputs."""
        self.refuse_what_is_lacking(case)
        given = as_called(case)
        required = tuple(getattr(given, name) for name in LOGITS_ARGUMENTS)
        optional = self.optional_tensors(given)
        arguments: dict[str, object] = {**optional, **self.settings(case, LOSS_SETTINGS)}
        named = dict(zip(LOGITS_ARGUMENTS, required, strict=True))
        asked = "by position" if case.call.by_position else "by name"
        way = asked if asked in self.passes_inputs else self.passes_inputs[0]
        positional: tuple[object, ...] = ()
        if way == "by position":
            positional = required
        else:
            arguments |= named
        inputs = present(named | optional)
        teacher = given.teacher_logits if case.call.teacher_grad else None
        return self.call_on(case, arguments, positional, inputs, (given.student_logits, teacher))


def present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Those that are not None."""
    return {name: value for name, value in tensors.items() if value is not None}
