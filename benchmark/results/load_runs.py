"""Reads back the finished and running benchmark runs of a folder, and puts them side by side."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sdpo.benchmark.runs.records import (
    Evaluation,
    Metrics,
    Records,
    RunFacts,
    Sample,
    read_json,
)
from sdpo.benchmark.scoring.intervals import Interval, bootstrap, compare

CANNOT_DISTINGUISH = "cannot distinguish"


class ResultsError(ValueError):
    """A folder without runs, or with runs that cannot be compared."""


@dataclass(frozen=True)
class Run:
    """Holds a configuration's name, a seed, and everything that the run recorded.

    `drift` is the audit's own file on the lockstep replica.
    """

    name: str
    seed: int
    facts: RunFacts
    steps: list[Metrics]
    parity: list[Metrics]
    cost: list[Metrics]
    drift: list[Metrics]
    evals: list[Evaluation]
    samples: list[Sample]
    finished: bool

    @property
    def last(self) -> Evaluation:
        """Return the latest evaluation."""
        return self.evals[-1]


def series(rows: Iterable[Mapping[str, object]], key: str) -> dict[int, float]:
    """Take the values of a column by step, where it has a number."""
    return {
        step: float(value)
        for row in rows
        if isinstance(step := row["step"], int) and isinstance(value := row.get(key), int | float)
    }


def read_runs(folder: Path) -> list[Run]:
    """Read every run in a folder laid out as `CONFIG/seed-N`, in the order of names and seeds.

    The folder may also be that of a single run, which is then named after its method.

    Raises:
        ResultsError: there is none with an evaluation, or they used different problems.
    """
    runs, alone = [], folder / "run.json"
    for path in [alone] if alone.is_file() else sorted(folder.glob("*/seed-*/run.json")):
        records = Records(path.parent)
        facts: RunFacts = read_json(path)
        if evals := records.evals.read():
            settings = facts["settings"]
            run = Run(
                name=settings["method"] if path == alone else path.parent.parent.name,
                seed=settings["seed"],
                facts=facts,
                steps=records.steps.read(),
                parity=records.parity.read(),
                cost=records.cost.read(),
                drift=_drift(path.parent / "parity" / "drift.csv"),
                evals=evals,
                samples=records.samples.read(),
                finished=(path.parent / "summary.json").is_file(),
            )
            runs.append(run)
    if not runs:
        raise ResultsError(
            f"{folder} holds no run with an evaluation: neither run.json nor CONFIG/seed-N/run.json"
        )
    if len({run.facts["data"]["data_sha256"] for run in runs}) > 1:
        raise ResultsError(f"the runs in {folder} used different problems; report them apart")
    return sorted(runs, key=lambda run: (run.name, run.seed))


def _drift(path: Path) -> list[Metrics]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows]


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by their configuration."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


class Band(NamedTuple):
    """Gives mean, least and greatest value over the seeds at a step."""

    step: int
    mean: float
    low: float
    high: float


def band(columns: Sequence[Iterable[Mapping[str, object]]], key: str) -> list[Band]:
    """Summarize a column over the seeds, at steps that every seed has.

    Args:
        columns: rows of each seed.
        key: of the column.
    """
    seeds = [series(rows, key) for rows in columns]
    steps = sorted(set.intersection(*map(set, seeds)))
    at_steps = [(step, [values[step] for values in seeds]) for step in steps]
    return [Band(step, statistics.fmean(x), min(x), max(x)) for step, x in at_steps]


def _rates(evaluations: Sequence[Evaluation]) -> list[float]:
    """Average the pass@1 of each problem over one evaluation of each seed."""
    return [
        statistics.fmean(row["passes"][task] / row["samples"] for row in evaluations)
        for task in evaluations[0]["passes"]
    ]


def interval_at(runs: Sequence[Run], step: int) -> Interval:
    """Average pass@1 over the seeds at a step that every seed has; bootstrap over problems."""
    at = [next(row for row in run.evals if row["step"] == step) for run in runs]
    return bootstrap(_rates(at), limits=(0, 1), resamples=2000)


class Outcome(NamedTuple):
    """Gives pass@1 at the first and the last evaluation, and the gain between them."""

    first: Interval
    last: Interval
    gain: Interval


def outcome(runs: Sequence[Run]) -> Outcome:
    """Average over the seeds, and bootstrap over problems."""
    first, last = (_rates([run.evals[index] for run in runs]) for index in (0, -1))
    gain = [after - before for before, after in zip(first, last, strict=True)]
    columns = ((first, 0), (last, 0), (gain, -1))
    return Outcome(*(bootstrap(x, limits=(low, 1), resamples=2000) for x, low in columns))


class Pair(NamedTuple):
    """Gives the difference of two configurations, McNemar's p of each seed, and the better one."""

    difference: Interval
    p_values: list[float]
    verdict: str


def paired(first: Sequence[Run], second: Sequence[Run]) -> Pair:
    """Compare two configurations on the same problems: `second` minus `first`.

    The interval is a bootstrap over problems of the means over seeds; the p-values are McNemar's,
    for each seed that both have. One is called better if the interval excludes zero and no seed
    says the opposite, since one seed gone astray moves the mean of three.
    """
    rates = (_rates([run.last for run in runs]) for runs in (first, second))
    difference = [b - a for a, b in zip(*rates, strict=True)]
    interval = bootstrap(difference, limits=(-1, 1), resamples=2000)
    seeds = {run.seed: run.last for run in first}
    p_values, gaps = [], []
    for before, after in ((seeds[run.seed], run.last) for run in second if run.seed in seeds):
        gaps.append(after["pass_at_1"] - before["pass_at_1"])
        if after["samples"] == 1:
            passed = ([bool(x) for x in row["passes"].values()] for row in (before, after))
            p_values.append(compare(*passed).p_value)
    verdict = CANNOT_DISTINGUISH
    opposed = any(gap * interval.estimate < 0 for gap in gaps)
    if (interval.low > 0 or interval.high < 0) and not opposed:
        verdict = (second if interval.low > 0 else first)[0].name
    return Pair(interval, p_values, verdict)


def csv_of(runs: Sequence[Run]) -> str:
    """Write one row for each step of each run, with every recorded number."""
    rows = []
    for run in runs:
        by_step: dict[int, Metrics] = {int(row["step"]): dict(row) for row in run.steps}
        for row in (*run.parity, *run.cost):
            by_step.setdefault(int(row["step"]), {}).update(row)
        for evaluation in run.evals:
            figures = {f"eval/{key}": evaluation[key] for key in ("pass_at_1", "low", "high")}
            by_step.setdefault(evaluation["step"], {}).update(figures)
        for step, figures in sorted(by_step.items()):
            rows.append({"name": run.name, "seed": run.seed, "step": step} | figures)
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
