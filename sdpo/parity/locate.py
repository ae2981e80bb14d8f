"""Where does a divergent candidate first depart, and which known fault explains it?

The stage of the explaining faults comes first, where they agree; the ladder of interventions
(`intervene.py`) is what remains for a callable that no known fault explains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sdpo.parity.case import LossCase
from sdpo.parity.compare import DIVERGENT, ERROR
from sdpo.parity.explain import Search, explain, stage_of
from sdpo.parity.intervene import Outcome, first_departure
from sdpo.parity.prepared import Observation, same
from sdpo.parity.readings import (
    GRADIENT_DEPARTS,
    LOSS_DEPARTS,
    LOSS_HOLDS,
    ONLY_LOSS_DEPARTS,
    UNUSABLE,
)
from sdpo.parity.verdict import CaseResult

FROM_LOG_PROBS = "loss from log-probs"
STAGE_FUNCTIONS = "stage functions"
WITHOUT_LOG_PROBS = {"log_probs": "divergence", "support": "tail"}

JudgeCase = Callable[[LossCase], CaseResult]


@dataclass(frozen=True)
class Departure:
    """What is known about a divergent candidate's first departure."""

    stage: str | None
    inferred: bool = False
    explained_by: list[str] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None


def locate(
    kind: str,
    observations: Sequence[Observation],
    observed: str | None,
    judge: JudgeCase | None,
) -> Departure:
    """Explain a divergent candidate, and infer the first stage of one that shows only its loss.

    Args:
        kind: of the candidate.
        observations: its results on the loss cases.
        observed: the first stage at which it was seen to diverge.
        judge: runs a further case; None for a candidate whose stages are all seen.
    """
    if kind == STAGE_FUNCTIONS:
        observations = [only_stage(observation, observed) for observation in observations]
    from_log_probs = kind == FROM_LOG_PROBS
    search = Search()
    found = explain(observations, after_log_probs=from_log_probs, search=search)
    told: dict[str, Any] = {
        "explained_by": [explanation.label for explanation in found],
        "search": search.row(),
    }
    if judge is None:
        return Departure(observed, **told)
    if (stage := stage_of(found)) is not None:
        return Departure(stage, True, **told)
    stage, rungs = by_ladder(judge, observations, observed)
    if from_log_probs and stage is not None:
        stage = WITHOUT_LOG_PROBS.get(stage, stage)
    return Departure(stage or observed, stage is not None, rungs=rungs, **told)


def only_stage(observation: Observation, stage: str | None) -> Observation:
    """The values of one stage: stage functions start from the reference, faults from their own."""
    values = {n: v for n, v in observation.values.items() if n.split(".")[0] == stage}
    on = observation.on
    holds = same(on, values, on.reference_values, on.reference_allowed)
    return replace(observation, values=values, diverges=not holds)


def by_ladder(
    judge: JudgeCase, observations: Sequence[Observation], observed: str | None
) -> tuple[str | None, list[dict[str, Any]]]:
    """The stage that the ladder names, and its rungs, in the first dtype that shows a departure.

    Where the loss itself was seen to depart, a ladder on which only gradients do says too little.
    """
    found: list[tuple[str | None, list[dict[str, Any]]]] = []
    for dtype in dtypes_of(observations):
        stage, rungs = first_departure(lambda case: rung_outcome(judge(case)), dtype)
        found.append((stage, rungs))
        if stage is not None and not (stage == "gradient" and observed != "gradient"):
            return stage, rungs
    return next((tried for tried in found if tried[0] is not None), found[0])


def dtypes_of(observations: Sequence[Observation]) -> list[torch.dtype]:
    """The dtypes for the ladder, those of divergent cases: the next if one shows no departure."""
    found = {o.on.case.dtype for o in observations if o.diverges}
    known = [d for d in (torch.float32, torch.float64, torch.bfloat16) if d in found]
    return known or [torch.float32]


def rung_outcome(result: CaseResult) -> Outcome:
    """Whether loss and gradient of a generated case hold, and the factor between the losses."""
    by_stage = {comparison.stage: comparison for comparison in result.comparisons}
    statuses = {comparison.status for comparison in result.comparisons}
    if not by_stage or ERROR in statuses:
        return Outcome(UNUSABLE)
    loss, gradient = by_stage.get("aggregate"), by_stage.get("gradient")
    if loss is None or loss.status != DIVERGENT:
        return Outcome(GRADIENT_DEPARTS if DIVERGENT in statuses else LOSS_HOLDS)
    expected = loss.worst.get("expected", 0.0)
    factor = loss.worst["actual"] / expected if expected else None
    held = gradient is not None and gradient.status != DIVERGENT
    return Outcome(ONLY_LOSS_DEPARTS if held else LOSS_DEPARTS, factor)
