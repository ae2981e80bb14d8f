"""A loss function as a candidate, in its two shapes: from logits and from log-probs."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sdpo.parity.cases.callables import location_of, signature_of
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError, checked_call
from sdpo.parity.cases.fresh_inputs import another, as_called
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.reference.loss import log_probs_from_logits, topk_log_probs

_OBSERVED = ("aggregate", "gradient")
_LOGITS_ARGUMENTS = ("student_logits", "teacher_logits", "responses", "response_mask")
_OPTIONAL_TENSORS = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
_LOG_PROB_ARGUMENTS = (
    "student_log_probs",
    "teacher_log_probs",
    "student_topk_log_probs",
    "teacher_topk_log_probs",
    "student_all_log_probs",
    "teacher_all_log_probs",
)
_BEFORE_LOG_PROBS = {"temperature", "distillation_topk"}
NEEDED = {
    "sampled": _LOG_PROB_ARGUMENTS[:2],
    "topk_tail": _LOG_PROB_ARGUMENTS[2:4],
    "topk_renorm": _LOG_PROB_ARGUMENTS[2:4],
    "full_vocab": _LOG_PROB_ARGUMENTS[4:],
}
_CONFIG_NAMES = ("config", "self_distillation_config")
_ABSENT_MEANS = {
    "full_logit_distillation": True,
    "alpha": 0.5,
    "distillation_topk": 100,
    "distillation_add_tail": True,
    "is_clip": None,
    "loss_agg_mode": "token-mean",
    "temperature": 1.0,
}
_ALIASES = {
    "add_tail": "distillation_add_tail",
    "topk": "distillation_topk",
    "top_k": "distillation_topk",
    "k": "distillation_topk",
    "full_logit": "full_logit_distillation",
    "agg_mode": "loss_agg_mode",
    "aggregation": "loss_agg_mode",
    "clip": "is_clip",
    "kl_alpha": "alpha",
    "tau": "temperature",
}
_OFFERED = {
    *_LOGITS_ARGUMENTS,
    *_OPTIONAL_TENSORS,
    *_LOG_PROB_ARGUMENTS,
    *_CONFIG_NAMES,
    *LOSS_SETTINGS,
    *_ALIASES,
}


def is_from_log_probs(function: Callable[..., Any]) -> bool:
    """Whether the parameters have the reference's log-prob names."""
    return any(name in signature_of(function).parameters for name in _LOG_PROB_ARGUMENTS)


class LossFunction:
    """What both shapes share: which arguments the function takes, and how settings reach it."""

    stages: tuple[str, ...] = _OBSERVED
    inputs: tuple[str, ...] = ()
    passes_inputs: tuple[str, ...] = ("by name",)
    """How the inputs can be passed, of the ways that generated cases ask for."""

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
        self.check_parameters()
        self.aliases = {
            alias: setting
            for alias, setting in _ALIASES.items()
            if alias in self.parameters and setting not in self.parameters
        }
        self.notes = tuple(
            f"argument {alias!r} is taken as {setting!r}" for alias, setting in self.aliases.items()
        )

    def check_parameters(self) -> None:
        """Refuse a function that needs an argument which no case offers.

        Raises:
            CandidateError: there is such an argument.
        """
        for name, p in self.parameters.items():
            needed = p.default is p.empty and name not in _OFFERED
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
        return checked_call(
            self.function,
            arguments,
            positional,
            inputs,
            leaves,
            call=case.call,
            between=on_other_values if around else lambda: None,
        )

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name."""
        return name in self.parameters or self.takes_anything

    def gives(self, setting: str) -> bool:
        """Whether a setting has an argument of its own, under its name or an alias."""
        return setting in self.parameters or setting in self.aliases.values()

    def settings(self, case: LossCase, names: tuple[str, ...]) -> dict[str, object]:
        """The case's settings as the function takes them: one object, or one argument each.

        Raises:
            NotCoveredError: a setting that differs from the default has no argument.
        """
        arguments: dict[str, object] = {}
        for name in _CONFIG_NAMES:
            if name in self.parameters or (self.takes_anything and name == "config"):
                arguments[name] = case.config
        for name in names:
            if name in self.parameters:
                arguments[name] = getattr(case.config, name)
        for alias, name in self.aliases.items():
            if name in names:
                arguments[alias] = getattr(case.config, name)
        if not any(name in arguments for name in _CONFIG_NAMES):
            given = set(arguments) | {self.aliases.get(name, name) for name in arguments}
            self.refuse_hidden_settings(case, tuple(n for n in names if n not in given))
        return arguments

    def refuse_hidden_settings(self, case: LossCase, names: tuple[str, ...]) -> None:
        """A setting without an argument is covered where it is off, or at its usual value."""
        for name in names:
            value = getattr(case.config, name)
            if value != _ABSENT_MEANS[name]:
                raise NotCoveredError(f"takes no {name}, the case needs {name}={value!r}")

    def optional_tensors(self, case: LossCase) -> dict[str, Tensor | None]:
        """Masks, weights and old log-probs that the function takes, as they are.

        An absent one is passed as None where the parameter has no default.

        Raises:
            NotCoveredError: one that has an effect on the case has no argument.
        """
        given: dict[str, Tensor | None] = {}
        for name in _OPTIONAL_TENSORS:
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

    inputs = _LOGITS_ARGUMENTS

    def is_positional_input(self, name: str) -> bool:
        """The first four positional parameters are the inputs, whatever their names."""
        places = [n for n, p in self.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        return name in places[: len(_LOGITS_ARGUMENTS)]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, "loss from logits", function)
        places = [p for p in self.parameters.values() if p.kind is not p.KEYWORD_ONLY]
        named = all(argument in self.parameters for argument in _LOGITS_ARGUMENTS)
        if not named:
            self.passes_inputs = ("by position",)
        elif [p.name for p in places[:4]] == list(_LOGITS_ARGUMENTS):
            self.passes_inputs = ("by name", "by position")
        if len(places) < len(_LOGITS_ARGUMENTS) and not (named or self.takes_positions):
            raise CandidateError(
                "config",
                f"takes {len(places)} arguments by position; a loss from logits takes "
                f"{', '.join(_LOGITS_ARGUMENTS)}",
            )

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Loss and gradient on fresh copies of the inputs."""
        given = as_called(case)
        required = tuple(getattr(given, name) for name in _LOGITS_ARGUMENTS)
        optional = self.optional_tensors(given)
        arguments: dict[str, object] = {**optional, **self.settings(case, LOSS_SETTINGS)}
        named = dict(zip(_LOGITS_ARGUMENTS, required, strict=True))
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


