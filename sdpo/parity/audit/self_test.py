"""Tests the harness itself: every known fault of the loss is audited as a candidate.

A fault is killed if each of its shapes is found divergent: as a full trace, as a loss from logits,
and, where it lies in one, as a loss from log-probs. The first stage named must be the fault's own.
All shapes take the path of a user's candidate (`judge` in `audit.py`), in this process.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypedDict

import numpy as np
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily, packaged_family
from sdpo.parity.audit.audit import judge
from sdpo.parity.audit.request import Request
from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.checked_call import Location, LossCandidate
from sdpo.parity.cases.loss_case import LossCase, loss_cases
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.explain.match_faults import evaluation
from sdpo.parity.faults.catalogue import BY_ID, Fault
from sdpo.parity.faults.evaluate_fault import fault_trace, loss_from_log_probs, loss_from_logits
from sdpo.parity.report.run_report import RunReport
from sdpo.settings.determinism import deterministic

_TRACE, _LOGITS, _LOG_PROBS = "trace", "logits", "log-probs"


class FaultyTrace:
    """A fault as a candidate that exposes every stage of the loss."""

    kind = "fault"
    stages: tuple[str, ...] = ORDER
    location: Location | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, fault: Fault) -> None:
        self.name, self.fault = fault.id, fault

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Compute the stage values of the fault; before a broken gradient those that there are."""
        return fault_trace(self.fault.parts, case)


_LIMITED_TAILS = {"near_one_hot", "peaked_tail_near_clamp"}


class MutantRow(TypedDict):
    """A fault in the report of the self-test; `bfloat16` is `found`, or why it is not found."""

    id: str
    name: str
    group: str
    stage: str
    source: str
    killed: bool
    at_its_stage: bool
    verdicts: dict[str, str]
    stages: dict[str, str | None]
    explained_by: dict[str, list[str]]
    bfloat16: str


@dataclass
class _Mutant:
    """What the audits of one fault showed, by shape; `low` at bfloat16 is `found` or why not."""

    fault: Fault
    verdicts: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str | None] = field(default_factory=dict)
    explained_by: dict[str, list[str]] = field(default_factory=dict)
    low: str = ""

    @property
    def killed(self) -> bool:
        """Tell whether each shape was found divergent, or failed where it cannot be compared."""
        return all(verdict in FAILING for verdict in self.verdicts.values())

    @property
    def at_its_stage(self) -> bool:
        """Tell whether the first stage named was the fault's own, in each shape."""
        return all(stage == self.fault.stage for stage in self.stages.values())

    def row(self) -> MutantRow:
        """Report the fault."""
        fault = self.fault
        return {
            "id": fault.id,
            "name": fault.name,
            "group": fault.group,
            "stage": fault.stage,
            "source": fault.source,
            "killed": self.killed,
            "at_its_stage": self.at_its_stage,
            "verdicts": self.verdicts,
            "stages": self.stages,
            "explained_by": self.explained_by,
            "bfloat16": self.low,
        }


def _shapes_of(fault: Fault) -> dict[str, LossCandidate]:
    """Make the candidates of a fault, in all shapes that it can take."""
    shapes: dict[str, LossCandidate] = {
        _TRACE: FaultyTrace(fault),
        _LOGITS: FromLogits(fault.id, loss_from_logits(fault.parts)),
    }
    if fault.after_log_probs:
        shapes[_LOG_PROBS] = FromLogProbs(fault.id, loss_from_log_probs(fault.parts))
    return shapes


def _covering(family: GoldenFamily, dtype: str) -> list[str]:
    """Choose cases of a dtype that together show every pair of settings that matters, by id."""
    shown = {
        golden.id: _features(golden, case)
        for golden, case in zip(family, loss_cases(family), strict=True)
        if golden.config["dtype"] == dtype
    }
    cost = {golden.id: _size(golden) for golden in family}
    missing = set().union(*shown.values())
    covering: list[str] = []
    while missing:
        best = max(shown, key=lambda id_: (len(shown[id_] & missing), -cost[id_]))
        covering.append(best)
        missing -= shown[best]
    return covering


def _features(golden: GoldenCase, case: LossCase) -> set[tuple[object, ...]]:
    """List what a recorded case shows."""
    config, tags = golden.config, golden.tags
    features: set[tuple[object, ...]]
    features = {(case.mode, name, config[name]) for name in ("alpha", "temperature")}
    present = {
        "weights": case.rollout_is_weights is not None,
        "signal": case.self_distillation_mask is not None,
        "ragged": bool((case.loss_mask == 0).any()),
        "empty column": bool((case.loss_mask == 0).all(0).any()),
        "nothing counts": bool((case.loss_mask == 0).all()),
        "several rows": len(case.loss_mask) > 1,
    }
    mode = config["loss_agg_mode"]
    features |= {(name, there, mode) for name, there in present.items()}
    features |= {("is_clip", config["is_clip"], present["weights"]), ("agg", mode)}
    features |= {(case.mode, tag) for tag in tags if tag in ("huge_logits", "k_equals_vocab")}
    return features | {("tag", tag) for tag in tags}


