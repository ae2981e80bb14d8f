"""The certificate of an audit: how many known faults its own cases would have shown.

A pass is worth what it would have found. Each fault of the loss that the candidate's shape can have
is evaluated on the audit's cases until one of the candidate's stages diverges.
`fault_hint_cases.json` names a case for each fault, to be tried first: a hint, which saves
time and decides nothing; it is written by `python -m sdpo.parity.explain.fault_coverage`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import ORDER, compare_loss
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.faults.catalogue import LOSS_FAULTS, Fault
from sdpo.parity.faults.evaluate_fault import fault_trace

HINTS = Path(__file__).with_name("fault_hint_cases.json")
MOST_TRIES = 256


@cache
def hints() -> Mapping[str, str]:
    """The case to try first, by fault."""
    return json.loads(HINTS.read_text(encoding="utf-8")) if HINTS.is_file() else {}


def certificate(
    stages: Iterable[str], cases: Sequence[LossCase], *, after_log_probs: bool = False
) -> dict[str, Any] | None:
    """How many faults show at the given stages on the given cases.

    Args:
        stages: those that the candidate exposes.
        cases: the loss cases of the audit.
        after_log_probs: only faults of a loss that is given log-probs.

    Returns:
        `tested`, `killed` and the labels of the `survivors`; None if no stage of the loss is
        exposed or there is no case.
    """
    shown = set(stages) & set(ORDER)
    if not shown or not cases:
        return None
    faults = [f for f in LOSS_FAULTS if f.after_log_probs or not after_log_probs]
    survivors = [f.label for f in faults if first_case_showing(f, shown, cases) is None]
    killed = len(faults) - len(survivors)
    return {"tested": len(faults), "killed": killed, "survivors": survivors}


def first_case_showing(fault: Fault, stages: set[str], cases: Sequence[LossCase]) -> str | None:
    """The first case that shows a fault at one of the stages, the hinted one tried first.

    None without a trial where the fault comes after all of the stages.
    """
    if ORDER.index(fault.stage) > max(ORDER.index(stage) for stage in stages):
        return None
    hinted = hints().get(fault.id)
    first = [case for case in cases if case.id == hinted]
    others = sorted((c for c in cases if c.id != hinted), key=lambda c: c.student_logits.numel())
    for case in [*first, *others][:MOST_TRIES]:
        if shows(fault, stages, case):
            return case.id
    return None


def shows(fault: Fault, stages: set[str], case: LossCase) -> bool:
    """Whether a fault diverges at one of the stages on a case."""
    evaluated = evaluate_case(case)
    try:
        trace = fault_trace(fault.parts, case, gradient="gradient" in stages)
    except (BrokenGradientError, CandidateError):
        return True
    seen = {name: value for name, value in trace.items() if name.split(".")[0] in stages}
    found = compare_loss(evaluated, seen)
    return any(comparison.status in FAILING for comparison in found)


def write_hints() -> None:
    """Write the hints from the packaged data, for a candidate that shows only its loss."""
    from sdpo.fixtures import packaged_family
    from sdpo.parity.cases.loss_case import loss_cases
    from sdpo.settings.determinism import deterministic

    with deterministic():
        cases = loss_cases(packaged_family("loss"))
        stages = {"aggregate", "gradient"}
        found = {fault.id: first_case_showing(fault, stages, cases) for fault in LOSS_FAULTS}
    known = {id_: case for id_, case in found.items() if case is not None}
    HINTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_hints()
