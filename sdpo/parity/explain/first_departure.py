"""Infers where a divergent candidate first departs, and which known faults explain it.

The stage of the explaining faults comes first, where they agree; the ladder of interventions
(`ladder.py`) is what remains for a callable that no known fault explains. Neither is believed
against what was seen: `Departure` alone decides, whoever inferred.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.explanation_rows import Explanation, ExplanationSearch
from sdpo.parity.explain.explanations import ranked
from sdpo.parity.explain.ladder import RungOutcome, climb
from sdpo.parity.explain.match_faults import Search, explain, stage_of
from sdpo.parity.explain.rungs import RungResult, RungRow

FROM_LOG_PROBS = "loss from log-probs"
_STAGE_FUNCTIONS = "stage functions"
WITHOUT_LOG_PROBS = {"log_probs": "divergence", "support": "tail"}
"""What the ladder's stages are in a loss that is given log-probs, and computes none of its own."""

_JudgeCase = Callable[[LossCase], CaseResult]


@dataclass(frozen=True)
class Departure:
    """What is known of where a divergent candidate first departs.

    Attributes:
        observed: the first stage at which it was seen to depart.
        suspected: the stage that was inferred, None if none was.
        held: the last stage before `observed` that the candidate shows, and where it held.
        explanations: known faults with the cases that each explains, those of most first.
        rungs: of the ladder.
        search: how far known faults were searched.
    """

    observed: str | None
    suspected: str | None = None
    held: str | None = None
    explanations: list[Explanation] = field(default_factory=list)
    rungs: list[RungRow] = field(default_factory=list)
    search: ExplanationSearch | None = None

    @property
    def possible(self) -> tuple[str, ...]:
        """List the stages that may be the first one, in order, the observed one last.

        None is behind the observed one, nor before a stage that was seen to hold: values that are
        right have only right ones before them. A gradient may be wrong by any of the stages.
        """
        if self.observed is None:
            return ()
        last = None if self.observed == "gradient" else self.held
        least = NAMES.index(last) + 1 if last else NAMES.index(ORDER[0])
        return NAMES[least : NAMES.index(self.observed) + 1] or (self.observed,)

    @property
    def inferred(self) -> bool:
        """Tell whether the inferred stage may be the first one, and not all stages were seen."""
        return len(self.possible) > 1 and self.suspected in self.possible

    @property
    def stage(self) -> str | None:
        """Return the first stage: the inferred one where it can be, else the observed one."""
        return self.suspected if self.inferred else self.observed


def locate(
    kind: str,
    shown: Sequence[str],
    observations: Sequence[Observation],
    observed: str | None,
    judge: _JudgeCase | None,
    base: Mapping[str, object] | None = None,
) -> Departure:
    """Explain a divergent candidate, and infer the first stage of one that does not show all.

    Args:
        kind: of the candidate.
        shown: the stages that it shows.
        observations: its results on the loss cases.
        observed: the first stage at which it was seen to diverge.
        judge: runs a further case; None for a candidate whose stages are all seen.
        base: the plainest settings that the candidate takes.
    """
    if kind == _STAGE_FUNCTIONS:
        observations = [_only_stage(observation, observed) for observation in observations]
    search = Search()
    # one that is given log-probs and shows none of its own can have no fault in them
    from_log_probs = kind == FROM_LOG_PROBS
    after_log_probs = from_log_probs and "log_probs" not in shown
    matches = explain(observations, after_log_probs=after_log_probs, search=search)
    diverging = {o.evaluated.case.id for o in observations if o.diverges}
    explanations = ranked({match.label: match.cases for match in matches}, len(diverging))
    departure = Departure(observed, explanations=explanations, search=search.row())
    if judge is None:
        return departure
    held = held_before(observed, shown)
    departure = replace(departure, suspected=stage_of(matches), held=held)
    if departure.inferred or len(departure.possible) < 2:
        return departure
    stage, rungs = _by_ladder(judge, observations, observed, base or {})
    if from_log_probs and stage is not None:
        stage = WITHOUT_LOG_PROBS.get(stage, stage)
    return replace(departure, suspected=stage, rungs=rungs)


def held_before(observed: str | None, shown: Iterable[str]) -> str | None:
    """Find the last shown stage before the first one that was seen to depart."""
    before = [] if observed is None else NAMES[: NAMES.index(observed)]
    return next((stage for stage in reversed(before) if stage in shown), None)


def _only_stage(observation: Observation, stage: str | None) -> Observation:
    """Keep the values of one stage of stage functions, which all start from the reference.

    A fault's later stages start from its own values, and cannot be compared with them.
    """
    values = {n: v for n, v in observation.values.items() if n.split(".")[0] == stage}
    holds = observation.evaluated.agreement.with_reference(values)
    return replace(observation, values=values, diverges=not holds)


def _by_ladder(
    judge: _JudgeCase,
    observations: Sequence[Observation],
    observed: str | None,
    base: Mapping[str, object],
) -> tuple[str | None, list[RungRow]]:
    """Climb the ladder in one dtype after the other, up to the first that shows a departure.

    Where the loss itself was seen to depart, a ladder on which only gradients do says too little.

    Returns:
        The stage that the ladder names, and its rungs.
    """
    climbed: list[tuple[str | None, list[RungRow]]] = []
    for dtype in dtypes_of(observations):
        stage, rungs = climb(lambda case: rung_outcome(judge(case)), dtype, base)
        climbed.append((stage, rungs))
        if stage is not None and not (stage == "gradient" and observed != "gradient"):
            return stage, rungs
    return next((ladder for ladder in climbed if ladder[0] is not None), climbed[0])


def dtypes_of(observations: Sequence[Observation]) -> list[torch.dtype]:
    """List the dtypes of divergent cases in the order in which the ladder tries them."""
    dtypes = {o.evaluated.case.dtype for o in observations if o.diverges}
    known = [d for d in (torch.float32, torch.float64, torch.bfloat16) if d in dtypes]
    return known or [torch.float32]


def rung_outcome(result: CaseResult) -> RungOutcome:
    """Tell whether loss and gradient of a generated case hold, and the factor of the losses."""
    by_stage = {comparison.stage: comparison for comparison in result.comparisons}
    statuses = {comparison.status for comparison in result.comparisons}
    if not by_stage or Status.ERROR in statuses:
        return RungOutcome(RungResult.UNUSABLE)
    loss, gradient = by_stage.get("aggregate"), by_stage.get("gradient")
    if loss is None or loss.status != Status.DIVERGENT:
        departs = Status.DIVERGENT in statuses
        return RungOutcome(RungResult.ONLY_GRADIENT_DEPARTS if departs else RungResult.HOLDS)
    expected = loss.worst.get("expected", 0.0)
    factor = loss.worst["actual"] / expected if expected else None
    held = gradient is not None and gradient.status != Status.DIVERGENT
    return RungOutcome(RungResult.ONLY_LOSS_DEPARTS if held else RungResult.DEPARTS, factor)
