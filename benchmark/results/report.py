"""The report of benchmark runs: Markdown, one HTML file, PNG and CSV, from records alone.

Every sentence about an outcome is chosen by the figures; nothing is known beforehand.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.benchmark.results.figures import figures
from sdpo.benchmark.results.findings import findings, shown
from sdpo.benchmark.results.load_runs import Run, by_name, csv_of, outcome, paired, read_runs
from sdpo.parity.render.html import data_uri
from sdpo.parity.render.templates import compiled
from sdpo.runtime.atomic_write import write_atomically

NOT_SHOWN = (
    "how the methods compare on real models: the embedded model has about a million parameters and "
    "a task made for it.",
    "that other settings would rank the methods alike: rates were chosen on the validation split, "
    "for few values.",
    "anything about speed on a GPU.",
)


@dataclass(frozen=True)
class Table:
    """Cells as text, and what they are."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.head, ("---", *("--:" for _ in self.head[1:])), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
        "headline": headline(groups),
        "tables": [t for t in (outcomes(groups), pairs(groups), parity(runs), costs(groups)) if t],
        "plots": plots,
        "samples": samples(groups),
        "shows": shows,
        "not_shown": NOT_SHOWN,
        "made_with": made_with(runs),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in ("report.md", "report.html"):
        template = compiled(Path(__file__).with_name(f"{name}.j2"), {"data_uri": data_uri})
        write_atomically(out / name, template.render(content))
    for plot in plots:
        (out / plot.file).write_bytes(plot.png)
    write_atomically(out / "steps.csv", csv_of(runs))
    return content["headline"]


def headline(groups: dict[str, list[Run]]) -> str:
    """Gain of each configuration in one sentence."""
    parts = [f"{name} {shown(outcome(runs)['gain'], signed=True)}" for name, runs in groups.items()]
    return f"Gain in pass@1 with 95 % interval: {'; '.join(parts)}."


def outcomes(groups: dict[str, list[Run]]) -> Table:
    """pass@1 before and after."""
    rows = []
    for name, runs in groups.items():
        found = outcome(runs)
        finals = ", ".join(f"{run.last()['pass_at_1']:.3f}" for run in runs)
        best = statistics.fmean(max(e["pass_at_1"] for e in run.records["evals"]) for run in runs)
        gain = shown(found["gain"], signed=True)
        row = (name, str(len(runs)), shown(found["first"]), shown(found["last"]), gain, finals)
        rows.append((*row, f"{best:.3f}"))
    head = ("method", "seeds", "before", "after", "gain", "after, each seed", "best on the way")
    note = (
        "Means over seeds; intervals are bootstrapped over problems and do not include the spread "
        "over seeds. The best on the way is a mean of maxima, so it is biased upwards."
    )
    return Table("pass@1", note, head, tuple(rows))


def pairs(groups: dict[str, list[Run]]) -> Table | None:
    """Every two configurations on the same problems."""
    rows, names = [], list(groups)
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            found = paired(groups[one], groups[two])
            p_values = ", ".join(f"{p:.2g}" for p in found["p_values"]) or "-"
            difference = shown(found["difference"], signed=True)
            rows.append((f"{two} − {one}", difference, p_values, found["verdict"]))
    if not rows:
        return None
    head = ("pair", "difference", "McNemar p, each seed", "better")
    note = (
        "Differences of the last evaluations, problem by problem, with 95 % intervals. One is "
        "called better if the interval excludes zero and no seed says the opposite."
    )
    return Table("Paired comparison", note, head, tuple(rows))


def parity(runs: Sequence[Run]) -> Table | None:
    """How the audited updates compared with the reference."""
    rows = []
    for run in runs:
        audited = run.records["parity"]
        if not audited:
            continue
        moved = sum(row["parity/first_moved"] != 0 for row in audited)
        worst = [max(row[f"parity/{w}_relative"] for row in audited) for w in ("loss", "gradient")]
        unsaid = int(sum(row.get("parity/inconclusive", 0) for row in audited))
        inside = f"{len(audited) - moved - unsaid} of {len(audited)}"
        inside += f", {unsaid} inconclusive" if unsaid else ""
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
    """Seconds, tokens, memory."""
    rows = []
    for name, runs in groups.items():
        seconds = [row["seconds"] for run in runs for row in run.records["cost"]]
        memory = max(row["peak_memory_mib"] for run in runs for row in run.records["cost"])
        tokens = statistics.fmean(run.records["steps"][-1].get("num_tokens", 0) for run in runs)
        total = statistics.fmean(sum(r["seconds"] for r in run.records["cost"]) for run in runs)
        each = statistics.median(seconds)
        rows.append((name, f"{total:.0f}", f"{each:.2f}", f"{tokens:.0f}", f"{memory:.0f}"))
    head = ("method", "seconds a run", "seconds a step", "tokens a run", "peak memory, MiB")
    note = "Training alone, without evaluations; wall time, so it depends on what else ran."
    return Table("Cost", note, head, tuple(rows))


def samples(groups: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """An early and a late attempt of the first run that has any."""
    for runs in groups.values():
        rows = runs[0].records["samples"]
        if not rows:
            continue
        return [
            {
                "title": f"{runs[0].name} seed {runs[0].seed}, step {row['step']}, reward "
                f"{row['reward']:.2f}, help: {row['help']}",
                "texts": [
                    ("Completion", row["completion"]),
                    ("Feedback", row["feedback"] or "(none)"),
                    ("The teacher's prompt", row["teacher_prompt"]),
                ],
            }
            for row in ([rows[0], rows[-1]] if len(rows) > 1 else rows)
        ]
    return []


def made_with(runs: Sequence[Run]) -> list[str]:
    """Data, versions, commit, isolation."""
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
