"""What one process of a training leaves behind: its runs, or why there are none."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo.parity.cases.checked_call import CandidateError, Location, NotCoveredError
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.scenarios import record_file
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import TrainerRun
from sdpo.runtime.atomic_write import replacing

Place = dict[str, Any]
"""The fields of a `Location`."""
_Places = dict[str, Place | None]
"""Fields of the location of each stage; that of the trainer has the empty name."""


@dataclass(frozen=True)
class RankOutcome:
    """The runs of one process, one for each seed, or the error that it ended with.

    `second_attempt` says how a first attempt ended, if this is the second one. `failed_in` and
    `so_far` are those of a `TrainingFailedError`. `because_of_another` marks a process that was
    ended because another one had failed.
    """

    runs: list[TrainerRun] = field(default_factory=list)
    places: _Places = field(default_factory=dict)
    second_attempt: str = ""
    not_covered: str = ""
    error: str = ""
    stage: str = ""
    failed_in: str = ""
    so_far: TrainerRun | None = None
    because_of_another: bool = False

    @classmethod
    def of_error(
        cls, error: NotCoveredError | CandidateError, *, because_of_another: bool = False
    ) -> "RankOutcome":
        """Make the outcome of a process that has no run."""
        if isinstance(error, NotCoveredError):
            return cls(not_covered=str(error))
        failed = error if isinstance(error, TrainingFailedError) else None
        return cls(
            error=str(error),
            stage=error.stage,
            failed_in=failed.reached if failed else "",
            so_far=failed.run if failed else None,
            because_of_another=because_of_another,
        )

    @classmethod
    def read(cls, path: Path) -> "RankOutcome":
        """Read the outcome that a process wrote."""
        return cls(**record_file.read(path))

    def write(self, path: Path) -> None:
        """Write a file that is whole as soon as it is there."""
        with replacing(path) as partial:
            record_file.write(partial, vars(self))


def rank_files(folder: Path, number: int, scenario: Scenario) -> list[Path]:
    """Name the files of a training, one for each rank."""
    return [folder / f"{number}.{rank}" for rank in range(scenario.processes)]


def places_of(location: Location | None, locations: dict[str, Location]) -> _Places:
    """Write down where a trainer and its stages are defined."""
    return {name: place and vars(place) for name, place in {"": location, **locations}.items()}
