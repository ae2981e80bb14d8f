"""Makes the certificate of an audit: how many known faults its own cases would have shown.

A pass is worth what it would have found. Each fault of the loss that the candidate's shape can have
is evaluated on the audit's cases until one of the candidate's stages diverges.
`fault_hint_cases.json` names a case for each fault, to be tried first: a hint, which saves
time and decides nothing; it is written by `python -m sdpo.parity.explain.fault_coverage`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import ORDER, compare_loss
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.explain.explanation_rows import Certificate
from sdpo.parity.faults.catalogue import LOSS_FAULTS, Fault, possible_faults
from sdpo.parity.faults.evaluate_fault import fault_trace

F32 = torch.float32
HINTS = Path(__file__).with_name("fault_hint_cases.json")
MOST_TRIES, FEW_TRIES = 256, 8
"""Cases on which a fault is tried; few where most faults are of what the candidate lacks."""


@cache
def hints() -> Mapping[str, str]:
    """Read which case to try first, by fault."""
    return json.loads(HINTS.read_text(encoding="utf-8")) if HINTS.is_file() else {}


def certificate(
    stages: Iterable[str],
    cases: Sequence[LossCase],
    *,
    after_log_probs: bool = False,
    tries: int = MOST_TRIES,
) -> Certificate | None:
    """Count the faults that show at the given stages on the given cases.

    Args:
        stages: those that the candidate exposes.
        cases: the loss cases in which the candidate was compared.
        after_log_probs: only faults of a loss that is given log-probs.
        tries: on how many cases a fault is tried; one that shows on a further one only survives.

    Returns:
        The counts and the labels of the survivors; None if no stage of the loss is exposed or
        there is no case.
    """
    shown = set(stages) & set(ORDER)
    if not shown or not cases:
        return None
    faults = possible_faults(after_log_probs)
    ordered = sorted(cases, key=lambda case: (case.coarsest_dtype != F32, _elements(case)))
    found = {f.id: _first_case_showing(f, shown, ordered, tries) for f in faults}
    survivors = [f.label for f in faults if found[f.id] is None]
    return Certificate(len(faults), len(faults) - len(survivors), survivors)


def _elements(case: LossCase) -> int:
    return case.student_logits.numel()


def _first_case_showing(
    fault: Fault, stages: set[str], cases: Sequence[LossCase], tries: int = MOST_TRIES
) -> str | None:
    """Find the first case that shows a fault at one of the stages; the hinted one comes first.

    None, without a trial, where the fault comes after all of the stages.
    """
    if ORDER.index(fault.stage) > max(ORDER.index(stage) for stage in stages):
        return None
    hinted = hints().get(fault.id)
    first = [case for case in cases if case.id == hinted]
    others = [case for case in cases if case.id != hinted]
    for case in [*first, *others][:tries]:
        if shows(fault, stages, case):
            return case.id
    return None


def shows(fault: Fault, stages: set[str], case: LossCase) -> bool:
    """Tell whether a fault diverges at one of the stages on a case."""
    try:
        trace = fault_trace(fault.parts, case, gradient="gradient" in stages)
    except (BrokenGradientError, CandidateError):
        return True
    shown = {name: value for name, value in trace.items() if name.split(".")[0] in stages}
    comparisons = compare_loss(evaluate_case(case), shown)
    return any(comparison.status in FAILING for comparison in comparisons)


def _write_hints() -> None:
    """Write the hints from the packaged data, for a candidate that shows only its loss."""
    from sdpo.fixtures import packaged_family
    from sdpo.parity.cases.loss_case import loss_cases
    from sdpo.settings.determinism import deterministic

    with deterministic():
        cases = loss_cases(packaged_family("loss"))
        stages = {"aggregate", "gradient"}
        ordered = sorted(cases, key=_elements)
        first = {fault.id: _first_case_showing(fault, stages, ordered) for fault in LOSS_FAULTS}
    known = {id_: case for id_, case in first.items() if case is not None}
    HINTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write_hints()
