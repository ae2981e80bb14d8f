"""`sdpo mbpp sweep`: a small search of settings, on validation problems alone."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo.cli.interrupts import reported
from sdpo.cli.mbpp_run import Set
from sdpo.runtime.progress import progress_bar


def sweep(
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas.")
    ] = "grpo,sdpo,hybrid",
    seeds: Annotated[str, typer.Option(help="Not those of the benchmark.")] = "11",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of table.md.")] = Path(
        "reports/runs/sweep"
    ),
    stages: Annotated[int, typer.Option(min=1, max=2, help="1: learning rates only.")] = 2,
    set_: Set = None,
) -> None:
    """Try a few settings of each method on validation problems, and print a table.

    Example: sdpo mbpp sweep --methods sdpo --stages 1
    """
    with reported():
        from sdpo.benchmark.runs import sweep as search
        from sdpo.benchmark.runs.run_many import Job, run_all

        def run(todo: list[Job]) -> None:
            with progress_bar("sweep: steps", sum(job.steps for job in todo)) as update:
                run_all(todo, jobs, lambda done: update(completed=done))

        numbers = [int(text) for text in seeds.split(",")]
        results = search.sweep(methods.split(","), numbers, out, set_ or [], run, stages)
        text = search.table(results)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
