"""What a candidate offers, what can go wrong with one, and one checked call of a loss function."""

import dis
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdpo.parity.cases.call_conditions import PLAIN_CALL, CallConditions
from sdpo.parity.cases.failure import missing
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.cases.returned_values import CPU, loss_in, no_scalar
from sdpo.parity.cases.stages import NAMES
from sdpo.runtime.process_state import state_kept

NO_GRAPH = "the loss has no graph to student_logits; expected a gradient"
INTO_TEACHER = "gradient flows into teacher_logits; expected none"


class CandidateError(Exception):
    """The candidate failed; the message says what happened and what was expected.

    `stage` is where; what belongs to none, as a hook that did not fire, is of `config`.

    Raises:
        ValueError: there is no such stage; a report could not place the failure.
    """

    def __init__(self, stage: str, message: str) -> None:
        if stage not in NAMES:
            raise ValueError(f"stage={stage!r} of {message!r}: must be one of {NAMES}")
        super().__init__(message)
        self.stage = stage


class BrokenGradientError(Exception):
    """The gradient breaks a rule that no budget expresses: no graph, or a path into the teacher.

    `trace` holds the stage values computed before.
    """

    def __init__(self, message: str, trace: Mapping[str, Tensor]) -> None:
        super().__init__(message)
        self.trace = trace


class NotCoveredError(Exception):
    """The case needs something that the candidate does not take."""


@dataclass(frozen=True)
class Location:
    """Where the candidate's source is."""

    file: str
    line: int


class LossCandidate(Protocol):
    """A candidate that computes the loss.

    `stages` are those it exposes.
    """

    name: str
    kind: str
    stages: tuple[str, ...]
    location: Location | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed about it."""
        ...

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values on a case, under the names that `loss_stages` compares.

        Raises:
            CandidateError: the candidate failed.
            BrokenGradientError: no graph to the student, or a gradient into the teacher.
            NotCoveredError: the case needs an argument that the candidate does not take.
        """
        ...


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN included, in the same dtype and shape."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def guarded(stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call code of the candidate; whatever it raises, `SystemExit` included, is its failure.

    Raises:
        CandidateError: the code raised.
        NotCoveredError: a stage says that it does not do this: it raised `NotImplementedError`.
    """
    try:
        return function(*args, **kwargs)
    except ModuleNotFoundError as error:
        raise CandidateError(stage, missing(error.name or str(error))) from error
    except BaseException as error:
        # addresses differ from run to run
        text = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", " ".join(str(error).split()))
        if stage != "config" and _says_not_implemented(error):
            raise NotCoveredError(f"not implemented: {text or 'no message'}") from error
        raise CandidateError(
            stage, f"raised {type(error).__name__}: {text or 'no message'}"
        ) from error


def _says_not_implemented(error: BaseException) -> bool:
    """Whether code raised it by a statement, and no operator of torch did."""
    if isinstance(error, NotCoveredError):
        return True
    trace = error.__traceback__
    if not isinstance(error, NotImplementedError) or trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def scalar_of(result: Any, device: torch.device = CPU) -> Tensor:
    """The loss in what a candidate returned: a scalar, or a tuple that starts with one.

    Raises:
        CandidateError: anything else, a number included; `device` is where the inputs were.
    """
    if problem := no_scalar(result, device):
        raise CandidateError("aggregate", problem)
    return loss_in(result)[0]


def checked_call(
    function: Callable[..., Any],
    arguments: Mapping[str, object],
    positional: tuple[object, ...],
    inputs: Mapping[str, Tensor],
    leaves: tuple[Tensor, Tensor | None],
    *,
    keep_graph: bool = False,
    call: CallConditions = PLAIN_CALL,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """Call a loss function once and take its gradient.

    Args:
        function: the candidate.
        arguments: keyword arguments.
        positional: arguments before them.
        inputs: the tensors among the arguments, which the call must not change.
        leaves: student and teacher tensors to differentiate by; the teacher may be None.
        keep_graph: leave the graph to the leaves to the next call.
        call: what the call stands in, and the gradient that arrives.
        between: done between forward and backward.

    Returns:
        `aggregate`, and `gradient` but for a call under no_grad.

    Raises:
        CandidateError: it raised, returned no scalar, or changed an input.
        BrokenGradientError: no graph to the student, or a gradient into the teacher.
    """
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    student, teacher = leaves
    with state_kept(), call.around():
        result = guarded("aggregate", function, *positional, **arguments)
    loss = scalar_of(result, student.device)
    changed = [name for name, tensor in inputs.items() if not same_bits(tensor, before[name])]
    if changed:
        raise CandidateError("aggregate", f"changed its input {changed[0]} in place")
    trace = {"aggregate": loss.detach()}
    between()
    if call.order == "no_grad":
        return trace
    if not loss.requires_grad:
        raise BrokenGradientError(NO_GRAPH, trace)
    wanted = [student] if teacher is None else [student, teacher]
    gradients = _gradients(loss, wanted, call, keep_graph)
    if gradients[0] is None:
        raise BrokenGradientError(NO_GRAPH, trace)
    if teacher is not None and gradients[1] is not None and bool((gradients[1] != 0).any()):
        raise BrokenGradientError(INTO_TEACHER, trace)
    return trace | {"gradient": gradients[0].detach() / call.incoming}


def _gradients(
    loss: Tensor, wanted: Sequence[Tensor], call: CallConditions, keep_graph: bool
) -> tuple[Tensor | None, ...]:
    """The gradients by some tensors, as they arrive; the second ones where backward comes twice.

    Raises:
        CandidateError: backward raised.
    """
    gradients: tuple[Tensor | None, ...] = ()
    times = 2 if call.order == "backward twice" else 1
    for time in range(times):
        gradients = guarded(
            "gradient",
            torch.autograd.grad,
            loss,
            wanted,
            torch.full_like(loss, call.incoming),
            allow_unused=True,
            retain_graph=keep_graph or time < times - 1,
        )
    return gradients
