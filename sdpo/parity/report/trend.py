"""Use of the budgets over a history of audits, and alarms where a tolerance was loosened."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.truth.tolerances import TOLERANCES

BARS = "▁▂▃▄▅▆▇█"
MOST_SHOWN = 40

Line = Mapping[str, Any]


def by_candidate(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each candidate, in order."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["candidate"], []).append(line)
    return found


def alarms(before: Line, now: Line) -> list[str]:
    """What became looser from one line of a candidate to a later one."""
    return [
        *constants(before["tolerances"], now["tolerances"]),
        *detectable(before, now),
        *policy(before, now),
        *ledger(before["declared"], now["declared"]),
    ]


def constants(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Tolerances that grew or disappeared."""
    found = [
        f"tolerance {name} grew from {before[name]:g} to {now[name]:g}"
        for name in before
        if name in now and now[name] > before[name]
    ]
    return found + [f"tolerance {name} is no longer recorded" for name in before.keys() - now]


def detectable(before: Line, now: Line) -> list[str]:
    """Stages whose smallest detectable change grew on the same golden data."""
    if before["goldens"] != now["goldens"]:
        return []
    # it is measured: a part in a hundred may come from another torch
    growth = TOLERANCES.detectable_growth
    then, later = before["smallest_detectable"], now["smallest_detectable"]
    return [
        f"{stage}: the smallest detectable change grew from {float(then[stage]):.3g} "
        f"to {float(later[stage]):.3g}"
        for stage in NAMES
        if stage in then and stage in later and float(later[stage]) > growth * float(then[stage])
    ]


def policy(before: Line, now: Line) -> list[str]:
    """A larger share of the budgets, fewer stages, less required coverage."""
    found = []
    then, later = before["policy"], now["policy"]
    if later["budget"] > then["budget"]:
        found.append(f"share of the budgets grew from {then['budget']:g} to {later['budget']:g}")
    if later["coverage"] < then["coverage"]:
        found.append(f"required coverage fell from {then['coverage']} to {later['coverage']}")
    if lost := [stage for stage in then["require"] if stage not in later["require"]]:
        found.append(f"no longer required: {', '.join(lost)}")
    if lost := [stage for stage in before["covered"] if stage not in now["covered"]]:
        found.append(f"no longer covered: {', '.join(lost)}")
    return found


def ledger(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Deviations that were declared, or whose declaration covers more."""
    found = [f"deviation {id_} was declared" for id_ in now if id_ not in before]
    for id_ in before.keys() & now.keys():
        then, later = before[id_], now[id_]
        if wider(then["range"], later["range"]):
            found.append(f"range of {id_} grew from {then['range']} to {later['range']}")
        if then["expires"] and (later["expires"] or "9999") > then["expires"]:
            until = later["expires"] or "never"
            found.append(f"expiry of {id_} moved from {then['expires']} to {until}")
        if more := set(later["stages"]) - set(then["stages"]):
            found.append(f"{id_} covers more stages: {', '.join(sorted(more))}")
        if then["cases"] and (not later["cases"] or set(later["cases"]) - set(then["cases"])):
            found.append(f"{id_} covers more cases")
    return sorted(found)


def wider(then: Sequence[float] | None, later: Sequence[float] | None) -> bool:
    """Whether a range allows sizes that it did not allow before; None allows all."""
    if then is None:
        return False
    return later is None or later[0] < then[0] or later[1] > then[1]


def tightest(lines: Sequence[Line]) -> Line:
    """A line with the tightest tolerances that any of these lines had."""
    best = dict(lines[0])
    for line in lines[1:]:
        best["tolerances"] = least(best["tolerances"], line["tolerances"])
        if line["goldens"] == best["goldens"]:
            best["smallest_detectable"] = least(
                best["smallest_detectable"], line["smallest_detectable"]
            )
        else:
            best["goldens"] = line["goldens"]
            best["smallest_detectable"] = line["smallest_detectable"]
        then, now = best["policy"], line["policy"]
        best["policy"] = {
            "stages": now["stages"],
            "budget": min(then["budget"], now["budget"]),
            "coverage": max(then["coverage"], now["coverage"]),
            "require": list(dict.fromkeys([*then["require"], *now["require"]])),
        }
        best["covered"] = list(dict.fromkeys([*best["covered"], *line["covered"]]))
        common = best["declared"].keys() & line["declared"].keys()
        best["declared"] = {
            id_: line["declared"][id_]
            if wider(best["declared"][id_]["range"], line["declared"][id_]["range"]) is False
            else best["declared"][id_]
            for id_ in sorted(common)
        }
    return best


def least(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The smaller of the values under each name."""
    joined = {**one, **other}
    return {
        name: min(float(one.get(name, joined[name])), float(other.get(name, joined[name])))
        for name in joined
    }


def findings(lines: Sequence[Line], *, ratchet: bool, every: bool) -> list[dict[str, Any]]:
    """For each candidate its use of the budgets and what became looser.

    Args:
        lines: the history, oldest first.
        ratchet: compare with the tightest tolerances that there ever were, not with the last ones.
        every: compare each line with the one before, not only the last one.
    """
    rows = []
    for candidate, own in by_candidate(lines).items():
        places = range(1, len(own)) if every else [len(own) - 1] if len(own) > 1 else []
        said = []
        for place in places:
            before = tightest(own[:place]) if ratchet else own[place - 1]
            for text in alarms(before, own[place]):
                said.append({"created": own[place]["created"], "alarm": text})
        stages = {
            name: [line["budget_used"].get(name) for line in own]
            for name in NAMES
            if any(name in line["budget_used"] for line in own)
        }
        rows.append(
            {
                "candidate": candidate,
                "runs": len(own),
                "first": own[0]["created"],
                "last": own[-1]["created"],
                "verdicts": [line["verdict"] for line in own],
                "budget_used": stages,
                "alarms": said,
            }
        )
    return rows


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The findings for a terminal; the first line says whether anything became looser."""
    count = sum(len(row["alarms"]) for row in rows)
    runs = sum(row["runs"] for row in rows)
    verdict = "LOOSENED" if count else "PASS"
    lines = [f"{verdict} candidates={len(rows)} runs={runs} alarms={count}"]
    for row in rows:
        lines += ["", f"{row['candidate']}: {row['runs']} runs, {row['first']} to {row['last']}"]
        lines.append("  verdicts: " + " ".join(row["verdicts"][-MOST_SHOWN:]))
        for name, used in row["budget_used"].items():
            known = [float(u) for u in used if u is not None]
            last = f"{known[-1]:.3g}" if used[-1] is not None else "-"
            lines.append(f"  {name:<18} {bars(used)}  last {last}, most {max(known):.3g}")
        lines += [f"  ALARM {a['created']}: {a['alarm']}" for a in row["alarms"]]
    lines += ["", "Bars: largest share of a budget in each run, full at 1; ! is beyond, . is none."]
    return "\n".join(lines)


def bars(used: Sequence[Any]) -> str:
    """One sign for each run: how much of a budget was used at most."""
    signs = []
    for value in used[-MOST_SHOWN:]:
        share = math.nan if value is None else float(value)
        if value is None:
            signs.append(".")
        elif not share <= 1:
            signs.append("!")
        else:
            signs.append(BARS[min(int(share * len(BARS)), len(BARS) - 1)])
    return "".join(signs)
