"""`sdpo mbpp run` and `sdpo mbpp eval`: benchmark runs, and pass@1 of a model."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo.cli.interrupts import reported
from sdpo.runtime.progress import progress_bar

if TYPE_CHECKING:
    from sdpo.benchmark.runs.records import Metrics, RunSummary

# What --quick changes: a short look at a curve, no claim.
QUICK = {"train.max_steps": 12, "eval.every": 6, "eval.limit": 90, "records.checkpoint_every": 6}

Config = Annotated[
    str, typer.Option(help="Packaged configuration (grpo, sdpo, hybrid, …) or TOML file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, as train.max_steps=20; repeatable."
    ),
]
Model = Annotated[
    str | None, typer.Option(help="`embedded`, a folder, or a name on the hub; model.name.")
]
Data = Annotated[
    str | None, typer.Option(help="`embedded`, `sanitized`, `full`, or a file; data.name.")
]


def run(
    config: Config = "sdpo",
    set_: Set = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the configuration's seed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: reports/runs/CONFIG/seed-N.")
    ] = None,
    model: Model = None,
    data: Data = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, for a look.")] = False,
) -> None:
    """Train on MBPP-style problems, measure pass@1, and record every step.

    Without options the embedded problems and model are used: no network, no GPU. The same command
    continues a run that was cut off, to the same end, and does nothing if it is finished.

    Example: sdpo mbpp run --config grpo --seed 2 --set train.max_steps=20
    """
    with reported():
        from sdpo.benchmark.runs import settings as settings_

        wanted = settings_.load(config, overrides(set_, quick=quick), _named(seed, model, data))
        name = Path(config).stem + ("-quick" if quick else "")
        folder = out or Path("reports/runs") / name / f"seed-{wanted.seed}"
        from sdpo.benchmark.runs.run import run as run_

        with _progress(wanted.train["max_steps"], f"{name} seed {wanted.seed}") as advance:
            summary = run_(wanted, folder, advance)
    if summary:
        print(f"DONE {_line(summary)} out={folder}")


def eval_(
    source: Annotated[str, typer.Argument(help="Folder of a run or model, or `embedded`.")],
    config: Config = "sdpo",
    set_: Set = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="JSON file with every problem's result.")] = None,
    help_: Annotated[
        bool,
        typer.Option("--with-help", help="Also with demonstrations and feedback in the prompt."),
    ] = False,
) -> None:
    """Measure pass@1 of a model, with its interval.

    Example: sdpo mbpp eval embedded --with-help
    """
    with reported():
        from sdpo.benchmark.runs import settings as settings_

        folder = Path(source)
        name = str(folder / "model") if (folder / "summary.json").is_file() else source
        wanted = settings_.load(config, set_ or [], _named(None, name, data))
        from sdpo.benchmark.runs.evaluate_model import measure_model

        document = measure_model(wanted, with_help=help_)
        if out is not None:
            from sdpo.benchmark.runs.records import write_json

            write_json(out, document)
    if help_:
        from sdpo.benchmark.embedded.value_of_help import table

        print(table(document["rows"]))
    plain = document["rows"][0]
    print(
        f"DONE pass_at_1={plain['pass_at_1']:.3f} low={plain['low']:.3f} high={plain['high']:.3f} "
        f"attempts={plain['attempts']} model={source} data_sha256={document['data']['data_sha256']}"
    )


def overrides(set_: list[str] | None, *, quick: bool) -> list[str]:
    """List what `--quick` changes, and then what was asked for by name, which rules."""
    short = [f"{name}={value}" for name, value in QUICK.items()] if quick else []
    return [*short, *(set_ or [])]


def _named(seed: int | None, model: str | None, data: str | None) -> dict[str, object]:
    """Name the settings that have options of their own."""
    options = {"seed": seed, "model.name": model, "data.name": data}
    return {name: value for name, value in options.items() if value is not None}


def _line(summary: "RunSummary") -> str:
    """Show a run's summary in one line."""
    first, last = summary["first"], summary["last"]
    return (
        f"method={summary['method']} seed={summary['seed']} steps={summary['steps']} "
        f"pass_at_1={first['pass_at_1']:.3f}->{last['pass_at_1']:.3f} "
        f"interval={last['low']:.3f}-{last['high']:.3f} n={last['problems']} "
        f"seconds={summary['training_seconds']:.0f}"
    )


@contextlib.contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[["Metrics"], None]]:
    """Show a bar on standard error with the time left; the callback takes a step's log row."""
    with progress_bar(name, total) as update:

        def advance(row: "Metrics") -> None:
            done = int(row.get("step", 0)) or None
            text = f"{name} reward {row.get('reward', 0):.2f}"
            update(advance=1, completed=done, description=text)

        yield advance
