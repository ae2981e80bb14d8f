"""A live checkout of the reference: its real loss functions, to verify the recording again.

The transcription in `reference/` and the golden data stand for lasgroup/SDPO at 0e6d5106. Where a
checkout of it can be imported, `sdpo audit verl` runs its functions on the recorded cases.
"""

import importlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.candidates.loss_functions import CONFIG_NAMES, FromLogProbs
from sdpo.parity.cases.callables import location_of
from sdpo.parity.cases.checked_call import CandidateError, Location, guarded
from sdpo.parity.cases.loss_case import LossCase

COMMIT = "0e6d5106abe69f578c63bf38a9394e22905c8773"
CORE_ALGOS = "verl.trainer.ppo.core_algos"
TORCH_FUNCTIONAL = "verl.utils.torch_functional"
LOSS, AGGREGATE, LOG_PROBS = "compute_self_distillation_loss", "agg_loss", "logprobs_from_logits"
FIX = (
    f"git clone https://github.com/lasgroup/SDPO && git -C SDPO checkout {COMMIT[:8]}, then "
    "PYTHONPATH=SDPO sdpo audit verl"
)


class Settings(SimpleNamespace):
    """Settings as attributes and as a mapping, as verl's own configurations allow both."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The setting, or the default if there is none of that name."""
        return getattr(self, name, default)


class LiveVerl(FromLogProbs):
    """`compute_self_distillation_loss`, `agg_loss` and `logprobs_from_logits` of a checkout.

    The support is computed by the transcription: in verl it is a part of the actor's forward pass
    and no function of its own. What reaches `agg_loss` is the stage `importance`.

    Raises:
        CandidateError: no checkout can be imported, or it is another verl than the fork.
    """

    stages = ("log_probs", "importance", "aggregate", "gradient")
    dtypes_are_judged = True

    def __init__(self) -> None:
        self.core, functional = live_module(CORE_ALGOS), live_module(TORCH_FUNCTIONAL)
        self.helper = function_of(functional, LOG_PROBS)
        aggregate = function_of(self.core, AGGREGATE)
        super().__init__("verl", function_of(self.core, LOSS))
        self.notes = (*self.notes, commit_note(self.core))
        places = {
            "log_probs": location_of(self.helper),
            **dict.fromkeys(("importance", "gradient"), self.location),
            "aggregate": location_of(aggregate),
        }
        self.locations: Mapping[str, Location] = MappingProxyType(
            {stage: place for stage, place in places.items() if place is not None}
        )

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on fresh copies of the inputs.

        Raises:
            CandidateError: the checkout's code failed, or its loss does not go through `agg_loss`.
        """
        with seen_matrices(self.core) as seen:
            found = dict(super().trace(case))
        if len(seen) != 1:
            raise CandidateError(
                "importance", f"{LOSS} called {AGGREGATE} {len(seen)} times; expected once"
            )
        with torch.no_grad():
            sides = self.sampled(case, case.student_logits)
        return {
            "log_probs.student": sides["student_log_probs"],
            "log_probs.teacher": sides["teacher_log_probs"],
            "importance": seen[0],
            **found,
        }

    def log_probs(self, case: LossCase, leaf: Tensor) -> dict[str, Tensor]:
        """The transcription's support, and the checkout's log-probs of the sampled tokens."""
        return super().log_probs(case, leaf) | self.sampled(case, leaf)

    def sampled(self, case: LossCase, student: Tensor) -> dict[str, Tensor]:
        """`(B, T)` log-probs of the response tokens on both sides, by the checkout's function."""
        sides = {"student": student, "teacher": case.teacher_logits.detach()}
        return {
            f"{side}_log_probs": guarded(
                "log_probs",
                self.helper,
                logits=logits / case.config.temperature,
                labels=case.responses.clone(),
            )
            for side, logits in sides.items()
        }

    def settings(self, case: LossCase, names: tuple[str, ...]) -> dict[str, Any]:
        """The settings as verl takes them: an object, and the aggregation beside it."""
        given = super().settings(case, names)
        values = Settings(**vars(case.config))
        return given | {name: values for name in CONFIG_NAMES if name in given}


@contextmanager
def seen_matrices(core: ModuleType) -> Iterator[list[Tensor]]:
    """Collect the loss matrices that reach `agg_loss` while the context is open."""
    seen: list[Tensor] = []
    original: Callable[..., Tensor] = getattr(core, AGGREGATE)

    def watched(loss_mat: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(loss_mat.detach().clone())
        return original(loss_mat, *args, **kwargs)

    setattr(core, AGGREGATE, watched)
    try:
        yield seen
    finally:
        setattr(core, AGGREGATE, original)


def live_module(name: str) -> ModuleType:
    """Import a module of the checkout.

    Raises:
        CandidateError: it cannot be imported; the message says why, and what to do.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "verl":
            raise CandidateError("config", f"no checkout of verl found ({error}): {FIX}") from error
        raise CandidateError(
            "config", f"{name} needs the package {package!r}: install it beside the checkout"
        ) from error
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CandidateError("config", f"importing {name} failed with {why}; {FIX}") from error


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function of the checkout.

    Raises:
        CandidateError: there is none, as in other versions of verl than the fork.
    """
    function = getattr(module, name, None)
    if not callable(function):
        raise CandidateError(
            "config",
            f"{module.__name__} has no {name}: another verl than lasgroup/SDPO at {COMMIT[:8]}; "
            f"{FIX}",
        )
    return function


def commit_note(module: ModuleType) -> str:
    """Which commit of the checkout was run, beside the recorded one."""
    folder = Path(module.__file__ or ".").parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = done.stdout.strip() if done.returncode == 0 else ""
    except OSError:
        found = ""
    said = f"commit {found[:12]}" if found else "no git checkout, commit unknown"
    return f"verl: {said}; the golden data are of commit {COMMIT[:12]}"
