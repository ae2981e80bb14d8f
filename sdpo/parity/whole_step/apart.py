"""Trainings in processes of their own: a few at a time, each forked from the same clean state.

    judge ─► Apart ─fork─► server ─fork─► training of scenario 0, 1, … ─► one file for each run
                                          (several processes ─fork─► one for each rank)

A training can so not disturb another, nor the comparisons; it may hang, exit or crash. The server
is forked before anything was trained, and whatever order the trainings end in, each gives the same.
"""

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdpo.determinism import reseed
from sdpo.parity.adapters.base import CandidateError, Location, NotCoveredError
from sdpo.parity.adapters.trainers.run import quiet
from sdpo.parity.whole_step import run_file
from sdpo.parity.whole_step.ranks import joined
from sdpo.parity.whole_step.record import TrainerRun
from sdpo.parity.whole_step.scenario import Scenario
from sdpo.parity.whole_step.tiny_model import tiny_model

SEEDS = (20260, 20261)
"""Of the first scenario, which is run twice; the others take the first."""
TIME_LIMIT = 600.0
GRACE = 10.0
"""Seconds that other ranks have to end after one has failed."""
POLL = 0.01

Train = Callable[[Scenario, Path], TrainerRun]


def available() -> bool:
    """Whether this system can fork."""
    return "fork" in multiprocessing.get_all_start_methods()


def at_a_time() -> int:
    """Trainings that run side by side: one for each core, two at most."""
    return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


class Apart:
    """Stands for a trainer's adapter; `run` gives what a process of its own has recorded.

    Use as a context manager. Scenarios are trained in the order given, ahead of being asked for.

    Args:
        candidate: the adapter.
        scenarios: everything that `run` will be asked for.
        time_limit: seconds that one training may take.
    """

    def __init__(
        self, candidate: Any, scenarios: Sequence[Scenario], time_limit: float = TIME_LIMIT
    ):
        self.candidate, self.time_limit = candidate, time_limit
        self.scenarios: list[Scenario] = []
        for scenario in map(nameless, scenarios):
            if scenario not in self.scenarios:
                self.scenarios.append(scenario)

    def __enter__(self) -> "Apart":
        with quiet():
            warm(self.candidate, self.scenarios[0])
        self.folder = TemporaryDirectory(prefix="sdpo-trainings-")
        self.files = Path(self.folder.name)
        context = multiprocessing.get_context("fork")
        self.server = context.Process(target=serve, args=(self,))
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
        ranks = [self.result(path) for path in rank_files(self.files, number, scenario)]
        return [joined(scenario, of_seed) for of_seed in zip(*ranks, strict=True)]

    def result(self, path: Path) -> list[TrainerRun]:
        """Wait for a file, and take over what the adapter learnt about its trainer's source.

        Raises:
            NotCoveredError: as `run`.
            CandidateError: as `run`.
        """
        while not path.exists():
            if not self.server.is_alive() and not path.exists():
                raise CandidateError("config", "the process that trains has ended")
            time.sleep(POLL)
        found = run_file.read(path)
        if "not_covered" in found:
            raise NotCoveredError(found["not_covered"])
        if "stage" in found:
            raise CandidateError(found["stage"], found["error"])
        for name, place in found["places"].items():
            learn(self.candidate, name, place)
        return found["runs"]


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


def rank_files(folder: Path, number: int, scenario: Scenario) -> list[Path]:
    """The files of a training, one for each rank."""
    return [folder / f"{number}.{rank}" for rank in range(scenario.processes)]


def warm(candidate: Any, scenario: Scenario) -> None:
    """Import, and compile by a first use, what every training needs, once for all of them.

    What cannot be imported is reported by the training itself, with its reason.
    """
    with contextlib.suppress(ImportError), TemporaryDirectory(prefix="sdpo-warm-") as folder:
        for module in getattr(candidate, "imports", ()):
            importlib.import_module(module)
        tiny_model(scenario, Path(folder))
    gc.collect()


# --- the server -----------------------------------------------------------------------------


@dataclass
class Training:
    """One training in progress: a process for each rank, and when it began."""

    number: int
    scenario: Scenario
    processes: list[Any]
    began: float = field(default_factory=time.monotonic)
    failed: float | None = None


