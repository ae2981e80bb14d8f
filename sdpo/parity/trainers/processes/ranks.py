"""Join the runs of several processes, and check that all processes hold the same."""

from collections.abc import Iterator, Sequence
from typing import Any

from sdpo.parity.cases.checked_call import CandidateError, same_bits
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import Tensors, TrainerRun, Update


def joined(scenario: Scenario, runs: Sequence[TrainerRun]) -> TrainerRun:
    """Join runs: the first process's, with the micro-batches and prompts of all, others in `ranks`.

    Raises:
        CandidateError: the processes took different numbers of updates or steps.
    """
    first, *others = runs
    shapes = {tuple(len(update.steps) for update in run.updates) for run in runs}
    if len(shapes) > 1:
        raise CandidateError("config", f"processes took different numbers of steps: {shapes}")
    for number, update in enumerate(first.updates):
        of_ranks = [run.updates[number] for run in runs]
        rows = len(scenario.generations[number].rollouts)
        update.prompt = _joined_prompts(of_ranks, rows)
        for place, step in enumerate(update.steps):
            step.micro_batches = [m for u in of_ranks for m in u.steps[place].micro_batches]
    first.ranks = others
    return first


def _joined_prompts(of_ranks: Sequence[Update], rows: int) -> dict[str, list[Any]]:
    """Join the prompt stages of all processes: of each the rows that it trains on."""
    prompts = {}
    for stage in {stage: None for update in of_ranks for stage in update.prompt}:
        share = rows // len(of_ranks)
        prompts[stage] = [
            entry
            for rank, update in enumerate(of_ranks)
            for entry in _rows_of_rank(update.prompt.get(stage, [None] * share), rank, share, rows)
        ]
    return prompts


def _rows_of_rank(shown: Sequence[Any], rank: int, share: int, rows: int) -> Sequence[Any]:
    """Take the rows of one process from what it shows, which may be the rows of all."""
    return shown[rank * share : (rank + 1) * share] if len(shown) == rows else shown


def compare_ranks(case: str, run: TrainerRun, number: int) -> Iterator[Comparison]:
    """Compare gradients, weights and teacher after an update: all must hold the same bits."""
    update = run.updates[number]
    for rank, other in enumerate((r.updates[number] for r in run.ranks), start=1):
        pairs: list[tuple[str, Tensors, Tensors]] = [
            ("teacher_update", update.teacher, other.teacher)
        ]
        for ours, theirs in zip(update.steps, other.steps, strict=True):
            pairs.append(("accumulate", ours.gradient, theirs.gradient))
            pairs.append(("optimizer", ours.parameters, theirs.parameters))
        for stage, ours, theirs in pairs:
            if name := first_apart(ours, theirs):
                note = f"process {rank} holds another {name} than process 0"
                yield Comparison(stage, Status.DIVERGENT, case, 1, note=note, effect="value")


def first_apart(ours: Tensors, theirs: Tensors) -> str:
    """Name the first tensor that differs; empty if none does."""
    if ours.keys() != theirs.keys():
        return sorted(ours.keys() ^ theirs.keys())[0]
    return next((name for name in ours if not same_bits(ours[name], theirs[name])), "")
