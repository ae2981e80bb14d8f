"""Runs a candidate on generated cases: those of the covering array, then further ones at random.

What a candidate refuses is no fault: where it raises on a case and not on the same values in their
plainest form, in float32, with an int64 mask, called plainly, the case is NOT_COVERED. Whatever it
raises on the plain form is an ERROR as ever.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.capabilities.reach import Reach
from sdpo.parity.cases.call_conditions import PLAIN_CALL
from sdpo.parity.cases.checked_call import LossCandidate
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import Observation
from sdpo.parity.compare.nondeterminism import Scatter, withdrawn
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.generated.covering_array import covering_rows
from sdpo.parity.generated.factors import Row, Value, table
from sdpo.parity.generated.make_case import covering_cases, make_case, row_and_seed
from sdpo.parity.generated.random_rows import exploring_rows
from sdpo.parity.generated.varied_settings import varied_settings

UNCOMPARED = (Status.NOT_COVERED, Status.ERROR)
MOST_FOUND = 3
"""Failing cases after which exploring ends."""


class CaseRun(Protocol):
    """What a candidate did on one case: comparisons, doubts, scatter of two runs, values."""

    result: CaseResult
    doubts: list[str]
    scatter: Scatter
    observation: Observation | None


RunCase = Callable[[LossCase], CaseRun]
Progress = Callable[[str, int, int], None]


@dataclass
class GeneratedRun:
    """What a candidate did on generated cases."""

    results: list[CaseResult] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_generated(
    run_case: RunCase,
    seed: int,
    progress: Progress,
    fixed: Row | None = None,
    reach: Reach | None = None,
) -> GeneratedRun:
    """Run the cases of the covering array; the same seed gives the same cases.

    Args:
        run_case: runs the candidate on a case.
        seed: of the values.
        progress: told `generated`, cases done, cases in all.
        fixed: factors that the candidate leaves at one value.
        reach: what the candidate takes; the cases are moved there.
    """
    found, cases = GeneratedRun(), cases_within(reach, seed)

    def counted() -> Iterator[LossCase]:
        for number, case in enumerate(cases):
            progress("generated", number, len(cases))
            yield case

    _run(run_case, counted(), found)
    progress("generated", len(cases), len(cases))
    compared = [row_and_seed(r.id)[0] for r in found.results if r.status not in UNCOMPARED]
    found.notes.append(f"generated cases (seed {seed}): {varied_settings(compared, fixed or {})}")
    return found


def fixed_factors(candidate: LossCandidate) -> dict[str, Value]:
    """Factors that generated cases cannot vary: only a loss function is called as they say."""
    if not isinstance(candidate, LossFunction):
        factors = table().factors
        return {name: factors[name][0] for name in ("layout", *table().call)}
    ways = candidate.passes_inputs
    return {"arguments": ways[0]} if len(ways) == 1 else {}


def cases_within(reach: Reach | None, seed: int) -> Sequence[LossCase]:
    """The cases of the covering array, moved to what a candidate takes; each of them once."""
    if reach is None:
        return covering_cases(seed)
    found: dict[str, LossCase] = {}
    for row, case in zip(covering_rows(), covering_cases(seed), strict=True):
        moved = reach.row(row)
        if moved is not None:
            same = moved == row and not reach.fixed
            one = case if same else make_case(moved, seed, reach.fixed)
            found[one.id] = one
    return list(found.values())


def explore(
    run_case: RunCase,
    seed: int,
    seconds: float,
    progress: Progress,
    reach: Reach | None = None,
) -> GeneratedRun:
    """Run random cases for some seconds, led by sets of three values that were not shown.

    Ends when `MOST_FOUND` fail. Of the results those that fail are kept.
    """
    end, tried = time.monotonic() + seconds, 0
    found = GeneratedRun()
    rows = takewhile(lambda _: time.monotonic() < end, exploring_rows(seed, covering_rows()))
    for drawn in rows:
        row, single = (reach.row(drawn) if reach else drawn), GeneratedRun()
        if row is None:
            continue
        _run(run_case, [make_case(row, seed, reach.fixed if reach else {})], single)
        tried += 1
        progress("explored", int(seconds - max(0.0, end - time.monotonic())), int(seconds))
        if single.doubts or single.results[0].status in FAILING:
            found.results += single.results
            found.doubts += single.doubts
            found.observations += single.observations
        if len(found.results) >= MOST_FOUND:
            break
    spent = seconds - max(0.0, end - time.monotonic())
    found.notes.append(
        f"explored {tried} further cases at random (seed {seed}) in {spent:.0f} s: "
        f"{len(found.results)} fail"
    )
    return found


def _run(run_case: RunCase, cases: Iterable[LossCase], found: GeneratedRun) -> None:
    """Run cases and add what they show; values that differ between two runs are withdrawn."""
    runs = []
    for case in cases:
        run = run_case(case)
        if run.result.status == Status.ERROR and not _fails_plainly(run_case, case):
            run.result = _refused(run.result)
        runs.append(run)
    found.results += withdrawn([run.result for run in runs], [run.scatter for run in runs])
    found.doubts += [doubt for run in runs for doubt in run.doubts]
    found.observations += [run.observation for run in runs if run.observation is not None]


def _fails_plainly(run_case: RunCase, case: LossCase) -> bool:
    """Whether a candidate also fails on the plainest form of a case."""
    plain = replace(
        case,
        student_logits=case.student_logits.float(),
        teacher_logits=case.teacher_logits.float(),
        response_mask=case.response_mask.long(),
        call=PLAIN_CALL,
    )
    return run_case(plain).result.status == Status.ERROR


def _refused(result: CaseResult) -> CaseResult:
    """A case that is not covered because the candidate refuses its form."""
    notes = [c.note for c in result.comparisons if c.status == Status.ERROR]
    return CaseResult(result.id, result.family, result.tags, note=f"refuses this form: {notes[0]}")
