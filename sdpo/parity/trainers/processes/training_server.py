"""The process that trains: forks a few trainings at a time, and ends those that fail or hang.

A training of several processes hangs where each waits for another. That is seen after some seconds
in which none of them has computed anything, long before any limit of time.
"""

import faulthandler
import gc
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording.hf_trainer import TrainingFailedError
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.scenarios import record_file
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import TrainerRun
from sdpo.runtime.atomic_write import replacing
from sdpo.settings.determinism import reseed

SEEDS = (20260, 20261)
"""Of the first scenario, which is run twice; the others take the first."""
TIME_LIMIT = 600.0
IDLE_LIMIT = 10.0
"""Seconds without work after which several processes are known to wait for each other."""
GRACE = 5.0
"""Seconds that other ranks have to end after one has failed."""
POLL = 0.01
UNTOLD = "T?"
"""States of a process that may not work, or whose work is not known."""
WORK = 0.3
"""Seconds of computing in that time that are none: threads of a process that waits wake up."""


@dataclass(frozen=True)
class Orders:
    """What the server is to train, and where the files go; `seeds` are the first scenario's."""

    candidate: Any
    scenarios: Sequence[Scenario]
    seeds: Sequence[int]
    folder: Path
    time_limit: float


@dataclass
class Training:
    """One training in progress: a process for each rank; when it began, failed and last worked.

    `again` says how a first attempt ended, if this is the second one.
    """

    number: int
    scenario: Scenario
    paths: list[Path]
    processes: list[Any]
    began: float = field(default_factory=time.monotonic)
    failed: float | None = None
    again: str = ""
    worked: float = field(default_factory=time.monotonic)
    computed: float = 0.0


def rank_files(folder: Path, number: int, scenario: Scenario) -> list[Path]:
    """The files of a training, one for each rank."""
    return [folder / f"{number}.{rank}" for rank in range(scenario.processes)]


def at_a_time() -> int:
    """Trainings that run side by side: one for each core, two at most."""
    return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def serve(orders: Orders) -> None:
    """Run all trainings until they are done or the parent is gone."""
    # tokenizers would start threads of its own, beside which nothing may fork or set a variable
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # trainers collect garbage; what all share need not be looked through each time
    parent, waiting = os.getppid(), list(enumerate(orders.scenarios))
    running: list[Training] = []
    signal.signal(signal.SIGTERM, lambda *_: stop(running))
    while waiting or running:
        while waiting and len(running) < at_a_time():
            running.append(started(orders, *waiting.pop(0)))
        time.sleep(POLL)
        running[:] = [t if not fell(t) else repeated(orders, t) for t in running]
        running[:] = [training for training in running if not ended(orders, training)]
        if os.getppid() != parent:
            stop(running)


def stop(running: Sequence[Training]) -> None:
    """End all trainings and this process."""
    for training in running:
        for process in training.processes:
            process.kill()
    os._exit(0)


def started(orders: Orders, number: int, scenario: Scenario, *, again: str = "") -> Training:
    """Fork the processes of a training; `again` is why it is the second attempt."""
    paths = rank_files(orders.folder, number, scenario)
    seeds = orders.seeds if number == 0 else SEEDS[:1]
    given = (orders.candidate, scenario, seeds, distributed(scenario.processes), again)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=train_here, args=(*given, rank, path))
        for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    return Training(number, scenario, paths, processes, again=again)


def ended(orders: Orders, training: Training) -> bool:
    """Whether a training is over; one that fails or hangs is brought to an end."""
    ranks = list(zip(training.processes, training.paths, strict=True))
    alive = [process for process, _ in ranks if process.is_alive()]
    if not alive:
        for process, path in ranks:
            if not path.exists():
                write_failure(path, CandidateError("config", how_it_ended(process.exitcode)))
        return True
    now = time.monotonic()
    if training.failed is None and any(not p.is_alive() and failed(f) for p, f in ranks):
        training.failed = now
    if now - training.began > orders.time_limit:
        why = f"the training did not end within {orders.time_limit:g} s"
        give_up(training, CandidateError("config", why))
    elif training.failed is not None and now - training.failed > GRACE:
        give_up(training, CandidateError("config", "another process failed"), another=True)
    elif len(ranks) == len(alive) > 1 and idle(training, now):
        give_up(training, TrainingFailedError("accumulate", where_they_wait(training)))
    return False


