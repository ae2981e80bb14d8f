"""The self-test of the harness: every known fault of the loss is audited as a candidate.

A fault is killed if each of its shapes is found divergent: as a full trace, as a loss from logits,
and, where it lies in one, as a loss from log-probs. The first stage named must be the fault's own.
All shapes take the path of a user's candidate (`audit.judge`), in this process.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from sdpo.fixtures import GoldenFamily, packaged_family
from sdpo.parity.audit.audit import judge, judged
from sdpo.parity.audit.request import Request
from sdpo.parity.candidates.loss_functions import FromLogits, FromLogProbs
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

TRACE, LOGITS, LOG_PROBS = "trace", "logits", "log-probs"


class FaultyTrace:
    """A fault as a candidate that exposes every stage of the loss."""

    kind = "fault"
    stages: tuple[str, ...] = ORDER
    location: Location | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, fault: Fault) -> None:
        self.name, self.fault = fault.id, fault

    def trace(self, case: LossCase) -> Mapping[str, Tensor]:
        """Stage values of the fault; those computed before a broken gradient are kept."""
        return fault_trace(self.fault.parts, case)


LIMITED_TAILS = {"near_one_hot", "peaked_tail_near_clamp"}


@dataclass
class Mutant:
    """What the audits of one fault showed, by shape; `low` at bfloat16 is `found` or why not."""

    fault: Fault
    verdicts: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str | None] = field(default_factory=dict)
    explained_by: dict[str, list[str]] = field(default_factory=dict)
    low: str = ""

    @property
    def killed(self) -> bool:
        """Whether each shape was found divergent, or failed where it cannot be compared."""
        return all(verdict in FAILING for verdict in self.verdicts.values())

    @property
    def at_its_stage(self) -> bool:
        """Whether the first stage named was the fault's own, in each shape."""
        return all(stage == self.fault.stage for stage in self.stages.values())

    def row(self) -> dict[str, Any]:
        """The fault in the report."""
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


def shapes_of(fault: Fault) -> dict[str, LossCandidate]:
    """A fault in all shapes that it can take."""
    shapes: dict[str, LossCandidate] = {
        TRACE: FaultyTrace(fault),
        LOGITS: FromLogits(fault.id, loss_from_logits(fault.parts)),
    }
    if fault.after_log_probs:
        shapes[LOG_PROBS] = FromLogProbs(fault.id, loss_from_log_probs(fault.parts))
    return shapes


def covering(family: GoldenFamily, dtype: str) -> list[str]:
    """Ids of cases of a dtype that together show every pair of settings that matters."""
    shown = {
        golden.id: features(golden.entry, case)
        for golden, case in zip(family, loss_cases(family), strict=True)
        if golden.config["dtype"] == dtype
    }
    cost = {golden.id: size(golden.entry) for golden in family}
    missing = set().union(*shown.values())
    chosen: list[str] = []
    while missing:
        best = max(shown, key=lambda id_: (len(shown[id_] & missing), -cost[id_]))
        chosen.append(best)
        missing -= shown[best]
    return chosen


def features(entry: Mapping[str, Any], case: LossCase) -> set[tuple[Any, ...]]:
    """What a recorded case shows."""
    config = entry["config"]
    found = {(case.mode, name, config[name]) for name in ("alpha", "temperature")}
    given = {
        "weights": case.rollout_is_weights is not None,
        "signal": case.self_distillation_mask is not None,
        "ragged": bool((case.loss_mask == 0).any()),
        "empty column": bool((case.loss_mask == 0).all(0).any()),
        "nothing counts": bool((case.loss_mask == 0).all()),
        "several rows": len(case.loss_mask) > 1,
    }
    found |= {(feature, there, config["loss_agg_mode"]) for feature, there in given.items()}
    found |= {("is_clip", config["is_clip"], given["weights"]), ("agg", config["loss_agg_mode"])}
    found |= {(case.mode, tag) for tag in entry["tags"] if tag in ("huge_logits", "k_equals_vocab")}
    return found | {("tag", tag) for tag in entry["tags"]}


