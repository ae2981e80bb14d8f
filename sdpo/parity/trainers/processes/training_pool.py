"""Run trainings in processes of their own, a few at a time, each forked from a clean state.

    judge ─► TrainingPool ─fork─► server ─fork─► training of scenario 0, 1, … ─► a file for each run
                                                 (several processes ─fork─► one for each rank)

So no training can disturb another, nor the comparisons; each may hang, exit or crash. The server
is forked before anything was trained, and whatever order the trainings end in, each gives the same.
"""

import contextlib
import gc
import importlib
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sdpo.parity.cases.checked_call import CandidateError, Location, NotCoveredError
from sdpo.parity.trainers.processes.rank_outcome import Place, RankOutcome, rank_files
from sdpo.parity.trainers.processes.ranks import joined
from sdpo.parity.trainers.processes.training_server import POLL, SEEDS, TIME_LIMIT, Orders, serve
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


class TrainingPool:
    """Stands for a trainer's adapter: `run` returns what another process has recorded.

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
        candidate: TrainerAdapter,
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
            if scenario not in self.scenarios and self._takes(scenario):
                self.scenarios.append(scenario)

    def __enter__(self) -> "TrainingPool":
        with quiet():
            _warm_up(self.candidate, self.scenarios[0])
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
        """Return what the trainer did in a scenario that was announced.

        Raises:
            NotCoveredError: the trainer cannot express the scenario.
            CandidateError: the trainer failed, hung, or ended its process.
        """
        return self.runs(scenario)[0]

    def runs(self, scenario: Scenario) -> list[TrainerRun]:
        """Return the runs of a scenario, one for each seed.

        Raises:
            NotCoveredError: as `run`.
            CandidateError: as `run`.
        """
        if not self._takes(scenario):
            raise NotCoveredError(
                "an entropy bonus or a KL anchor, which the adapter does not claim (`policy_terms`)"
            )
        number = self.scenarios.index(nameless(scenario))
        outcomes = [self._wait_for(path) for path in rank_files(self.files, number, scenario)]
        for outcome in outcomes:
            if outcome.not_covered:
                raise NotCoveredError(outcome.not_covered)
        # of several processes the one that failed by itself says why
        for outcome in sorted(outcomes, key=lambda outcome: outcome.because_of_another):
            if outcome.failed_in:
                so_far = _recorded_so_far(scenario, outcomes)
                raise TrainingFailedError(outcome.failed_in, outcome.error, so_far)
            if outcome.error:
                raise CandidateError(outcome.stage, outcome.error)
        self.notes += [o.second_attempt for o in outcomes if o.second_attempt]
        for name, place in outcomes[0].places.items():
            self._learn_place(name, place)
        by_seed = zip(*(outcome.runs for outcome in outcomes), strict=True)
        return [joined(scenario, ranks) for ranks in by_seed]

    def _takes(self, scenario: Scenario) -> bool:
        """Say whether the trainer has the terms of a scenario's loss."""
        return self.candidate.policy_terms or not scenario.policy_terms

    def _wait_for(self, path: Path) -> RankOutcome:
        """Wait for the outcome of a process.

        Raises:
            CandidateError: it will not come.
        """
        while not path.exists():
            if not self.server.is_alive() and not path.exists():
                raise CandidateError("config", "the process that trains has ended")
            time.sleep(POLL)
        return RankOutcome.read(path)

    def _learn_place(self, name: str, place: Place | None) -> None:
        """Note on the adapter where its trainer, or one of its stages, is defined."""
        location = None if place is None else Location(**place)
        if not name:
            self.candidate.location = location
        elif location is not None:
            self.candidate.locations = {**self.candidate.locations, name: location}


def _recorded_so_far(scenario: Scenario, outcomes: Sequence[RankOutcome]) -> TrainerRun | None:
    """Join what all processes had recorded of the first generation when the training failed."""
    runs = [outcome.so_far for outcome in outcomes if outcome.so_far is not None]
    if len(runs) < len(outcomes) or not all(run.updates for run in runs):
        return None
    for run in runs:
        run.updates = run.updates[:1]
        run.updates[0].steps = []
    return joined(scenario, runs)


def nameless(scenario: Scenario) -> Scenario:
    """Take the name off a scenario: two that differ by name only are one training."""
    return replace(scenario, id="", description="", tags=())


def _warm_up(candidate: TrainerAdapter, scenario: Scenario) -> None:
    """Import, and use once, what every training needs, before processes fork.

    What cannot be imported is reported by the training itself, with its reason.
    """
    with contextlib.suppress(ImportError), TemporaryDirectory(prefix="sdpo-warm-") as folder:
        # a thread that is there when a process forks may leave a lock behind that nobody releases
        importlib.import_module("tqdm").tqdm.monitor_interval = 0
        for module in candidate.imports:
            importlib.import_module(module)
        tiny_model(scenario, Path(folder))
    gc.collect()
