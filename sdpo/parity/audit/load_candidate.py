"""From what the user typed to a candidate."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sdpo.parity.candidates.implementations import Own, Transcription
from sdpo.parity.candidates.live_verl import LiveVerl
from sdpo.parity.candidates.log_prob_functions import FromLogProbs, is_from_log_probs
from sdpo.parity.candidates.loss_functions import FromLogits, LossFunction
from sdpo.parity.candidates.other_shapes import (
    matched,
    meaning_of,
    needs_wrapping,
    per_call,
    wrapped,
)
from sdpo.parity.candidates.stage_functions import StageFunctions
from sdpo.parity.capabilities.declared import (
    Capabilities,
    CapabilitiesError,
    declared_in_project,
)
from sdpo.parity.cases.callables import location_of, signature_of
from sdpo.parity.cases.checked_call import CandidateError, LossCandidate, guarded
from sdpo.parity.cases.loss_case import LOSS_SETTINGS
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.runtime.time_limit import TIMEOUT

BUILT_IN = {"sdpo": Own, "reference": Transcription, "verl": LiveVerl}
TRAINERS = {
    "sdpo-trainer": "sdpo.parity.trainers.adapters.sdpo_trainer:OwnTrainer",
    "trl": "sdpo.parity.trainers.adapters.trl:TRL",
    "sdpo-rl": "sdpo.parity.trainers.adapters.sdpo_rl:SdpoRl",
}


def load_candidate(
    name: str, capabilities: Capabilities | None = None, timeout: float = TIMEOUT
) -> LossCandidate | TrainerAdapter:
    """Load the candidate `name`: built in, `FILE.py:attr`, `pkg.mod:attr`, or a module alone.

    Args:
        name: as the user typed it.
        capabilities: what a loss function can be asked; else what its decorator says, or the
            table `[tool.sdpo.capabilities]` of pyproject.toml in the present folder.
        timeout: seconds that a call of a loss function may take; 0 for any time.

    Raises:
        CandidateError: it cannot be found, imported, or used as a candidate.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name in TRAINERS:
        return find(TRAINERS[name])()
    candidate = _adapt(name, find(name))
    if isinstance(candidate, LossFunction):
        candidate.timeout = timeout
        candidate.declared = capabilities or _in_project(name) or candidate.declared
    return candidate


def _in_project(name: str) -> Capabilities | None:
    """What pyproject.toml of the present folder says of a candidate; None if nothing.

    Raises:
        CandidateError: the table cannot be read.
    """
    try:
        return declared_in_project(name, Path.cwd())
    except CapabilitiesError as error:
        raise CandidateError("config", str(error)) from error


def packaged_bases(candidate: LossCandidate | TrainerAdapter) -> tuple[str, ...]:
    """Name the packaged trainers whose adapter a candidate's class is or derives from."""
    classes = {f"{kind.__module__}:{kind.__qualname__}" for kind in type(candidate).__mro__}
    return tuple(name for name, path in TRAINERS.items() if path in classes)


def find(name: str) -> Any:
    """Import the module of a candidate and get its attribute.

    Raises:
        CandidateError: no such file, module or attribute, or importing it failed.
    """
    name = name.replace("::", ":")  # as pytest writes it
    target, _, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    path = Path(target)
    is_file = path.suffix == ".py" or path.is_file()
    module = _import_file(path) if is_file else _import_module(target)
    value: Any = module
    for step in filter(None, attribute.split(".")):
        if not hasattr(value, step):
            known = [key for key in vars(module) if not key.startswith("_")]
            raise CandidateError(
                "config", f"{target} has no attribute {attribute!r}; it has {known}"
            )
        value = getattr(value, step)
    return value