def size(entry: Mapping[str, Any]) -> int:
    """Number of logits of a recorded case."""
    dims = entry["dims"]
    return dims["B"] * dims["T"] * dims["V"]


def subset(family: GoldenFamily, ids: Sequence[str]) -> GoldenFamily:
    """Some cases of a family, in its order."""
    entries = [entry for entry in family.manifest["cases"] if entry["id"] in ids]
    further = None if family.supplement is None else subset(family.supplement, ids)
    return replace(family, manifest={**family.manifest, "cases": entries}, supplement=further)


@lru_cache(maxsize=1)
def families() -> tuple[GoldenFamily, GoldenFamily]:
    """The cases of the self-test, and those of bfloat16.

    The first are of float32, and of float64 where a tail is at its limit: float32 cannot tell on
    which side of the limit such a tail lies.
    """
    family = packaged_family("loss")
    limited = [
        golden.id
        for golden in family
        if golden.config["dtype"] == "float64" and LIMITED_TAILS & set(golden.tags)
    ]
    single = covering(family, "float32") + limited
    return subset(family, single), subset(family, covering(family, "bfloat16"))


def audited(fault: Fault, family: GoldenFamily) -> Mutant:
    """Audit a fault in all its shapes."""
    mutant = Mutant(fault)
    for shape, candidate in shapes_of(fault).items():
        run = judged_here(candidate, family)
        mutant.verdicts[shape], mutant.stages[shape] = run.verdict, run.first_stage
        mutant.explained_by[shape] = run.explained_by
    return mutant


def judged_here(candidate: LossCandidate, family: GoldenFamily) -> RunReport:
    """The audit of a candidate on some cases; a fault keeps no state that a process could hide."""
    request = Request(candidate.name)
    return judge(request, candidate, [family], [], lambda *_: None, isolation=False)


def at_low_precision(fault: Fault, family: GoldenFamily) -> str:
    """`found` if the stages at bfloat16 show a fault, else why not."""
    acts, candidate = False, FaultyTrace(fault)
    for case in loss_cases(family):
        if judged(candidate, case).status in FAILING:
            return "found"
        evaluated, given = evaluate_case(case), evaluation((fault,), evaluate_case(case))
        acts |= given is not None and any(
            not np.array_equal(value, evaluated.agreement.reference_values[name], equal_nan=True)
            for name, value in given.values.items()
        )
    if acts:
        return "within the budget of bfloat16"
    return fault.inactive or "does nothing on the recorded cases of bfloat16"


def row_of(fault_id: str) -> dict[str, Any]:
    """Audit one fault; the function that a process of its own runs."""
    with deterministic():
        single, low = families()
        mutant = audited(BY_ID[fault_id], single)
        mutant.low = at_low_precision(BY_ID[fault_id], low)
    return mutant.row()


def self_test(ids: Sequence[str], processes: int = 1) -> Iterator[dict[str, Any]]:
    """Audit faults and yield a row for each, in order.

    Args:
        ids: of faults of the loss.
        processes: to share the work; 1 stays in this one.
    """
    if processes == 1:
        yield from map(row_of, ids)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(row_of, ids, chunksize=4)


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which faults survive, or were found at another stage without being told apart.

    A stage that is not the fault's own is accepted where the explanation names the fault among
    others of several stages: these faults give the same numbers.
    """
    found = []
    for row in rows:
        label = f"{row['id']} {row['name']}"
        if not row["killed"]:
            found.append(f"{label} survives")
        elif wrong := [s for s in row["stages"] if not stage_accepted(row, s, label)]:
            found.append(f"{label} found at {row['stages'][wrong[0]]}, not {row['stage']}")
    return found


def stage_accepted(row: Mapping[str, Any], shape: str, label: str) -> bool:
    """Whether one shape of a fault was found at its stage, or as far as its numbers can tell."""
    others = [name for name in row["explained_by"][shape] if name != label]
    indistinguishable = shape != TRACE and label in row["explained_by"][shape] and bool(others)
    return row["stages"][shape] == row["stage"] or indistinguishable
