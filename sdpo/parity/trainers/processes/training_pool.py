"""Trainings in processes of their own: a few at a time, each forked from the same clean state.

    judge ─► TrainingPool ─fork─► server ─fork─► training of scenario 0, 1, … ─► a file for each run
                                                 (several processes ─fork─► one for each rank)

A training can so not disturb another, nor the comparisons; it may hang, exit or crash. The server
is forked before anything was trained, and whatever order the trainings end in, each gives the same.
"""

import contextlib
import gc
import importlib
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdpo.parity.cases.checked_call import CandidateError, Location, NotCoveredError
from sdpo.parity.trainers.processes.ranks import joined
from sdpo.parity.trainers.processes.training_server import (
    POLL,
    SEEDS,
    TIME_LIMIT,
    Orders,
    rank_files,
    serve,
)
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios import record_file
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


class TrainingPool:
    """Stands for a trainer's adapter; `run` gives what a process of its own has recorded.

    `notes` say which trainings took a second attempt.

    Use as a context manager. Scenarios are trained in the order given, ahead of being asked for;
    the first one, if not told otherwise, twice under different global seeds.

    Args:
        candidate: the adapter.
        scenarios: everything that `run` will be asked for.
        twice: whether the first scenario is run twice.
        time_limit: seconds that one training may take.
    """

    def __init__(
        self,
        candidate: Any,
        scenarios: Sequence[Scenario],
        *,
        twice: bool = True,
        time_limit: float = TIME_LIMIT,
    ):
        self.candidate, self.twice, self.time_limit = candidate, twice, time_limit
        self.name = candidate.name
        self.notes: list[str] = []
        self.scenarios: list[Scenario] = []
        for scenario in map(nameless, scenarios):
            if scenario not in self.scenarios:
                self.scenarios.append(scenario)

    def __enter__(self) -> "TrainingPool":
        with quiet():
            warm(self.candidate, self.scenarios[0])
        self.folder = TemporaryDirectory(prefix="sdpo-trainings-")
        self.files = Path(self.folder.name)
        seeds = SEEDS if self.twice else SEEDS[:1]
        orders = Orders(self.candidate, self.scenarios, seeds, self.files, self.time_limit)
        self.server = multiprocessing.get_context("fork").Process(target=serve, args=(orders,))
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.terminate()
        self.server.join()
        self.folder.cleanup()

    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """What the trainer did in a scenario that was announced.

        Raises:
            NotCoveredError: the trainer cannot express the scenario.
            CandidateError: the trainer failed, hung, or ended its process.
        """
        return self.runs(scenario)[0]

    def runs(self, scenario: Scenario) -> list[TrainerRun]:
        """The runs of a scenario, one for each seed; in one process, one after the other.

        Raises:
            NotCoveredError: as `run`.
            CandidateError: as `run`.
        """
        number = self.scenarios.index(nameless(scenario))
        found = [self.result(path) for path in rank_files(self.files, number, scenario)]
        for entry in found:
            if "not_covered" in entry:
                raise NotCoveredError(entry["not_covered"])
        # of several processes the one that failed by itself says why
        for entry in sorted(found, key=lambda entry: entry.get("because_of_another", False)):
            if "failed_in" in entry:
                raise TrainingFailedError(
                    entry["failed_in"], entry["error"], so_far(scenario, found)
                )
            if "error" in entry:
                raise CandidateError(entry["stage"], entry["error"])
        self.notes += [again for entry in found if (again := entry["again"])]
        for name, place in found[0]["places"].items():
            learn(self.candidate, name, place)
        by_seed = zip(*(entry["runs"] for entry in found), strict=True)
        return [joined(scenario, ranks) for ranks in by_seed]

    def result(self, path: Path) -> dict[str, Any]:
        """Wait for a file.

        Raises:
            CandidateError: it will not come.
        """
        while not path.exists():
            if not self.server.is_alive() and not path.exists():
                raise CandidateError("config", "the process that trains has ended")
            time.sleep(POLL)
        return record_file.read(path)


def so_far(scenario: Scenario, found: Sequence[Mapping[str, Any]]) -> TrainerRun | None:
    """What all processes had recorded of the first generation when the training failed."""
    runs: list[TrainerRun] = [run for entry in found if (run := entry.get("so_far"))]
    if len(runs) < len(found) or not all(run.updates for run in runs):
        return None
    for run in runs:
        run.updates = run.updates[:1]
        run.updates[0].steps = []
    return joined(scenario, runs)


def nameless(scenario: Scenario) -> Scenario:
    """What a trainer sees of a scenario: two that differ by name only are one training."""
    return replace(scenario, id="", description="", tags=())


def learn(candidate: Any, name: str, place: Mapping[str, Any] | None) -> None:
    """Note on the adapter where its trainer, or one of its stages, is defined."""
    location = None if place is None else Location(**place)
    if not name:
        candidate.location = location
    elif location is not None:
        candidate.locations = {**candidate.locations, name: location}


def warm(candidate: Any, scenario: Scenario) -> None:
    """Import, and compile by a first use, what every training needs, once for all of them.

    What cannot be imported is reported by the training itself, with its reason.
    """
    with contextlib.suppress(ImportError), TemporaryDirectory(prefix="sdpo-warm-") as folder:
        # a thread that is there when a process forks may leave a lock behind that nobody releases
        importlib.import_module("tqdm").tqdm.monitor_interval = 0
        for module in getattr(candidate, "imports", ()):
            importlib.import_module(module)
        tiny_model(scenario, Path(folder))
    gc.collect()