def _import_file(path: Path) -> ModuleType:
    """Import a file, with its folder first on the path so that its own imports are found.

    Raises:
        CandidateError: no such file, or importing it failed.
    """
    if not path.is_file():
        raise CandidateError("config", f"no file {path}; give FILE.py:attr or pkg.mod:attr")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CandidateError("config", f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        guarded("config", spec.loader.exec_module, module)
    except CandidateError as error:
        if isinstance(error.__cause__, ImportError) and "relative import" in str(error):
            return _import_of_package(path.resolve())
        raise
    return module


def _import_of_package(path: Path) -> ModuleType:
    """Import a file that imports from its package, as a module of that package.

    Raises:
        CandidateError: importing it failed.
    """
    names, folder = [path.stem, path.parent.name], path.parent.parent
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    return guarded("config", importlib.import_module, ".".join(reversed(names)))


def _import_module(name: str) -> ModuleType:
    """Import a module by name, from the present folder too.

    Raises:
        CandidateError: there is none, or importing it failed.
    """
    sys.path.insert(0, str(Path.cwd()))
    known = all(word.isidentifier() for word in name.split("."))
    if known and "." not in name:
        known = guarded("config", importlib.util.find_spec, name) is not None
    if not known:
        raise CandidateError(
            "config",
            f"no module is called {name!r}; built in are {[*BUILT_IN, *TRAINERS]}, others are "
            "given as FILE.py:attr or pkg.mod:attr",
        )
    return guarded("config", importlib.import_module, name)


def _adapt(name: str, value: Any) -> LossCandidate | TrainerAdapter:
    """Wrap a function, callable object or module by what it looks like; a trainer adapter stays.

    Raises:
        CandidateError: it is neither callable nor has functions named as the stages.
    """
    if inspect.isclass(value):
        value = _of_class(value)
    if inspect.ismodule(value):
        value = _of_module(name, value)
    if isinstance(value, TrainerAdapter):
        value.location = value.location or location_of(type(value).run)
        return value
    if callable(value):
        return _loss_function(name, value)
    if any(callable(getattr(value, stage, None)) for stage in NAMES):
        return StageFunctions(name, value)
    functions = _functions_of(value)
    such = f", such as {name.rstrip(':')}:{functions[-1]}" if functions else ""
    raise CandidateError(
        "config",
        f"{type(value).__name__} is no candidate: give a loss function{such}, or a module or "
        f"object with functions named as the stages ({', '.join(NAMES)})",
    )


def _of_class(kind: type) -> Any:
    """Make an object of a class, or a function that makes one with the settings of each call.

    Raises:
        CandidateError: making it failed.
    """
    known = {meaning_of(name) for name in signature_of(kind).parameters}
    if not issubclass(kind, TrainerAdapter) and known & {*LOSS_SETTINGS, "config"}:
        return per_call(kind)
    return guarded("config", kind)


def _of_module(name: str, module: ModuleType) -> Any:
    """The loss that a file or module defines, where no attribute says which; else the module.

    Raises:
        CandidateError: it defines several functions of which none is the loss by its name.
    """
    defined = _functions_of(module)
    if not defined or set(defined) & set(NAMES):
        return module
    losses = [function for function in defined if "loss" in function]
    if not losses and any(callable(getattr(module, stage, None)) for stage in NAMES):
        return module
    losses = losses or defined
    if len(losses) == 1:
        return getattr(module, losses[0])
    names = ", ".join(f"{name.rstrip(':')}:{function}" for function in losses)
    raise CandidateError("config", f"which function is the loss? Give one of {names}")


def _loss_function(name: str, function: Callable[..., Any]) -> LossFunction:
    """Wrap a loss function by its shape.

    Raises:
        CandidateError: it needs an argument that no case offers.
    """
    if is_from_log_probs(function):
        return FromLogProbs(name, function)
    found = matched(function)
    if not needs_wrapping(function, found):
        return FromLogits(name, function)
    if not found.usable:
        missing = ", ".join(found.unknown) or "the student's and the teacher's logits"
        raise CandidateError(
            "config",
            f"cannot tell what to give {missing} of {name}; `sdpo init {name}` writes a wrapper",
        )
    candidate = FromLogits(name, wrapped(function, found))
    candidate.location = location_of(function)
    candidate.renamed = tuple(found.notes)
    return candidate


def _functions_of(value: Any) -> list[str]:
    """Name the public functions that a module defines itself; none of anything else."""
    if not inspect.ismodule(value):
        return []
    members = inspect.getmembers_static(value, inspect.isfunction)
    defined = [name for name, function in members if function.__module__ == value.__name__]
    return [name for name in defined if not name.startswith("_")]