def serve(apart: Apart) -> None:
    """Run all trainings, a few at a time, until they are done or the parent is gone."""
    parent, waiting, running = os.getppid(), list(enumerate(apart.scenarios)), []
    gc.freeze()  # trainers collect garbage; what all share need not be looked through each time
    signal.signal(signal.SIGTERM, lambda *_: stop(running))
    while waiting or running:
        while waiting and len(running) < at_a_time():
            running.append(started(apart, *waiting.pop(0)))
        time.sleep(POLL)
        running[:] = [training for training in running if not ended(apart, training)]
        if os.getppid() != parent:
            stop(running)


def stop(running: Sequence[Training]) -> None:
    """End all trainings and this process."""
    for training in running:
        for process in training.processes:
            process.kill()
    os._exit(0)


def started(apart: Apart, number: int, scenario: Scenario) -> Training:
    """Fork the processes of a training."""
    context = multiprocessing.get_context("fork")
    seeds = SEEDS if number == 0 else SEEDS[:1]
    variables = distributed(scenario.processes)
    processes = [
        context.Process(
            target=train_here, args=(apart.candidate, scenario, seeds, path, variables, rank)
        )
        for rank, path in enumerate(rank_files(apart.files, number, scenario))
    ]
    for process in processes:
        process.start()
    return Training(number, scenario, processes)


def ended(apart: Apart, training: Training) -> bool:
    """Whether a training is over; one that fails or hangs is brought to an end.

    A rank that waits for one that has failed would wait for ever.
    """
    alive = [process for process in training.processes if process.is_alive()]
    paths = rank_files(apart.files, training.number, training.scenario)
    if not alive:
        for process, path in zip(training.processes, paths, strict=True):
            if not path.exists():
                write_failure(path, CandidateError("config", how_it_ended(process.exitcode)))
        return True
    now = time.monotonic()
    if training.failed is None and any(
        not process.is_alive() and failure_in(path)
        for process, path in zip(training.processes, paths, strict=True)
    ):
        training.failed = now
    late = now - training.began > apart.time_limit
    if late or (training.failed is not None and now - training.failed > GRACE):
        why = f"did not end within {apart.time_limit:g} s" if late else "another rank failed"
        for process in alive:
            process.kill()
            process.join()
        for path in paths:
            if not path.exists():
                write_failure(path, CandidateError("config", f"the training {why}"))
    return False


def how_it_ended(code: int | None) -> str:
    """The end of a process that left no file."""
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the trainer ended its process ({how})"


def failure_in(path: Path) -> bool:
    """Whether a rank left a failure, or nothing."""
    return not path.exists() or "runs" not in run_file.read(path)


def distributed(processes: int) -> dict[str, str]:
    """Environment of the ranks of a training; empty for one process."""
    if processes == 1:
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


# --- a training -----------------------------------------------------------------------------


def train_here(
    candidate: Any,
    scenario: Scenario,
    seeds: Sequence[int],
    path: Path,
    variables: Mapping[str, str],
    rank: int,
) -> None:
    """Train in this process and write what happened."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if variables:
        os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    try:
        runs = [trained(candidate, scenario, seed) for seed in seeds]
        write(path, {"runs": runs, "places": places(candidate)})
    except (NotCoveredError, CandidateError) as error:
        write_failure(path, error)
    except BaseException as error:
        traceback.print_exc()
        note = f"the adapter failed: {type(error).__name__}: {error}"
        write_failure(path, CandidateError("config", note))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def trained(candidate: Any, scenario: Scenario, seed: int) -> TrainerRun:
    """One run under a global seed.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: the trainer failed.
    """
    reseed(seed)
    with quiet(), TemporaryDirectory(prefix="sdpo-trainer-") as folder:
        return candidate.run(scenario, Path(folder))


def places(candidate: Any) -> dict[str, Any]:
    """Where the trainer and its stages are defined; that of the trainer has no name."""
    found = {"": candidate.location, **candidate.locations}
    return {name: place and vars(place) for name, place in found.items()}


def write_failure(path: Path, error: NotCoveredError | CandidateError) -> None:
    """Write why there is no run."""
    if isinstance(error, NotCoveredError):
        write(path, {"not_covered": str(error)})
    else:
        write(path, {"stage": error.stage, "error": str(error)})


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a file that is whole as soon as it is there."""
    partial = path.with_suffix(f"{path.suffix}.partial")
    run_file.write(partial, found)
    os.replace(partial, path)
