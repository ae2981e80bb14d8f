"""What stands in front of every rendering of a report: the diagnosis, and what it was judged by.

The same sentences stand in each; texts of the candidate are in lines that are quoted alone.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.explain.explanation_rows import Diagnosis
from sdpo.parity.explain.rungs import RungResult
from sdpo.parity.report.report_rows import ImprovementRow, PrecisionRow, TrainerEffect
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.truth.tolerances import TOLERANCES

_MOST_RUNGS, _MOST_REASONS = 6, 2
_LEDGER = "deviations.toml"
Lines = list[tuple[str, str]]
QUOTED = ("why", "first case", "replay", "if meant")
"""Labels of lines that are commands or may hold texts of the candidate: renderings quote them."""


def diagnosis(run: RunReport, folder: str = "") -> Lines:
    """Say what to know first of a run; nothing for one that passes and lacks nothing.

    Args:
        run: the report of one candidate.
        folder: where its files lie, for commands that can be pasted; without it paths begin there.
    """
    lines: Lines = []
    if run.verdict == Verdict.INCONCLUSIVE:
        lines += [("why", reason) for reason in run.reasons[:_MOST_REASONS]]
    if run.verdict in (Verdict.DIVERGENT, Verdict.ERROR):
        lines += [("looks like", cause)] if (cause := _cause(run)) else []
        lines += _figures(run)
    lines += [("lacks", ", ".join(run.lacks))] if run.lacks else []
    lines += [("next", step)] if (step := _next_step(run)) else []
    return lines + _commands(run, folder)


def _figures(run: RunReport) -> Lines:
    """How much a departure matters, where it shows, and its smallest case."""
    if found := run.diagnosis:
        return [
            ("matters", _weight(found)),
            ("where", _where(found)),
            ("smallest", _smallest(found)),
        ]
    effects = [effect for effect in run.trainer if effect.introduced]
    lines = [("matters", weight)] if (weight := _weight_of_effects(effects)) else []
    if effects:
        names = [effect.scenario for effect in effects]
        lines.append(("where", f"{len(names)} of {len(run.trainer)} scenarios: {_few(names)}"))
    failing = [case for case in run.failing_cases if not case.may_follow] or run.failing_cases
    if failing and run.verdict == Verdict.DIVERGENT:
        case = failing[0]
        what = f"{', '.join(case.tags) or case.family}"
        lines.append(("first case", f"{case.id} ({what}) at {case.first_stage}: {case.note}"))
    return lines


def _weight_of_effects(effects: Sequence[TrainerEffect]) -> str:
    """What departures of a trainer do to the gradient of the first optimizer step."""
    ratios = [e.gradient_ratio for e in effects if isinstance(e.gradient_ratio, (int, float))]
    cosines = [e.gradient_cosine for e in effects if isinstance(e.gradient_cosine, (int, float))]
    if not ratios or not cosines:
        return ""
    return (
        f"gradient of the first step: norm x {number(min(ratios))} to {number(max(ratios))}, "
        f"cosine {number(min(cosines))} (lowest)"
    )


def _commands(run: RunReport, folder: str) -> Lines:
    """The commands that run one failing case again, and that declare what is meant."""
    lines: Lines = []
    if run.bundles:
        file = PurePath(folder, run.bundles[0].file)
        lines.append(("replay", shlex.join(["sdpo", "replay", str(file)])))
    if run.verdict == Verdict.DIVERGENT and run.repro:
        lines.append(("if meant", f"{run.repro} --write-ledger {_LEDGER}"))
    return lines


def _cause(run: RunReport) -> str:
    """The known faults that explain it; else what the ladder's rungs show."""
    if run.explained_by:
        return explanations(run)
    by_result: dict[str, dict[str, list[str]]] = {}
    for rung in run.ladder:
        word = "holds" if rung.result == RungResult.HOLDS else "departs"
        if rung.result != RungResult.UNUSABLE:
            name, variant = _split(rung.feature)
            by_result.setdefault(word, {}).setdefault(name, []).append(variant)
    if "departs" not in by_result:
        return ""
    parts = [
        f"{word}: {_few(_grouped(by_result[word]))}"
        for word in ("departs", "holds")
        if word in by_result
    ]
    return f"no known fault; {'; '.join(parts)}"


def _split(feature: str) -> tuple[str, str]:
    """A feature of the ladder as its kind and its variant."""
    if feature.startswith("alpha "):
        return "alpha", feature.removeprefix("alpha ")
    name, _, variant = feature.partition(", ")
    return name, variant


def _grouped(variants: Mapping[str, list[str]]) -> list[str]:
    """Features with their variants in one place: `alpha 0 / 1`."""
    return [f"{name} {' / '.join(filter(None, of))}".strip() for name, of in variants.items()]


