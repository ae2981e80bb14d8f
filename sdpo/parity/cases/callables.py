"""A candidate's function: what it takes, where it is defined, and how it is called by names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sdpo.parity.cases.checked_call import CandidateError, Location, guarded


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Signature of a function, callable object or module; `(*args, **kwargs)` if it has none."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def location_of(function: Any) -> Location | None:
    """Where a candidate is defined, None if Python does not know."""
    target = function
    if isinstance(function, torch.nn.Module):
        target = type(function).forward
    elif not (inspect.isroutine(function) or inspect.isclass(function)):
        target = function if inspect.ismodule(function) else type(function).__call__
    target = inspect.unwrap(target) if callable(target) else target
    try:
        file = inspect.getsourcefile(target)
        line = 1 if inspect.ismodule(target) else inspect.getsourcelines(target)[1]
    except (TypeError, OSError):
        return None
    return Location(file, line) if file else None


def call_by_name(stage: str, function: Callable[..., Any], offered: Mapping[str, object]) -> Any:
    """Call a stage function with those of the offered arguments that it takes.

    Raises:
        CandidateError: it raised, or needs an argument that the stage does not offer.
    """
    parameters = signature_of(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return guarded(stage, function, **offered)
    named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    unknown = [p.name for p in named if p.default is p.empty and p.name not in offered]
    if unknown:
        raise CandidateError(
            stage, f"needs the argument {unknown[0]!r}; this stage offers {', '.join(offered)}"
        )
    return guarded(stage, function, **{p.name: offered[p.name] for p in named if p.name in offered})