def _size(golden: GoldenCase) -> int:
    """Count the logits of a recorded case."""
    dims = golden.entry["dims"]
    return dims["B"] * dims["T"] * dims["V"]


def subset(family: GoldenFamily, ids: Sequence[str]) -> GoldenFamily:
    """Take some cases of a family, in its order."""
    entries = [entry for entry in family.manifest["cases"] if entry["id"] in ids]
    further = None if family.supplement is None else subset(family.supplement, ids)
    return replace(family, manifest={**family.manifest, "cases": entries}, supplement=further)


@lru_cache(maxsize=1)
def families() -> tuple[GoldenFamily, GoldenFamily]:
    """Choose the cases of the self-test, and those of bfloat16.

    The first are of float32, and of float64 where a tail is at its limit: float32 cannot tell on
    which side of the limit such a tail lies.
    """
    family = packaged_family("loss")
    limited = [
        golden.id
        for golden in family
        if golden.config["dtype"] == "float64" and _LIMITED_TAILS & set(golden.tags)
    ]
    single = _covering(family, "float32") + limited
    return subset(family, single), subset(family, _covering(family, "bfloat16"))


def _audited(fault: Fault, family: GoldenFamily) -> _Mutant:
    """Audit a fault in all its shapes."""
    mutant = _Mutant(fault)
    for shape, candidate in _shapes_of(fault).items():
        run = judged_here(candidate, family)
        mutant.verdicts[shape], mutant.stages[shape] = run.verdict, run.first_stage
        mutant.explained_by[shape] = run.explained_by
    return mutant


def judged_here(candidate: LossCandidate, family: GoldenFamily) -> RunReport:
    """Audit a candidate in this process: a fault keeps no state that another one could show."""
    request = Request(candidate.name)
    return judge(request, candidate, [family], [], lambda *_: None, isolation=False)


def _at_low_precision(fault: Fault, family: GoldenFamily) -> str:
    """Say whether the stages at bfloat16 show a fault: `found`, or why not."""
    acts, candidate = False, FaultyTrace(fault)
    for case in loss_cases(family):
        if judge_loss_case(candidate, case).status in FAILING:
            return "found"
        evaluated = evaluate_case(case)
        faulty = evaluation((fault,), evaluated)
        acts |= faulty is not None and any(
            not np.array_equal(value, evaluated.agreement.reference_values[name], equal_nan=True)
            for name, value in faulty.values.items()
        )
    if acts:
        return "within the budget of bfloat16"
    return fault.inactive or "does nothing on the recorded cases of bfloat16"


def _row_of(fault_id: str) -> MutantRow:
    """Audit one fault; the function that a process of its own runs."""
    with deterministic():
        single, low = families()
        mutant = _audited(BY_ID[fault_id], single)
        mutant.low = _at_low_precision(BY_ID[fault_id], low)
    return mutant.row()


def self_test(ids: Sequence[str], processes: int = 1) -> Iterator[MutantRow]:
    """Audit faults and yield a row for each, in order.

    Args:
        ids: of faults of the loss.
        processes: to share the work; 1 stays in this one.
    """
    if processes == 1:
        yield from map(_row_of, ids)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(_row_of, ids, chunksize=4)


def failures(rows: Sequence[MutantRow]) -> list[str]:
    """Name the faults that survive, or that are found at another stage than their own.

    A stage that is not the fault's own is accepted where the explanation names the fault among
    others of several stages: these faults give the same numbers.
    """
    failed = []
    for row in rows:
        label = f"{row['id']} {row['name']}"
        if not row["killed"]:
            failed.append(f"{label} survives")
        elif wrong := [s for s in row["stages"] if not _stage_accepted(row, s, label)]:
            failed.append(f"{label} found at {row['stages'][wrong[0]]}, not {row['stage']}")
    return failed


def _stage_accepted(row: MutantRow, shape: str, label: str) -> bool:
    """Tell whether a shape was found at its fault's stage, as far as the numbers can tell."""
    others = [name for name in row["explained_by"][shape] if name != label]
    indistinguishable = shape != _TRACE and label in row["explained_by"][shape] and bool(others)
    return row["stages"][shape] == row["stage"] or indistinguishable