def _few(words: list[str]) -> str:
    """The first words of a list, and how many more."""
    more = len(words) - _MOST_RUNGS
    return ", ".join(words[:_MOST_RUNGS]) + (f" and {more} more" if more > 0 else "")


def is_harmless(found: Diagnosis) -> bool:
    """Whether no value differs by more than float32 could hold."""
    return found.relative is not None and float(found.relative) < TOLERANCES.harmless_share


def _weight(found: Diagnosis) -> str:
    """How much the departure does to the gradient, and how large it is."""
    parts = []
    if found.gradient_ratio is not None:
        parts.append(f"gradient: norm x {number(found.gradient_ratio)} (median)")
    if found.gradient_cosine is not None:
        parts.append(f"cosine {number(found.gradient_cosine)} (lowest)")
    if found.relative is None:
        return ", ".join([*parts, "no size: values that are not finite, or zero"])
    size = f"largest difference {number(found.relative)} of the value"
    if is_harmless(found):
        least = number(TOLERANCES.harmless_share)
        size += f", below what float32 can hold ({least}): harmless in training"
    return ", ".join([*parts, size])


def _where(found: Diagnosis) -> str:
    """In how many cases, and what these have in common."""
    departing = f"{found.failing} of {found.compared} cases depart"
    if found.only_where:
        return f"{departing}: those with {found.only_where}, and no other"
    if most := found.mostly:
        others = f"{most.holding} of {found.compared - found.failing} others"
        return f"{departing}: {most.failing} of them where {most.conditions}, as {others}"
    if not found.shared:
        return departing
    others = found.compared - found.failing
    shared = ", ".join(f"{name} (so do {n} of {others} others)" for name, n in found.shared.items())
    return f"{departing}; all have {shared}"


def _smallest(found: Diagnosis) -> str:
    """The smallest failing case, with both losses."""
    losses = f"loss {number(found.actual)}, expected {number(found.expected)}"
    return f"{found.smallest} ({found.settings}): {losses}"


def _next_step(run: RunReport) -> str:
    """What to do: fix, declare, take more settings, or repair what fails."""
    if run.verdict == Verdict.INCONCLUSIVE and run.lacks:
        return "take what is lacking as arguments, or accept fewer cases with --min-cases"
    if run.verdict == Verdict.ERROR and run.started:
        failed = run.totals.by_status.get(Status.ERROR, 0)
        cases = "1 case" if failed == 1 else f"{failed} cases"
        return f"repair what raises in {cases}; the others are judged as ever"
    if run.verdict != Verdict.DIVERGENT or not run.first_stage:
        return ""
    if run.diagnosis and is_harmless(run.diagnosis):
        return "declare it, by the command below"
    source = STAGES[run.first_stage].source
    own = f", yours {place}" if (place := run.location_of(run.first_stage)) else ""
    return f"compare {run.first_stage} with the reference ({source}){own}"


def judgement(run: RunReport) -> list[str]:
    """What a reader must know of how the candidate was judged; empty for most."""
    sentences = [_precision(row) for row in run.precision]
    if run.verdict == Verdict.DIVERGENT and (only := run.departs_only):
        others = " and ".join(f"{count} {dtype} cases" for dtype, count in only.holds.items())
        sentences.append(
            f"departs in {only.dtype} alone: in {only.cases} of {only.of} such cases; all "
            f"of {others} hold, among them cases of the same kind"
        )
    return sentences


def _precision(row: PrecisionRow) -> str:
    """Where a candidate computes in less than it is given, and whose budgets judge it."""
    cases = f"{row.cases} of {row.of} {row.given} cases"
    if row.judged_by == row.computes_in:
        return (
            f"computes in {row.computes_in}: {cases} are judged by its budgets, since the "
            f"results do not follow changes of the logits that {row.computes_in} cannot hold"
        )
    values = " and ".join("loss" if name == "aggregate" else name for name in row.values)
    searched = " that were searched" if row.given == "float32" else ""
    return (
        f"computes its {values} in {row.computes_in} where it is given {row.given} (seen in "
        f"{cases}{searched}); judged by {row.judged_by}'s budgets"
    )


def improvement_lines(run: RunReport) -> list[str]:
    """The documented improvements that some cases fall under, one line each."""
    return [
        f"DECLARED {row.id} (built-in, {case_count(row)}): {row.reason}" for row in run.improvements
    ]


def case_count(row: ImprovementRow) -> str:
    """In how many cases an improvement was seen."""
    return "1 case" if len(row.cases) == 1 else f"{len(row.cases)} cases"


def number(value: object) -> str:
    """Format a figure for a table: three significant digits, `-` for none."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def explanations(run: RunReport) -> str:
    """The explaining faults, each with its share of the diverging cases, small ones as `also`."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    for row in run.explanations:
        parts[row.also].append(f"{row.fault} ({row.share})")
    main, also = ("; ".join(parts[small]) for small in (False, True))
    return f"{main}; also {also}" if also else main
