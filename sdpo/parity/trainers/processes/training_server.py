"""The process that trains: forks a few trainings at a time, and ends those that fail or hang.

A training of several processes hangs where each waits for another. That is seen after some seconds
in which none of them has computed anything, long before any limit of time.
"""

import faulthandler
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.processes.liveness import IdleClock, where_they_wait
from sdpo.parity.trainers.processes.rank_outcome import RankOutcome, places_of, rank_files
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import TrainerRun
from sdpo.settings.determinism import reseed

SEEDS = (20260, 20261)
"""Of the first scenario, which is run twice; the others take the first."""
TIME_LIMIT = 600.0
GRACE = 5.0
"""Seconds that other ranks have to end after one has failed."""
POLL = 0.01


@dataclass(frozen=True)
class Orders:
    """What the server is to train, and where the files go; `seeds` are the first scenario's."""

    candidate: TrainerAdapter
    scenarios: Sequence[Scenario]
    seeds: Sequence[int]
    folder: Path
    time_limit: float


@dataclass
class Training:
    """One training in progress: a process and a file for each rank.

    `failed` is when a rank was found to have failed; `second_attempt` says how a first attempt
    ended, if this is the second one.
    """

    number: int
    scenario: Scenario
    paths: list[Path]
    processes: list[BaseProcess]
    began: float = field(default_factory=time.monotonic)
    failed: float | None = None
    second_attempt: str = ""
    clock: IdleClock = field(default_factory=IdleClock)


def serve(orders: Orders) -> None:
    """Run all trainings until they are done or the parent is gone."""
    # tokenizers would start threads of its own, beside which nothing may fork or set a variable
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # trainers collect garbage; what all share need not be looked through each time
    parent, waiting = os.getppid(), list(enumerate(orders.scenarios))
    running: list[Training] = []
    signal.signal(signal.SIGTERM, lambda *_: _stop(running))
    while waiting or running:
        while waiting and len(running) < _trainings_at_a_time():
            running.append(_start(orders, *waiting.pop(0)))
        time.sleep(POLL)
        running[:] = [_start_again(orders, t) if _deserves_retry(t) else t for t in running]
        running[:] = [training for training in running if not _is_over(orders, training)]
        if os.getppid() != parent:
            _stop(running)


def _trainings_at_a_time() -> int:
    """Count the trainings that run side by side: one for each core, two at most."""
    return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _stop(running: Sequence[Training]) -> None:
    """End all trainings and this process."""
    for training in running:
        for process in training.processes:
            process.kill()
    os._exit(0)


def _start(
    orders: Orders, number: int, scenario: Scenario, *, second_attempt: str = ""
) -> Training:
    """Fork the processes of a training; `second_attempt` says how the first one ended."""
    paths = rank_files(orders.folder, number, scenario)
    seeds = orders.seeds if number == 0 else SEEDS[:1]
    variables = _distributed_environment(scenario.processes)
    arguments = (orders.candidate, scenario, seeds, variables, second_attempt)
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [
        context.Process(target=_train_here, args=(*arguments, rank, path))
        for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    return Training(number, scenario, paths, processes, second_attempt=second_attempt)


def _deserves_retry(training: Training) -> bool:
    """Tell whether a training of one process stands still or was ended, for the first time.

    A process that was forked may inherit a lock that nobody releases, or the state of threads that
    it does not have; it is then run once more.
    """
    if training.second_attempt or len(training.processes) > 1:
        return False
    (process,) = training.processes
    if process.is_alive():
        return training.clock.is_idle(training.processes)
    return (process.exitcode or 0) < 0 and not training.paths[0].exists()


def _start_again(orders: Orders, training: Training) -> Training:
    """Run the same training in a new process, which notes that it is the second one."""
    (process,) = training.processes
    ended = (
        "stood still" if process.is_alive() else f"was ended by {_how_it_ended(process.exitcode)}"
    )
    process.kill()
    process.join()
    why = f"a training {ended}; what is judged is a second attempt"
    return _start(orders, training.number, training.scenario, second_attempt=why)


def _is_over(orders: Orders, training: Training) -> bool:
    """Tell whether a training is over; one that fails or hangs is brought to an end."""
    ranks = list(zip(training.processes, training.paths, strict=True))
    alive = [process for process, _ in ranks if process.is_alive()]
    if not alive:
        for process, path in ranks:
            if not path.exists():
                why = f"the trainer ended its process ({_how_it_ended(process.exitcode)})"
                RankOutcome.of_error(CandidateError("config", why)).write(path)
        return True
    now = time.monotonic()
    if training.failed is None and any(not p.is_alive() and _failed(f) for p, f in ranks):
        training.failed = now
    if now - training.began > orders.time_limit:
        why = f"the training did not end within {orders.time_limit:g} s"
        _give_up(training, RankOutcome.of_error(CandidateError("config", why)))
    elif training.failed is not None and now - training.failed > GRACE:
        error = CandidateError("config", "another process failed")
        _give_up(training, RankOutcome.of_error(error, because_of_another=True))
    elif len(ranks) == len(alive) > 1 and training.clock.is_idle(training.processes):
        why = where_they_wait(training.processes, [_stack_file(path) for path in training.paths])
        _give_up(training, RankOutcome.of_error(TrainingFailedError("accumulate", why)))
    return False


def _give_up(training: Training, outcome: RankOutcome) -> None:
    """End the processes of a training that are left, and write why."""
    for process, path in zip(training.processes, training.paths, strict=True):
        process.kill()
        process.join()
        if not path.exists():
            outcome.write(path)


def _how_it_ended(code: int | None) -> str:
    """Say how a process that left no file has ended."""
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _failed(path: Path) -> bool:
    """Tell whether a rank left a failure, or nothing."""
    return not path.exists() or not RankOutcome.read(path).runs


def _distributed_environment(processes: int) -> dict[str, str]:
    """Make the environment variables of the ranks of a training; none for one process."""
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


def _train_here(
    candidate: TrainerAdapter,
    scenario: Scenario,
    seeds: Sequence[int],
    variables: Mapping[str, str],
    second_attempt: str,
    rank: int,
    path: Path,
) -> None:
    """Train in this process, write what happened, and exit.

    Args:
        candidate: the adapter.
        scenario: what to train.
        seeds: one run for each.
        variables: environment of the ranks of a distributed training.
        second_attempt: noted beside the runs.
        rank: number of this process.
        path: the file for its outcome.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if variables:
        os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        faulthandler.register(signal.SIGUSR1, _stack_file(path).open("w"), all_threads=True)
    try:
        runs = [_run_once(candidate, scenario, seed, path.parent) for seed in seeds]
        places = places_of(candidate.location, dict(candidate.locations))
        RankOutcome(runs, places, second_attempt).write(path)
    except (NotCoveredError, CandidateError) as error:
        RankOutcome.of_error(error).write(path)
    except BaseException as error:
        traceback.print_exc()
        note = f"the adapter failed: {type(error).__name__}: {error}"
        RankOutcome.of_error(CandidateError("config", note)).write(path)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _run_once(candidate: TrainerAdapter, scenario: Scenario, seed: int, within: Path) -> TrainerRun:
    """Run under a global seed, in a folder that goes with `within` if the process is ended.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: the trainer failed.
    """
    reseed(seed)
    with quiet(), TemporaryDirectory(prefix="sdpo-trainer-", dir=within) as folder:
        return candidate.run(scenario, Path(folder))


def _stack_file(path: Path) -> Path:
    """Name the file to which a process writes its stacks on a signal."""
    return path.with_suffix(f"{path.suffix}.stack")
