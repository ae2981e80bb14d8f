"""`sdpo mbpp bench` and `sdpo mbpp report`: several runs, and the report of their records."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo.cli.interrupts import reported
from sdpo.cli.mbpp_run import Set, overrides
from sdpo.runtime.progress import progress_bar


def bench(
    configs: Annotated[
        str, typer.Option(help="Configurations, separated by commas.")
    ] = "grpo,sdpo,hybrid",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    name: Annotated[str, typer.Option(help="Name of the benchmark.")] = "default",
    set_: Set = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs, for a look.")] = False,
) -> None:
    """Run several configurations with several seeds, and report them.

    Runs go to reports/runs/NAME, the report to reports/benchmark/NAME. The same command continues.

    Example: sdpo mbpp bench --configs grpo,sdpo --seeds 1 --quick
    """
    with reported():
        from sdpo.benchmark.runs import settings
        from sdpo.benchmark.runs.run_many import jobs as jobs_
        from sdpo.benchmark.runs.run_many import run_all

        chosen = [name.strip() for name in configs.split(",") if name.strip()]
        numbers = [int(text) for text in seeds.split(",") if text.strip()]
        changes = overrides(set_, quick=quick)
        steps = [settings.load(config, changes).train["max_steps"] for config in chosen]
        options = [f"--set={text}" for text in set_ or []] + (["--quick"] if quick else [])
        folder = Path("reports/runs") / name
        todo = jobs_(chosen, numbers, folder, options, max(steps))
        with progress_bar(f"{name}: steps", sum(job.steps for job in todo)) as update:
            run_all(todo, jobs, lambda done: update(completed=done))
        _report(folder, name)


def report(
    runs: Annotated[
        Path, typer.Argument(help="A run's folder, or one laid out as CONFIG/seed-N.")
    ] = Path("reports/runs/default"),
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: reports/benchmark/NAME.")
    ] = None,
) -> None:
    """Render benchmark runs, finished or not: Markdown, one HTML file, PNG and CSV.

    Example: sdpo mbpp report reports/runs/default
    """
    with reported():
        _report(runs, runs.name, out)


def _report(runs: Path, name: str, out: Path | None = None) -> None:
    from sdpo.benchmark.results.report import write_report

    folder = out or Path("reports/benchmark") / name
    print(write_report(runs, folder, f"Benchmark `{name}`"))
    print(f"DONE report={folder / 'report.html'}")
