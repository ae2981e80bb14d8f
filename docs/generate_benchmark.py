"""Writes what is generated in `docs/benchmark.md`, its lines in the README, and its plots.

python docs/generate_benchmark.py

What help in the prompt is worth to the embedded model is measured. The rest is made
from what is there: reports/runs/default (`make benchmark`), reports/runs/audit (the same with
`--configs sdpo,sdpo-audit --seeds 1 --name audit`) and reports/runs/sweep/table.md
(`sdpo mbpp sweep`). A part without runs stays as it is.
"""

import argparse
import shutil
from collections.abc import Sequence

from generate import GALLERY, ROOT, replaced

from sdpo.benchmark.embedded.value_of_help import table
from sdpo.benchmark.results.findings import comparisons, findings, shown
from sdpo.benchmark.results.load_runs import Run, by_name, outcome, read_runs
from sdpo.benchmark.results.report import costs, outcomes, pairs, parity, write_report
from sdpo.benchmark.runs.evaluate_model import measure_model
from sdpo.benchmark.runs.records import read_json
from sdpo.benchmark.runs.settings import load

PAGE = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"
RUNS = ROOT / "reports" / "runs"
PLOTS = {
    "default": ("pass_at_1.png", "training.png"),
    "audit": ("loss_difference.png",),
}


def made_on(runs: Sequence[Run]) -> str:
    """Name commit and versions in one line."""
    environment = runs[0].facts["environment"]
    packages = environment["packages"]
    stack = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "trl"))
    commit = (environment["git_commit"] or "unknown")[:12]
    return f"{sum(run.finished for run in runs)} finished runs at commit {commit}, {stack}."


def results(runs: Sequence[Run]) -> str:
    """Show outcome, pairs, cost and what they say."""
    groups = by_name(runs)
    tables = [table for table in (outcomes(groups), pairs(groups), costs(groups)) if table]
    texts = [f"{table.markdown}\n\n{table.note}" for table in tables]
    sentences = "\n".join(f"- {sentence}" for sentence in findings(groups))
    return "\n\n".join([made_on(runs), *texts, sentences])


def in_short(runs: Sequence[Run]) -> str:
    """Write a line for each method, and for each pair what it says."""
    groups = by_name(runs)
    lines = []
    for name, group in groups.items():
        first, last, gain = outcome(group)
        lines.append(
            f"`{name}`: pass@1 {first.estimate:.3f} → {last.estimate:.3f}, gain "
            f"{shown(gain, signed=True)}, {len(group)} seeds, "
            f"{group[0].last['problems']} held-out problems"
        )
    return "\n".join(f"- {line}" for line in [*lines, *comparisons(groups)])


def audited(runs: Sequence[Run]) -> str:
    """Show distances to the reference, and whether auditing changed anything."""
    distances = parity(runs)
    assert distances is not None
    return f"{made_on(runs)}\n\n{distances.markdown}\n\n{same(runs)}"


def same(runs: Sequence[Run]) -> str:
    """Say whether plain and audited runs recorded the same and ended with the same weights."""
    groups, equal = by_name(runs), []
    for plain, audited in zip(groups["sdpo"], groups["sdpo-audit"], strict=True):
        recorded = [
            (
                run.seed,
                run.steps,
                run.evals,
                run.samples,
                read_json(RUNS / "audit" / run.name / f"seed-{run.seed}" / "summary.json")[
                    "weights_sha256"
                ],
            )
            for run in (plain, audited)
        ]
        equal.append(recorded[0] == recorded[1])
    return (
        "Steps, evaluations, samples and weights of `sdpo` and `sdpo-audit` are the same, bit for "
        f"bit, in {sum(equal)} of {len(equal)} seeds."
    )


def main() -> None:
    """Replace the generated parts and copy the plots."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = PAGE.read_text(encoding="utf-8")
    text = replaced(text, "help", table(measure_model(load("sdpo"), with_help=True)["rows"]))
    for name, block in (("default", results), ("audit", audited)):
        if not (RUNS / name).is_dir():
            print(f"no runs in {RUNS / name}: that part stays")
            continue
        text = replaced(text, name, block(read_runs(RUNS / name)))
        folder = ROOT / "reports" / "benchmark" / name
        write_report(RUNS / name, folder, f"Benchmark `{name}`")
        for plot in PLOTS[name]:
            shutil.copy(folder / plot, GALLERY / f"benchmark_{plot}")
    if (RUNS / "sweep" / "table.md").is_file():
        swept = (RUNS / "sweep" / "table.md").read_text(encoding="utf-8")
        text = replaced(text, "sweep", swept.strip())
    PAGE.write_text(text, encoding="utf-8")
    if (RUNS / "default").is_dir():
        readme = README.read_text(encoding="utf-8")
        block = in_short(read_runs(RUNS / "default"))
        README.write_text(replaced(readme, "benchmark", block), encoding="utf-8")


if __name__ == "__main__":
    main()