class FromLogProbs(LossFunction):
    """A function whose parameters have the reference's names, from `student_log_probs` on.

    Log-probs and support are computed by the reference, so that these stages are not covered; the
    teacher's arrive without gradient, as in the reference.
    """

    inputs = (*_LOG_PROB_ARGUMENTS, "response_mask")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, "loss from log-probs", function)

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Loss and gradient on fresh copies of the inputs."""
        leaf = case.student_logits.detach().clone().requires_grad_(True)
        values = case.call.all_laid_out(self.log_probs(case, leaf))
        for name in NEEDED[case.mode]:
            if not self.takes(name):
                raise NotCoveredError(f"takes no {name}, the case ({case.mode}) needs it")
        tensors = {name: value for name, value in values.items() if self.takes(name)}
        given = as_called(case)
        optional = self.optional_tensors(given)
        tensors["response_mask"] = given.response_mask
        # temperature and K are already in the log-probs
        elsewhere = {"temperature"} if self.gives("distillation_topk") else _BEFORE_LOG_PROBS
        names = tuple(name for name in LOSS_SETTINGS if name not in elsewhere)
        arguments = {**tensors, **optional, **self.settings(case, names)}
        for name in _LOG_PROB_ARGUMENTS:
            parameter = self.parameters.get(name)
            if parameter is None or name in arguments:
                continue
            if parameter.default is parameter.empty:
                arguments[name] = None
        inputs = present(tensors | optional)
        return self.call_on(case, arguments, (), inputs, (leaf, None))

    def log_probs(self, case: LossCase, leaf: Tensor) -> dict[str, Tensor]:
        """Log-probs that the function starts from, with a graph to the student's logits `leaf`."""
        return log_prob_inputs(case, leaf)


def log_prob_inputs(case: LossCase, leaf: Tensor) -> dict[str, Tensor]:
    """The reference's log-probs on a case, with a graph to the student's logits `leaf`."""
    student = leaf / case.config.temperature
    teacher = case.teacher_logits / case.config.temperature
    values = {
        "student_log_probs": log_probs_from_logits(student, case.responses),
        "teacher_log_probs": log_probs_from_logits(teacher, case.responses),
    }
    if case.mode == "full_vocab":
        values["student_all_log_probs"] = student.log_softmax(-1)
        values["teacher_all_log_probs"] = teacher.log_softmax(-1)
    elif case.config.distillation_topk is not None and case.mode != "sampled":
        chosen, indices = topk_log_probs(
            student, case.config.distillation_topk, case.recorded.get("support.indices")
        )
        values["student_topk_log_probs"] = chosen
        values["teacher_topk_log_probs"], _ = topk_log_probs(
            teacher, case.config.distillation_topk, indices
        )
    return values
