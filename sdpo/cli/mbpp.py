"""`sdpo mbpp`: confined scoring of MBPP completions."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo.cli import mbpp_bench, mbpp_run, mbpp_sweep
from sdpo.cli.interrupts import reported
from sdpo.runtime.progress import progress_bar

if TYPE_CHECKING:
    from sdpo.benchmark.problems.dataset import Dataset
    from sdpo.benchmark.scoring.executor import Executor

app = typer.Typer(help="MBPP code generation: run and score completions in confinement.")

# Same as `executor.DEFAULT_TIMEOUT`, which is not imported here to keep `--help` fast.
_TIMEOUT = 20.0

Workers = Annotated[
    int | None, typer.Option(min=1, help="Cases run at a time; default: one per processor.")
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Wall time in seconds for all tests of a case together.")
]
RequireIsolation = Annotated[
    bool,
    typer.Option(
        "--require-isolation", help="Refuse to run unless limits, Landlock and seccomp are active."
    ),
]


@app.callback()
def mbpp() -> None:
    """MBPP code generation: run and score completions in confinement."""


app.command("run")(mbpp_run.run)
app.command("eval")(mbpp_run.eval_)
app.command("bench")(mbpp_bench.bench)
app.command("report")(mbpp_bench.report)
app.command("sweep")(mbpp_sweep.sweep)


@app.command("exec")
def exec_(
    cases: Annotated[Path, typer.Argument(help="JSON lines: id, completion, test_list, ...")],
    out: Annotated[Path, typer.Option(help="JSON lines; an unfinished file is continued.")],
    workers: Workers = None,
    timeout: Timeout = _TIMEOUT,
    require_isolation: RequireIsolation = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an existing output.")
    ] = False,
) -> None:
    """Score completions: one result line per case, in input order."""
    from sdpo.benchmark.scoring import score_file

    with reported("here"):
        total = score_file.count_cases(cases)
        finished, size = (0, 0) if overwrite else score_file.finished_lines(out, cases)
        with (
            score_file.open_output(out, size) as output,
            _executor(workers, timeout, require_isolation) as executor,
            progress_bar("cases", total, finished) as update,
        ):
            lines = score_file.read_cases(cases)
            for _ in range(finished):
                next(lines)
            counts = score_file.run(executor, lines, output, lambda _: update(advance=1))
    summary = ", ".join(f"{counts[status]} {status}" for status in sorted(counts)) or "nothing new"
    resumed = f" ({finished} were there before)" if finished else ""
    print(f"DONE {total} cases{resumed}: {summary}")


@app.command("check")
def check(
    data: Annotated[
        Path | None,
        typer.Option(help="Published mbpp.jsonl or sanitized-mbpp.json; default: from the hub."),
    ] = None,
    configuration: Annotated[
        str, typer.Option(help="Set to load from the hub: full or sanitized.")
    ] = "sanitized",
    split: Annotated[
        str | None, typer.Option(help="prompt, test, validation or train; default: all.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order of tests.")] = False,
    workers: Workers = None,
    timeout: Timeout = _TIMEOUT,
    require_isolation: RequireIsolation = False,
) -> None:
    """Run all reference solutions of a data set; exit code 1 if one does not pass.

    Without --data the set is loaded from the hub with `datasets`, which needs a network or a cache.
    """
    from sdpo.benchmark.scoring.check_references import check_references

    with reported("here"):
        dataset = _dataset(data, configuration, split)
        with (
            _executor(workers, timeout, require_isolation) as executor,
            progress_bar("cases", len(dataset.problems)) as update,
        ):
            failures = check_references(
                executor, dataset, reverse=reverse, progress=lambda _: update(advance=1)
            )
            isolation = ",".join(executor.isolation)
    total = len(dataset.problems)
    verdict = "FAIL" if failures else "PASS"
    print(
        f"{verdict} references={total - len(failures)}/{total} data={dataset.origin} "
        f"split={dataset.split or 'all'} sha256={dataset.sha256} isolation={isolation}"
    )
    for failure in failures:
        print(f"task {failure.task_id}: {failure.result.status}\n{failure.result.feedback}")
    raise typer.Exit(1 if failures else 0)


def _dataset(data: Path | None, configuration: str, split: str | None) -> "Dataset":
    from sdpo.benchmark.problems.dataset import load_file, load_hub

    dataset = load_hub(configuration) if data is None else load_file(data)
    return dataset.only(split) if split else dataset


@contextlib.contextmanager
def _executor(workers: int | None, timeout: float, require: bool) -> Iterator["Executor"]:
    from sdpo.benchmark.sandbox.confinement.confine import CORE_LAYERS
    from sdpo.benchmark.scoring.executor import Executor

    with Executor(workers, timeout=timeout, require_isolation=require) as executor:
        missing = [layer for layer in CORE_LAYERS if layer not in executor.isolation]
        if missing:
            message = f"WARNING isolation is incomplete, missing: {', '.join(missing)}"
            typer.echo(message, err=True)
        yield executor
