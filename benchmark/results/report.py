"""Renders a report of benchmark runs from their records: Markdown, one HTML file, PNG and CSV.

Every sentence about an outcome is chosen by the figures; nothing is known beforehand.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.benchmark.results.figures import figures
from sdpo.benchmark.results.findings import best_on_the_way, findings, shown
from sdpo.benchmark.results.load_runs import (
    Run,
    by_name,
    csv_of,
    outcome,
    paired,
    read_runs,
    series,
)
from sdpo.parity.render.html import data_uri
from sdpo.parity.render.templates import compiled
from sdpo.runtime.atomic_write import write_atomically
from sdpo.runtime.markdown_table import markdown_table

_NOT_SHOWN = (
    "how the methods compare on real models: the embedded model has about a million parameters and "
    "a task made for it.",
    "that other settings would rank the methods alike: rates were chosen on the validation split, "
    "for few values.",
    "anything about speed on a GPU.",
)


@dataclass(frozen=True)
class Table:
    """Holds cells as text, and what they are."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def markdown(self) -> str:
        """Show the table in Markdown."""
        return markdown_table(self.head, self.rows)


@dataclass(frozen=True)
class SampleTexts:
    """Holds an attempt's title, and its texts with a heading each."""

    title: str
    texts: tuple[tuple[str, str], ...]


def write_report(folder: Path, out: Path, title: str) -> str:
    """Render the runs of a folder; returns the headline.

    Raises:
        ResultsError: there is nothing to report.
    """
    runs = read_runs(folder)
    groups = by_name(runs)
    plots = figures(runs)
    shows = findings(groups)
    content = {
        "title": title,
        "headline": _headline(groups),
        "tables": [t for t in (outcomes(groups), pairs(groups), parity(runs), costs(groups)) if t],
        "plots": plots,
        "samples": _samples(groups),
        "shows": shows,
        "not_shown": _NOT_SHOWN,
        "made_with": _made_with(runs),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "report.html"):
        template = compiled(Path(__file__).with_name(f"{name}.j2"), {"data_uri": data_uri})
        write_atomically(out / name, template.render(content))
    for plot in plots:
        (out / plot.file).write_bytes(plot.png)
    write_atomically(out / "steps.csv", csv_of(runs))
    return content["headline"]


def _headline(groups: dict[str, list[Run]]) -> str:
    """Say the gain of each configuration in one sentence."""
    gains = [f"{name} {shown(outcome(runs).gain, signed=True)}" for name, runs in groups.items()]
    return f"Gain in pass@1 with 95 % interval: {'; '.join(gains)}."


def outcomes(groups: dict[str, list[Run]]) -> Table:
    """Tabulate pass@1 before and after."""
    rows = []
    for name, runs in groups.items():
        first, last, gain = outcome(runs)
        finals = ", ".join(f"{run.last['pass_at_1']:.3f}" for run in runs)
        row = (name, str(len(runs)), shown(first), shown(last), shown(gain, signed=True), finals)
        rows.append((*row, f"{best_on_the_way(runs):.3f}"))
    head = ("method", "seeds", "before", "after", "gain", "after, each seed", "best on the way")
    note = (
        "Means over seeds; intervals are bootstrapped over problems and do not include the spread "
        "over seeds. The best on the way is a mean of maxima, so it is biased upwards."
    )
    return Table("pass@1", note, head, tuple(rows))


def pairs(groups: dict[str, list[Run]]) -> Table | None:
    """Compare every two configurations on the same problems."""
    rows = []
    for first, second in itertools.combinations(groups, 2):
        pair = paired(groups[first], groups[second])
        p_values = ", ".join(f"{p:.2g}" for p in pair.p_values) or "-"
        difference = shown(pair.difference, signed=True)
        rows.append((f"{second} − {first}", difference, p_values, pair.verdict))
    if not rows:
        return None
    head = ("pair", "difference", "McNemar p, each seed", "better")
    note = (
        "Differences of the last evaluations, problem by problem, with 95 % intervals. One is "
        "called better if the interval excludes zero and no seed says the opposite."
    )
    return Table("Paired comparison", note, head, tuple(rows))


def parity(runs: Sequence[Run]) -> Table | None:
    """Tabulate how the audited updates compared with the reference."""
    rows = []
    for run in runs:
        audited = run.parity
        if not audited:
            continue
        moved = sum(row["parity/first_moved"] != 0 for row in audited)
        inconclusive = int(sum(series(audited, "parity/inconclusive").values()))
        inside = f"{len(audited) - moved - inconclusive} of {len(audited)}"
        inside += f", {inconclusive} inconclusive" if inconclusive else ""
        columns = (series(audited, f"parity/{what}_relative") for what in ("loss", "gradient"))
        worst = [max(column.values()) for column in columns]
        rows.append((f"{run.name} seed {run.seed}", inside, *(f"{x:.2g}" for x in worst)))
    if not rows:
        return None
    head = ("run", "updates within budget", "largest loss distance", "largest gradient distance")
    note = (
        "Each update was repeated by the reference from the same weights and rollouts. "
        "Inconclusive: rounding alone may move a value by a quarter of its size, which then cannot "
        "be judged."
    )
    return Table("Parity while training", note, head, tuple(rows))


def costs(groups: dict[str, list[Run]]) -> Table:
    """Tabulate seconds, tokens and memory."""
    rows = []
    for name, runs in groups.items():
        seconds = [[row["seconds"] for row in run.cost] for run in runs]
        a_run = statistics.fmean(map(sum, seconds))
        a_step = statistics.median(itertools.chain(*seconds))
        memory = max(row["peak_memory_mib"] for run in runs for row in run.cost)
        tokens = statistics.fmean(run.steps[-1].get("num_tokens", 0) for run in runs)
        rows.append((name, f"{a_run:.0f}", f"{a_step:.2f}", f"{tokens:.0f}", f"{memory:.0f}"))
    head = ("method", "seconds a run", "seconds a step", "tokens a run", "peak memory, MiB")
    note = "Training alone, without evaluations; wall time, so it depends on what else ran."
    return Table("Cost", note, head, tuple(rows))


def _samples(groups: dict[str, list[Run]]) -> list[SampleTexts]:
    """Show an early and a late attempt of the first run that has any."""
    run = next((runs[0] for runs in groups.values() if runs[0].samples), None)
    if run is None:
        return []
    first_and_last = [run.samples[0], *run.samples[1:][-1:]]
    return [
        SampleTexts(
            f"{run.name} seed {run.seed}, step {row['step']}, reward {row['reward']:.2f}, "
            f"help: {row['help']}",
            (
                ("Completion", row["completion"]),
                ("Feedback", row["feedback"] or "(none)"),
                ("The teacher's prompt", row["teacher_prompt"]),
            ),
        )
        for row in first_and_last
    ]


def _made_with(runs: Sequence[Run]) -> list[str]:
    """List data, versions, commit and isolation."""
    facts = runs[0].facts
    environment = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return [
        f"model {facts['settings']['model']['name']}, data {facts['data']['origin']}, sha256 "
        f"{facts['data']['data_sha256']}",
        f"packages: {packages}",
        f"commit {environment['git_commit'] or 'unknown'}",
        f"isolation: {', '.join(facts['isolation']) or 'none'}",
        f"{environment['cpu_capability']}, threads {facts['settings']['threads']}",
    ]
