"""`StageTrace`: what one side computed, each value at its place, in the order of computing.

Candidate, reference and float64 run of a training have the same type, whoever produced it. It has a
moment for each micro-batch; what belongs to a whole optimizer step or update (gradients, weights,
the teacher) is placed at the last micro-batch of it. A case of the loss or of a teacher prompt has
one moment, and a candidate gives the values of that by name, as `StageTrace.micro_batch` does.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sdpo.parity.cases.stages import STAGES

NO_STAGE = ""
"""Stage of what is not compared by itself: masks, norms, losses times their scales."""

GRAD_NORM, SCALED_LOSS = "grad_norm", "scaled_loss"
"""Of an optimizer step: the gradient's norm before clipping, the sum of the scaled losses."""


class Moment(NamedTuple):
    """A micro-batch of a training, counted from 0: within its step, the step within its update."""

    update: int = 0
    step: int = 0
    micro_batch: int = 0


class Place(NamedTuple):
    """Where a value of one side belongs: a moment, the stage, and the value's name."""

    update: int
    step: int
    micro_batch: int
    stage: str
    name: str

    @property
    def moment(self) -> Moment:
        """The place without stage and name."""
        return Moment(*self[:3])

    @property
    def family(self) -> str:
        """`loss`, `reprompt` or `update`, by the stage; empty without one."""
        return STAGES[self.stage].family if self.stage else ""


class StageTrace(dict[Place, Any]):
    """Values by place: tensors, and texts or lists of the prompt stages."""

    def put(self, moment: Moment, values: Mapping[str, object], stage: str | None = None) -> None:
        """Add values by name; without `stage` a value's stage is the beginning of its name."""
        for name, value in values.items():
            self[Place(*moment, stage_of(name) if stage is None else stage, name)] = value

    def named(self, stage: str, update: int = 0, step: int | None = None) -> dict[str, Tensor]:
        """The values of one stage by name; of all steps of the update if none is given."""
        return {
            place.name: value
            for place, value in self.items()
            if (place.stage, place.update) == (stage, update) and step in (None, place.step)
        }

    def compared(self) -> "StageTrace":
        """The values that belong to a stage."""
        return StageTrace({place: v for place, v in self.items() if place.stage != NO_STAGE})

    def at(self, places: Iterable[Place]) -> "StageTrace":
        """The values at those of some places that it has."""
        return StageTrace({place: self[place] for place in places if place in self})

    def moments(self) -> Iterator[Moment]:
        """All moments at which something was computed, in order."""
        return iter(dict.fromkeys(place.moment for place in self))

    def steps(self, update: int = 0) -> list[int]:
        """The optimizer steps of an update, in order."""
        return sorted({place.step for place in self if place.update == update})

    def micro_batch(self, moment: Moment) -> dict[str, Tensor]:
        """The values of the loss stages at one moment by name, with masks, without norms."""
        return {
            place.name: value
            for place, value in self.items()
            if place.moment == moment and place.family in ("loss", "") and place.name != GRAD_NORM
        }

    def micro_batches(self, update: int, step: int) -> list[dict[str, Tensor]]:
        """The same for each micro-batch of an optimizer step."""
        of_step = [moment for moment in self.moments() if moment[:2] == (update, step)]
        return [self.micro_batch(moment) for moment in of_step]


def stage_of(name: str) -> str:
    """The stage that a value's name begins with; `NO_STAGE` of others."""
    stage = name.split(".")[0]
    return stage if stage in STAGES else NO_STAGE
