"""Tables of the audited trainers, for the README and for `docs/peers.md`, from their reports."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.report.declared_deviations import load_for
from sdpo.parity.report.judgement import number

Run = Mapping[str, Any]

TITLES = {"sdpo-trainer": "ours", "trl": "TRL", "sdpo-rl": "sdpo-rl"}
FAILING = ("DIVERGENT", "ERROR")
FIGURES = {
    "gradient_ratio": "norm ×",
    "gradient_cosine": "cosine",
    "gradient_distance": "distance",
    "parameters_distance": "weights",
    "teacher_distance": "teacher",
    "logged_loss": "logged",
    "optimised_loss": "optimised",
    "reference_loss": "reference",
}


def table(head: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `align` has a letter for each column, `l` or `r`."""
    rule = "|".join({"l": "---", "r": "--:"}[letter] for letter in align)
    lines = [f"| {' | '.join(head)} |", f"|{rule}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def title(run: Run) -> str:
    """Name and version of the audited package; ours has none."""
    name = run["candidate"]
    installed = next((n for n in run["notes"] if n.startswith("installed: ")), "")
    version = re.search(rf"\b{re.escape(name)} ([\w.+]+)", installed)
    return f"{TITLES[name]} {version[1]}" if version else TITLES[name]


def summary(run: Run) -> str:
    """Verdict, totals and cost of a run in one line."""
    totals = run["totals"]
    first = f", first at `{run['first_stage']}`" if run["first_stage"] else ""
    probes = sum(case["family"] == "probe" for case in run["cases"])
    statuses = ", ".join(f"{count} {name}" for name, count in totals["by_status"].items())
    return (
        f"`sdpo audit {run['candidate']}`: **{run['verdict']}**{first}; "
        f"{totals['cases'] - probes} scenarios and {probes} probes ({statuses}); "
        f"{totals['elements']} elements compared in {run['seconds']:.0f} s."
    )


def status(run: Run, stage: str) -> str:
    """Status of a stage; `follows` where it diverges only because an earlier stage does."""
    row = next(row for row in run["stages"] if row["name"] == stage)
    own = [
        comparison
        for case in run["cases"]
        for comparison in case["comparisons"]
        if comparison["stage"] == stage
        and comparison["status"] in FAILING
        and not comparison.get("inherits")
    ]
    return "follows" if row["status"] == "DIVERGENT" and not own else row["status"]


def stage_table(runs: Sequence[Run]) -> str:
    """Status of each stage in each trainer."""
    rows = [
        [str(stage.number), f"`{name}`", *(status(run, name) for run in runs)]
        for name, stage in STAGES.items()
    ]
    return table(["#", "stage", *map(title, runs)], "rl" + "l" * len(runs), rows)


def faults(run: Run, effect: Mapping[str, Any]) -> list[str]:
    """Known faults of a scenario, among those chosen for the whole run."""
    return [label for label in effect["explained_by"] if label in run["explained_by"]]


def main_effects(run: Run) -> Iterator[tuple[Mapping[str, Any], list[str], list[str]]]:
    """Scenarios that first show a stage or a known fault, with what is new in them.

    A stage that departs again, without the faults that explained it before, is new once more.
    """
    explained: dict[str, set[str]] = {}
    seen: set[str] = set()
    unexplained: set[str] = set()
    for effect in run["trainer"]:
        labels = set(faults(run, effect))
        fresh = [label for label in faults(run, effect) if label not in seen]
        new = [
            stage
            for stage in effect["introduced"]
            if stage not in unexplained and not explained.get(stage, set()) & labels
        ]
        for stage in new:
            explained.setdefault(stage, set()).update(fresh)
        if not fresh:
            unexplained |= set(new)
        if fresh or new:
            yield effect, new or effect["introduced"], fresh
        seen |= labels


def named(run: Run, label: str) -> str:
    """A known fault, with the ids of those of its stage that explain just as much."""

    def shown(wanted: str) -> set[str]:
        return {e["scenario"] for e in run["trainer"] if wanted in e["explained_by"]}

    others = {other for effect in run["trainer"] for other in effect["explained_by"]}
    same = [
        other.split()[0]
        for other in sorted(others - set(run["explained_by"]))
        if stage_of(other) == stage_of(label) and shown(label) <= shown(other)
    ]
    return f"{label} (or {', '.join(same)})" if same else label


def stage_of(label: str) -> str:
    """The stage of a known fault, by its label."""
    return BY_ID[label.split()[0]].stage


def main_table(runs: Sequence[Run]) -> str:
    """The deviations of all trainers, each where it shows first."""
    names = ("gradient_ratio", "gradient_cosine", "gradient_distance", "parameters_distance")
    rows = [
        [
            title(run).split()[0],
            f"{effect['scenario']}: {effect['description']}",
            ", ".join(f"`{stage}`" for stage in stages),
            "; ".join(named(run, label) for label in fresh) or "-",
            *(number(effect[name]) for name in names),
        ]
        for run in runs
        for effect, stages, fresh in main_effects(run)
    ]
    head = ["trainer", "scenario that shows it first", "new at", "known fault"]
    return table([*head, *(FIGURES[name] for name in names)], "llllrrrr", rows)


def scenario_table(run: Run) -> str:
    """Every scenario of a trainer with its effects."""
    rows = [
        [
            effect["scenario"],
            effect["description"],
            ", ".join(f"`{stage}`" for stage in effect["introduced"]) or "-",
            ", ".join(label.split()[0] for label in faults(run, effect)) or "-",
            *(number(effect[name]) for name in FIGURES),
        ]
        for effect in run["trainer"]
    ]
    head = ["", "scenario", "departs at", "faults", *FIGURES.values()]
    return table(head, "llll" + "r" * len(FIGURES), rows)


def left_out(run: Run) -> str:
    """Scenarios and probes that were not run, with the reason."""
    return "\n".join(
        f"- {case['id']}: {case['note'].removeprefix('not covered: ')}"
        for case in run["cases"]
        if case["status"] == "NOT_COVERED"
    )


def failed_trainings(run: Run) -> str:
    """Scenarios in which the trainer itself failed or hung, which have no effect to measure."""
    return "\n".join(
        f"- {case['id']}: {comparison['note'].partition('; versions')[0]}"
        for case in run["cases"]
        for comparison in case["comparisons"]
        if case["family"] == "trainer" and comparison.get("effect") == "failure"
    )


def relation_table(runs: Sequence[Run]) -> str:
    """What each trainer, and the reference, makes of each metamorphic relation."""
    rows = [
        [
            row["name"],
            *(
                next(r["status"] for r in run["invariants"] if r["name"] == row["name"])
                for run in runs
            ),
            row["of_reference"],
        ]
        for row in runs[0]["invariants"]
    ]
    return table(["relation", *map(title, runs), "reference"], "l" * (len(runs) + 2), rows)


def failed_probes(run: Run) -> str:
    """Probes that did not come out as they must."""
    return "\n".join(
        f"- {case['id']}: {case['note']}"
        for case in run["cases"]
        if case["family"] == "probe" and case["status"] in FAILING
    )


def ledger_list(name: str) -> str:
    """The entries of a packaged ledger."""
    return "\n".join(
        f"- **{entry.id}** `{entry.stages[0]}`{f', {entry.fault}' if entry.fault else ''}: "
        f"{entry.reason} ([source]({entry.link.split()[0]})"
        f"{' ' + entry.link.split(maxsplit=1)[1] if ' ' in entry.link else ''})"
        for entry in load_for([name])
    )


PAGE = """# Trainers against the reference

Generated by `make docs` from `sdpo audit {names}`; do not edit.

The real trainer classes run scripted scenarios on a tiny model ([how](trainer_adapters.md)); each
stage is compared with the reference at the trainer's own weights. Beside that the reference learns
from the same script by itself, and the figures say how far the trainer ends from it:

| figure | meaning |
|---|---|
| norm ×, cosine, distance | first gradient: ratio of norms, cosine, distance ÷ reference's norm |
| weights, teacher | distance after the last update ÷ the way that the reference has gone |
| logged, optimised, reference | first step's loss: logged, followed by the gradient, reference's |

"-" is a value that is not there or not finite. "faults" are ids of `sdpo mutants` that reproduce
what was seen. A stage that only `follows` diverges because an earlier one does. A stage that a
trainer does not show by itself may be covered by probes alone (TRL's `demonstration`). Rollout
weights and tokens of tools are in probes, for trainers that have an input for them, in no scenario.

{stages}

Metamorphic relations compare a trainer's first update with its own first update on a batch that was
cut, padded or permuted ([what each says](audit.md#invariants)):

{relations}
"""


def page(runs: Sequence[Run]) -> str:
    """`docs/peers.md`."""
    names = " ".join(run["candidate"] for run in runs)
    tables = {"stages": stage_table(runs), "relations": relation_table(runs)}
    parts = [PAGE.format(names=names, **tables).rstrip()]
    for run in runs:
        parts += [f"## {title(run)}", summary(run), *(f"- {note}" for note in run["notes"])]
        parts.append(scenario_table(run))
        if text := failed_trainings(run):
            parts += ["Failed or hung with several processes:", text]
        if text := failed_probes(run):
            parts += ["Probes (one input is changed alone) that failed:", text]
        if text := left_out(run):
            parts += ["Left out:", text]
        if run["candidate"] != "sdpo-trainer":
            ledger = f"`sdpo audit {run['candidate']} --declared {run['candidate']}`"
            parts += [f"What is behind it, as declared ({ledger}):", ledger_list(run["candidate"])]
    return "\n\n".join(parts) + "\n"
