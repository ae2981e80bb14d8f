"""Use of the budgets over a history of audits, and alarms where a tolerance was loosened."""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.report.history import DeclaredLimits, Line
from sdpo.parity.report.report_context import PolicyRow
from sdpo.parity.report.report_rows import Size
from sdpo.parity.truth.tolerances import TOLERANCES

_BARS = "▁▂▃▄▅▆▇█"
_MOST_SHOWN = 40


class Alarm(Struct):
    """What became looser, and in which run."""

    created: str
    alarm: str


class CandidateTrend(Struct):
    """A candidate's use of the budgets, by stage and run, and what became looser."""

    candidate: str
    runs: int
    first: str
    last: str
    verdicts: list[str]
    budget_used: dict[str, list[Size | None]]
    alarms: list[Alarm]


def _by_candidate(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each candidate, in order."""
    of_candidate: dict[str, list[Line]] = {}
    for line in lines:
        of_candidate.setdefault(line.candidate, []).append(line)
    return of_candidate


def alarms(before: Line, now: Line) -> list[str]:
    """What became looser from one line of a candidate to a later one."""
    return [
        *_tolerances(before.tolerances, now.tolerances),
        *_detectable(before, now),
        *_policy(before, now),
        *_ledger(before.declared, now.declared),
    ]


def _tolerances(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Tolerances that grew or disappeared."""
    grew = [
        f"tolerance {name} grew from {before[name]:g} to {now[name]:g}"
        for name in before
        if name in now and now[name] > before[name]
    ]
    return grew + [f"tolerance {name} is no longer recorded" for name in before.keys() - now]


def _detectable(before: Line, now: Line) -> list[str]:
    """Stages whose smallest detectable change grew on the same golden data."""
    if before.goldens != now.goldens:
        return []
    # it is measured: a part in a hundred may come from another torch
    growth = TOLERANCES.detectable_growth
    then, later = before.smallest_detectable, now.smallest_detectable
    return [
        f"{stage}: the smallest detectable change grew from {float(then[stage]):.3g} "
        f"to {float(later[stage]):.3g}"
        for stage in NAMES
        if stage in then and stage in later and float(later[stage]) > growth * float(then[stage])
    ]


def _policy(before: Line, now: Line) -> list[str]:
    """A larger share of the budgets, fewer stages, less required coverage."""
    looser = []
    then, later = before.policy, now.policy
    if later.budget > then.budget:
        looser.append(f"share of the budgets grew from {then.budget:g} to {later.budget:g}")
    if later.coverage < then.coverage:
        looser.append(f"required coverage fell from {then.coverage} to {later.coverage}")
    if lost := [stage for stage in then.require if stage not in later.require]:
        looser.append(f"no longer required: {', '.join(lost)}")
    if lost := [stage for stage in before.covered if stage not in now.covered]:
        looser.append(f"no longer covered: {', '.join(lost)}")
    return looser


def _ledger(before: Mapping[str, DeclaredLimits], now: Mapping[str, DeclaredLimits]) -> list[str]:
    """Deviations that were declared, or whose declaration covers more."""
    looser = [f"deviation {id_} was declared" for id_ in now if id_ not in before]
    for id_ in before.keys() & now.keys():
        then, later = before[id_], now[id_]
        if _wider(then.range, later.range):
            looser.append(f"range of {id_} grew from {_limits(then)} to {_limits(later)}")
        if then.expires and (later.expires is None or later.expires > then.expires):
            until = later.expires or "never"
            looser.append(f"expiry of {id_} moved from {then.expires} to {until}")
        if more := set(later.stages) - set(then.stages):
            looser.append(f"{id_} covers more stages: {', '.join(sorted(more))}")
        if then.cases and (not later.cases or set(later.cases) - set(then.cases)):
            looser.append(f"{id_} covers more cases")
    return sorted(looser)


def _limits(declared: DeclaredLimits) -> list[float] | None:
    return list(declared.range) if declared.range else None


def _wider(then: Sequence[float] | None, later: Sequence[float] | None) -> bool:
    """Whether a range allows sizes that it did not allow before; None allows all."""
    if then is None:
        return False
    return later is None or later[0] < then[0] or later[1] > then[1]


def tightest(lines: Sequence[Line]) -> Line:
    """A line with the tightest tolerances that any of these lines had."""
    best = lines[0]
    for line in lines[1:]:
        detectable = line.smallest_detectable
        if line.goldens == best.goldens:
            detectable = _least(best.smallest_detectable, detectable)
        common = best.declared.keys() & line.declared.keys()
        best = structs.replace(
            best,
            tolerances=_least(best.tolerances, line.tolerances),
            goldens=line.goldens,
            smallest_detectable=detectable,
            policy=_tightest_policy(best.policy, line.policy),
            covered=list(dict.fromkeys([*best.covered, *line.covered])),
            declared={
                id_: _narrower(best.declared[id_], line.declared[id_]) for id_ in sorted(common)
            },
        )
    return best


def _tightest_policy(then: PolicyRow, now: PolicyRow) -> PolicyRow:
    return PolicyRow(
        now.stages,
        tuple(dict.fromkeys([*then.require, *now.require])),
        max(then.coverage, now.coverage),
        min(then.budget, now.budget),
    )


def _narrower(then: DeclaredLimits, now: DeclaredLimits) -> DeclaredLimits:
    return then if _wider(then.range, now.range) else now


def _least(left: Mapping[str, Size], right: Mapping[str, Size]) -> dict[str, float]:
    """The smaller of the values under each name."""
    joined = {**left, **right}
    return {
        name: min(float(left.get(name, joined[name])), float(right.get(name, joined[name])))
        for name in joined
    }


def findings(lines: Sequence[Line], *, ratchet: bool, every: bool) -> list[CandidateTrend]:
    """For each candidate its use of the budgets and what became looser.

    Args:
        lines: the history, oldest first.
        ratchet: compare with the tightest tolerances that there ever were, not with the last ones.
        every: compare each line with the one before, not only the last one.
    """
    trends = []
    for candidate, history in _by_candidate(lines).items():
        first_compared = 1 if every else max(1, len(history) - 1)
        looser = []
        for place in range(first_compared, len(history)):
            before = tightest(history[:place]) if ratchet else history[place - 1]
            created = history[place].created
            looser += [Alarm(created, text) for text in alarms(before, history[place])]
        used: dict[str, list[Size | None]] = {
            name: [line.budget_used.get(name) for line in history]
            for name in NAMES
            if any(name in line.budget_used for line in history)
        }
        trends.append(
            CandidateTrend(
                candidate,
                len(history),
                history[0].created,
                history[-1].created,
                [line.verdict for line in history],
                used,
                looser,
            )
        )
    return trends


def text_of(trends: Sequence[CandidateTrend]) -> str:
    """The findings for a terminal; the first line says whether anything became looser."""
    count = sum(len(trend.alarms) for trend in trends)
    runs = sum(trend.runs for trend in trends)
    verdict = "LOOSENED" if count else "PASS"
    lines = [f"{verdict} candidates={len(trends)} runs={runs} alarms={count}"]
    for trend in trends:
        lines += ["", f"{trend.candidate}: {trend.runs} runs, {trend.first} to {trend.last}"]
        lines.append("  verdicts: " + " ".join(trend.verdicts[-_MOST_SHOWN:]))
        for name, used in trend.budget_used.items():
            known = [float(share) for share in used if share is not None]
            last = f"{known[-1]:.3g}" if used[-1] is not None else "-"
            lines.append(f"  {name:<18} {bars(used)}  last {last}, most {max(known):.3g}")
        lines += [f"  ALARM {alarm.created}: {alarm.alarm}" for alarm in trend.alarms]
    lines += ["", "Bars: largest share of a budget in each run, full at 1; ! is beyond, . is none."]
    return "\n".join(lines)


def bars(used: Sequence[Size | None]) -> str:
    """One sign for each run: how much of a budget was used at most."""
    return "".join(_bar(share) for share in used[-_MOST_SHOWN:])


def _bar(share: Size | None) -> str:
    if share is None:
        return "."
    value = float(share)
    if math.isnan(value) or value > 1:
        return "!"
    return _BARS[min(int(value * len(_BARS)), len(_BARS) - 1)]
