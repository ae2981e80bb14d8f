"""Finished and running benchmark runs of a folder, read back and put side by side."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.benchmark.runs.records import Records, read_json
from sdpo.benchmark.scoring.intervals import Interval, bootstrap, compare

Row = dict[str, Any]


class ResultsError(ValueError):
    """A folder without runs, or with runs that cannot be compared."""


@dataclass(frozen=True)
class Run:
    """One run: its configuration's name, its seed, and everything it recorded."""

    name: str
    seed: int
    facts: dict[str, Any]
    records: dict[str, list[Row]]
    finished: bool

    def last(self) -> Row:
        """The latest evaluation."""
        return self.records["evals"][-1]

    def series(self, kind: str, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column, where it has a number."""
        pairs = [
            (row["step"], float(row[key]))
            for row in self.records[kind]
            if isinstance(row.get(key), int | float)
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_runs(folder: Path) -> list[Run]:
    """Every run in a folder laid out as `CONFIG/seed-N`, in the order of names and seeds.

    The folder may also be that of a single run, which is then named after its method.

    Raises:
        ResultsError: there is none with an evaluation, or they used different problems.
    """
    found, alone = [], folder / "run.json"
    for path in [alone] if alone.is_file() else sorted(folder.glob("*/seed-*/run.json")):
        facts, records = read_json(path), Records(path.parent)
        rows = {
            kind: records.read(kind) for kind in ("steps", "parity", "cost", "evals", "samples")
        }
        if rows["evals"]:
            rows["drift"] = drift(path.parent / "parity" / "drift.csv")
            done = (path.parent / "summary.json").is_file()
            settings = facts["settings"]
            name = settings["method"] if path == alone else path.parent.parent.name
            found.append(Run(name, settings["seed"], facts, rows, done))
    if not found:
        raise ResultsError(
            f"{folder} holds no run with an evaluation: neither run.json nor CONFIG/seed-N/run.json"
        )
    if len({run.facts["data"]["data_sha256"] for run in found}) > 1:
        raise ResultsError(f"the runs in {folder} used different problems; report them apart")
    return sorted(found, key=lambda run: (run.name, run.seed))


def drift(path: Path) -> list[Row]:
    """Rows of the audit's own file on the lockstep replica; none if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows]


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each configuration."""
    return {name: [r for r in runs if r.name == name] for name in {r.name: 0 for r in runs}}


def band(runs: Sequence[Run], kind: str, key: str) -> list[tuple[int, float, float, float]]:
    """Step, mean, least and greatest value over the seeds, at steps that every seed has."""
    series = [dict(zip(*run.series(kind, key), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    columns = [[one[step] for one in series] for step in steps]
    return [
        (step, statistics.fmean(values), min(values), max(values))
        for step, values in zip(steps, columns, strict=True)
    ]


def rates(runs: Sequence[Run], place: int) -> list[float]:
    """pass@1 of each problem at an evaluation (0 first, -1 last), mean over the seeds."""
    return mean_rates([run.records["evals"][place] for run in runs])


def mean_rates(evaluations: Sequence[Row]) -> list[float]:
    """pass@1 of each problem, mean over one evaluation of each seed."""
    return [
        statistics.fmean(one["passes"][task] / one["samples"] for one in evaluations)
        for task in evaluations[0]["passes"]
    ]


def interval_at(runs: Sequence[Run], step: int) -> Interval:
    """pass@1 at a step that every seed has: mean over the seeds, bootstrap over problems."""
    at = [next(e for e in run.records["evals"] if e["step"] == step) for run in runs]
    return bootstrap(mean_rates(at), limits=(0, 1), resamples=2000)


def outcome(runs: Sequence[Run]) -> dict[str, Interval]:
    """pass@1 before and after, and the gain: means over seeds, bootstrap over problems."""
    first, last = rates(runs, 0), rates(runs, -1)
    gain = [b - a for a, b in zip(first, last, strict=True)]
    named = {"first": first, "last": last, "gain": gain}
    return {
        name: bootstrap(values, limits=(-1 if name == "gain" else 0, 1), resamples=2000)
        for name, values in named.items()
    }


def paired(one: Sequence[Run], two: Sequence[Run]) -> Row:
    """Difference of two configurations on the same problems, `two` minus `one`.

    The interval is a bootstrap over problems of the means over seeds; the p-values are McNemar's,
    for each seed that both have. One is called better if the interval excludes zero and no seed
    says the opposite, since one seed gone astray moves the mean of three.
    """
    difference = [b - a for a, b in zip(rates(one, -1), rates(two, -1), strict=True)]
    found = bootstrap(difference, limits=(-1, 1), resamples=2000)
    seeds = {run.seed: run for run in one}
    tests, gaps = [], []
    for run in two:
        if run.seed not in seeds:
            continue
        gaps.append(run.last()["pass_at_1"] - seeds[run.seed].last()["pass_at_1"])
        if run.last()["samples"] == 1:
            first, second = (list(r.last()["passes"].values()) for r in (seeds[run.seed], run))
            tests.append(compare([bool(x) for x in first], [bool(x) for x in second]).p_value)
    verdict = "cannot distinguish"
    opposed = any(gap * found.estimate < 0 for gap in gaps)
    if (found.low > 0 or found.high < 0) and not opposed:
        verdict = two[0].name if found.low > 0 else one[0].name
    return {"difference": found, "p_values": tests, "verdict": verdict}


def csv_of(runs: Sequence[Run]) -> str:
    """One row for each step of each run, with every recorded number and the evaluation if any."""
    rows = []
    for run in runs:
        extra: dict[int, Row] = {}
        for kind in ("parity", "cost"):
            for row in run.records[kind]:
                extra.setdefault(row["step"], {}).update(row)
        for row in run.records["evals"]:
            keys = ("pass_at_1", "low", "high")
            extra.setdefault(row["step"], {}).update({f"eval/{key}": row[key] for key in keys})
        steps = {row["step"]: row for row in run.records["steps"]}
        for step in sorted(steps.keys() | extra.keys()):
            head = {"name": run.name, "seed": run.seed, "step": step}
            rows.append(head | steps.get(step, {}) | extra.get(step, {}))
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
