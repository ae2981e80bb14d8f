"""Check that a changed script is another experiment for the trainer.

Where nothing was changed every relation holds and every value stays.
So the trainer must have been handed something else, as the fingerprints of a run say
(`TrainerRun.given`), or, of loops that record none, as the record shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.processes.training_pool import nameless
from sdpo.parity.trainers.recording.fingerprints import PARTS
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import Tensors, TrainerRun

_INPUTS = ("input_ids", "attention_mask", "responses", "response_mask")


@dataclass(frozen=True)
class Refusal:
    """Why two runs tell nothing: an error, or not covered if the trainer is the reason."""

    status: Status
    note: str


def why_one_experiment(
    before: Scenario, after: Scenario, ours: TrainerRun, theirs: TrainerRun
) -> Refusal | None:
    """Tell why two runs are one experiment; None if they are two.

    Args:
        before: the script.
        after: the changed script.
        ours: the run of the script.
        theirs: the run of the changed script.
    """
    if nameless(before) == nameless(after):
        return Refusal(Status.ERROR, "the script is not changed, so that nothing is tested")
    if changed(ours.given, theirs.given):
        return None
    if set(PARTS) <= theirs.given.keys():
        note = "the changed script hands the trainer nothing else, so that nothing is tested"
        return Refusal(Status.ERROR, note)
    world = [getattr(after, n) for n in ("disguise", "nudge") if getattr(after, n)]
    if world and not _recorded_change(ours, theirs):
        note = (
            f"nothing that the adapter records is changed by {world[0]!r}: its `run` does not play "
            "it, or does not say so in `TrainerRun.given`"
        )
        return Refusal(Status.NOT_COVERED, note)
    return None


def unseen_settings(before: Scenario, after: Scenario, run: TrainerRun) -> Refusal | None:
    """Tell whether settings that were changed are in effect, where nothing else would show it."""
    wanted = {
        name: value
        for name, value in after.self_distillation.items()
        if before.self_distillation.get(name) != value
    }
    missing = [n for n, value in wanted.items() if run.settings.get(n) != value]
    if not missing:
        return None
    note = f"the adapter does not show {', '.join(missing)} among the settings in effect"
    return Refusal(Status.NOT_COVERED, note)


def changed(ours: Mapping[str, object], theirs: Mapping[str, object]) -> set[str]:
    """Return the names of values that differ, or that one mapping lacks."""
    names = ours.keys() | theirs.keys()
    return {name for name in names if not _equal(ours.get(name), theirs.get(name))}


def _equal(ours: object, theirs: object) -> bool:
    """Tell whether two values are equal; tensors to the bit."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return same_bits(ours, theirs)
    return ours is theirs or (type(ours) is type(theirs) and ours == theirs)


def _recorded_change(ours: TrainerRun, theirs: TrainerRun) -> bool:
    """Tell whether a record shows that the trainer began with or was asked something else."""
    return any(changed(*pair) for pair in zip(_seen_in(ours), _seen_in(theirs), strict=True))


def _seen_in(run: TrainerRun) -> tuple[Tensors, Tensors, Tensors]:
    """Return both sides' first weights, and the inputs of the first micro-batch."""
    steps = [step for update in run.updates for step in update.steps]
    first = steps[0].micro_batches[0].inputs if steps and steps[0].micro_batches else {}
    return run.initial, run.initial_teacher, {n: first[n] for n in _INPUTS if n in first}