def fell(training: Training) -> bool:
    """Whether a training of one process stands still or was ended by a signal, for the first time.

    A process that was forked may inherit a lock that nobody releases, or the state of threads that
    it does not have; it is then run once more.
    """
    if training.again or len(training.processes) > 1:
        return False
    (process,) = training.processes
    if process.is_alive():
        return idle(training, time.monotonic())
    return (process.exitcode or 0) < 0 and not training.paths[0].exists()


def repeated(orders: Orders, training: Training) -> Training:
    """The same training in a new process, which notes that it is the second one."""
    (process,) = training.processes
    first = "stood still" if process.is_alive() else f"was ended by signal {-process.exitcode}"
    process.kill()
    process.join()
    why = f"a training {first}; what is judged is a second attempt"
    return started(orders, training.number, training.scenario, again=why)


def idle(training: Training, now: float) -> bool:
    """Whether no process of a training has worked for long; one that was stopped may not."""
    shown = [clock(process.pid) for process in training.processes]
    computed = sum(seconds for seconds, _ in shown)
    if any(state in UNTOLD for _, state in shown) or computed - training.computed > WORK:
        training.worked, training.computed = now, computed
    return now - training.worked > IDLE_LIMIT


def clock(pid: int | None) -> tuple[float, str]:
    """Seconds that a process has computed, and the letter of its state; `?` if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0, "?"
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0]


def where_they_wait(training: Training) -> str:
    """Why a training hangs: the innermost functions that each process waits in."""
    places = []
    for process, path in zip(training.processes, training.paths, strict=True):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        text = stack_file(path).read_text(encoding="utf-8", errors="replace")
        threads = [re.findall(r"line \d+ in (\S+)", part) for part in text.split("hread 0x")]
        names = max(threads, key=len)
        inner = [name for name in names if name not in ("wrapper", "<lambda>")]
        places.append(f"process {len(places)} in {' < '.join(inner[:4])}")
    return f"the processes wait for each other for ever: {'; '.join(places)}"


def give_up(training: Training, error: CandidateError, *, another: bool = False) -> None:
    """End the processes of a training that are left, and write why."""
    for process, path in zip(training.processes, training.paths, strict=True):
        process.kill()
        process.join()
        if not path.exists():
            write_failure(path, error, another=another)


def how_it_ended(code: int | None) -> str:
    """The end of a process that left no file."""
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"the trainer ended its process ({how})"


def failed(path: Path) -> bool:
    """Whether a rank left a failure, or nothing."""
    return not path.exists() or "runs" not in record_file.read(path)


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


def train_here(
    candidate: Any,
    scenario: Scenario,
    seeds: Sequence[int],
    variables: Mapping[str, str],
    again: str,
    rank: int,
    path: Path,
) -> None:
    """Train in this process and write what happened; `again` is noted beside the runs."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if variables:
        os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        faulthandler.register(signal.SIGUSR1, stack_file(path).open("w"), all_threads=True)
    try:
        runs = [trained(candidate, scenario, seed, path.parent) for seed in seeds]
        write(path, {"runs": runs, "places": places(candidate), "again": again})
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


def trained(candidate: Any, scenario: Scenario, seed: int, within: Path) -> TrainerRun:
    """One run under a global seed, in a folder that goes with `within` if the process is ended.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: the trainer failed.
    """
    reseed(seed)
    with quiet(), TemporaryDirectory(prefix="sdpo-trainer-", dir=within) as folder:
        return candidate.run(scenario, Path(folder))


def stack_file(path: Path) -> Path:
    """Where a process says on a signal what it is doing."""
    return path.with_suffix(f"{path.suffix}.stack")


def places(candidate: Any) -> dict[str, Any]:
    """Where the trainer and its stages are defined; that of the trainer has no name."""
    found = {"": candidate.location, **candidate.locations}
    return {name: place and vars(place) for name, place in found.items()}


def write_failure(
    path: Path, error: NotCoveredError | CandidateError, *, another: bool = False
) -> None:
    """Write why there is no run; `another`: only because another process failed."""
    if isinstance(error, NotCoveredError):
        write(path, {"not_covered": str(error)})
        return
    found: dict[str, Any] = {"stage": error.stage, "error": str(error)}
    if isinstance(error, TrainingFailedError):
        found |= {"failed_in": error.reached, "so_far": error.run}
    write(path, found | ({"because_of_another": True} if another else {}))


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a file that is whole as soon as it is there."""
    with replacing(path) as partial:
        record_file.write(partial, found)
