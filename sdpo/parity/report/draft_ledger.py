"""A draft of declared deviations from an audit: sizes filled in, reasons left to a human."""

import json
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from sdpo.parity.cases.stages import NAMES, STAGES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.report.declared_deviations import EFFECTS, apply_declarations
from sdpo.parity.report.rejudge import evidence_of, policy_of
from sdpo.parity.report.report_context import ANY
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.truth.tolerances import TOLERANCES

_HEAD = """\
# Declared deviations of {candidate}, drafted on {day}.
# Each entry needs a reason before `--declared` accepts this file; delete what is a fault.
"""


def draft(run: RunReport) -> str:
    """The divergences of a run that no entry declares, as TOML.

    Divergences that cannot be declared (errors, a broken gradient) are listed as comments; those
    that follow from an earlier stage need no entry.
    """
    evidence, policy = evidence_of(run), policy_of(run)
    results = apply_declarations(
        evidence.results,
        evidence.candidate,
        policy.declared,
        today=date.today(),
        derives_from=evidence.derives_from,
    ).results
    groups: dict[tuple[str, str], list[tuple[CaseResult, Comparison]]] = {}
    other = []
    for result in results:
        for comparison in result.comparisons:
            if comparison.inherits:
                continue
            if comparison.status == Status.DIVERGENT and comparison.effect in EFFECTS:
                key = (comparison.stage, comparison.effect)
                groups.setdefault(key, []).append((result, comparison))
            elif comparison.status in FAILING:
                other.append(f"# cannot be declared: {result.id}, {comparison.stage}: ")
                other[-1] += " ".join(comparison.note.split())
    day = date.today().isoformat()
    lines = [_HEAD.format(candidate=" ".join(run.candidate.split()), day=day), *other]
    ordered = sorted(groups, key=lambda key: (NAMES.index(key[0]), EFFECTS.index(key[1])))
    for number, key in enumerate(ordered, start=1):
        lines.append(_entry(f"L{number:02}", run, key, groups[key], results))
    return "\n".join(lines) + "\n"


def _entry(
    id_: str,
    run: RunReport,
    key: tuple[str, str],
    found: Sequence[tuple[CaseResult, Comparison]],
    results: Iterable[CaseResult],
) -> str:
    """One entry: a stage and an effect."""
    stage, effect = key
    shown = {result.id for result, _ in found}
    compared = [
        result
        for result in results
        if any(c.stage == stage and c.status != Status.NOT_COVERED for c in result.comparisons)
    ]
    tag, cases = scope(shown, compared)
    by_value = effect == "value" and STAGES[stage].kind == "numeric"
    size = max(c.max_abs for _, c in found) if by_value else float(len(shown))
    margin = TOLERANCES.drafted_range_share if by_value else 0.0
    fields: dict[str, Any] = {
        "id": id_,
        "candidates": [run.candidate],
        "stages": [stage],
        "effect": effect,
        "tag": tag,
        "cases": cases,
        "fault": _single_fault(run.explained_by),
        "reason": "",
        "link": "",
        "measured": size,
        "range": [size * (1 - margin), size * (1 + margin)],
    }
    # a JSON text, list or number is one of TOML too
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items() if value != []]
    return "\n".join(["[[deviation]]", *lines, ""])


def scope(shown: set[str], compared: Sequence[CaseResult]) -> tuple[str, list[str]]:
    """The tag that names exactly these cases among those compared, else the cases by name."""
    if shown == {result.id for result in compared}:
        return ANY, []
    tags = sorted({tag for result in compared for tag in result.tags})
    for tag in tags:
        if shown == {result.id for result in compared if tag in result.tags}:
            return tag, []
    return ANY, sorted(shown)


def _single_fault(labels: Sequence[str]) -> str:
    """The id of the one fault that explains the candidate, else nothing."""
    alone = len(labels) == 1 and " + " not in labels[0]
    return labels[0].split()[0] if alone else ""
