"""Declared deviations: known differences with a reason, so that only undeclared ones fail.

A file of them is a ledger: TOML with `[[deviation]]` entries. None is read unless it is asked for;
documented improvements on the reference need none (`improvements.py`).
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import structs

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import FINITE, Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.report.report_context import DeclaredRow, Deviation

LEDGERS = Path(__file__).parent / "ledgers"
EFFECTS = ("value", FINITE, "nan", "dtype", "failure")


RawEntry = Mapping[str, object]
"""An entry as TOML has it, not yet checked."""


class DeclaredError(Exception):
    """The file of declared deviations is missing or not in its format."""


def load_for(files: Sequence[str] = ()) -> list[Deviation]:
    """The entries of some files or packaged ledgers.

    Args:
        files: paths, or names of packaged ledgers such as `trl`.

    Raises:
        DeclaredError: a file is unusable, or two entries have one id.
    """
    paths = [_ledger_or_file(file) for file in files]
    entries = [entry for path in paths for entry in load_declared(path)]
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise DeclaredError(f"declared deviations: two entries have the id {entry.id}")
        seen.add(entry.id)
    return entries


def _ledger_or_file(name: str) -> Path:
    """The packaged ledger of that name, else the path; a file of the same name comes first."""
    ledger, named = LEDGERS / f"{name}.toml", re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)
    return ledger if named and ledger.exists() and not Path(name).exists() else Path(name)


def load_declared(path: Path) -> list[Deviation]:
    """Read a file of declared deviations.

    Raises:
        DeclaredError: unreadable, not TOML, unknown or missing fields, or values that make no
            sense; one line that names the file, the entry and the rule.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeclaredError(f"declared deviations: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeclaredError(f"declared deviations: {path} is not TOML: {error}") from error
    entries = document.pop("deviation", [])
    if document or not isinstance(entries, list):
        raise DeclaredError(f"{path}: only [[deviation]] entries belong here, not {list(document)}")
    return [_deviation(path, entry) for entry in entries]


def _deviation(path: Path, entry: RawEntry) -> Deviation:
    """Read and check an entry of a file."""
    where = f"{path}: entry {entry.get('id', '?')}"
    if problem := _wrong_text(entry):
        raise DeclaredError(f"{where}: {problem}")
    try:
        deviation = msgspec.convert(entry, Deviation)
    except msgspec.ValidationError as error:
        raise DeclaredError(f"{where}: {error}") from error
    if problem := _wrong_value(deviation):
        raise DeclaredError(f"{where}: {problem}")
    return deviation


def _wrong_text(entry: RawEntry) -> str:
    """What is wrong with the names and the reason of an entry; empty if nothing is."""
    stages = entry.get("stages")
    if isinstance(stages, list) and (unknown := [name for name in stages if name not in STAGES]):
        return f"unknown stages {unknown}; valid are {', '.join(STAGES)}"
    if entry.get("effect", "value") not in EFFECTS:
        return f"effect must be one of {EFFECTS}"
    if isinstance(reason := entry.get("reason"), str) and not reason.strip():
        return "reason is empty: say why this deviation is meant to be"
    return ""


def _wrong_value(entry: Deviation) -> str:
    """What does not fit together in an entry; empty if nothing is wrong."""
    if not entry.candidates or not entry.stages:
        return "candidates and stages must each name at least one"
    if len({STAGES[stage].kind for stage in entry.stages}) > 1:
        return "exact and numeric stages need entries of their own"
    if entry.fault and entry.fault not in BY_ID:
        return f"unknown fault {entry.fault!r}; `sdpo mutants` lists the catalogue"
    if (entry.measured is None) != (entry.range is None):
        return "measured and range belong together"
    if entry.measured is None or entry.range is None:
        needed = entry.effect == "value"
        return "measured and range are needed for the effect 'value'" if needed else ""
    least, most = entry.range
    if not all(math.isfinite(size) for size in (least, most, entry.measured)):
        return "measured and range must be finite"
    if not least <= entry.measured <= most:
        return f"measured = {entry.measured:g} lies outside range = [{least:g}, {most:g}]"
    return ""


class Declarations(NamedTuple):
    """Cases with their declared divergences, what is wrong with the declarations, report rows."""

    results: list[CaseResult]
    complaints: list[str]
    rows: list[DeclaredRow]


def apply_declarations(
    results: Sequence[CaseResult],
    candidate: str,
    declared: Sequence[Deviation],
    *,
    today: date,
    stages: Sequence[str] = (),
    derives_from: Sequence[str] = (),
) -> Declarations:
    """Turn declared divergences into DECLARED, and complain of entries that no longer hold.

    Args:
        results: of all cases; they stay as they are.
        candidate: its name.
        declared: the ledger.
        today: the day that decides what has expired.
        stages: the stages that are judged; all if empty.
        derives_from: names of packaged candidates whose adapters the candidate's derives from:
            what is declared of them is declared of it.
    """
    names = (candidate, *derives_from)
    entries = [
        entry
        for entry in declared
        if entry.concerns(names) and (not stages or set(entry.stages) & set(stages))
    ]
    shown: dict[str, list[Comparison]] = {entry.id: [] for entry in entries}
    judged = []
    for result in results:
        comparisons = []
        for comparison in result.comparisons:
            about = [e for e in entries if e.covers(result, comparison)]
            departs = comparison.status == Status.DIVERGENT
            if (
                about
                and not comparison.inherits
                and (departs or comparison.status == Status.DECLARED)
            ):
                for entry in about:
                    shown[entry.id].append(replace(comparison, case=result.id))
                comparison = _declared(comparison, about, today) if departs else comparison
            comparisons.append(comparison)
        judged.append(replace(result, comparisons=_with_followers(comparisons)))
    ran = {
        entry.id
        for entry in entries
        for result in results
        if any(entry.is_about(result, c) for c in result.comparisons)
    }
    rows = [_declared_row(entry, shown[entry.id], entry.id in ran) for entry in entries]
    complaints = [_complaint(row, today) for row in rows]
    return Declarations(judged, [text for text in complaints if text], rows)


def _with_followers(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Values that follow from a stage which is no longer divergent are declared with it."""
    divergent = {c.stage for c in comparisons if c.status == Status.DIVERGENT and not c.inherits}
    return [
        replace(c, status=Status.DECLARED, note=f"follows from {c.inherits}")
        if c.status == Status.DIVERGENT and c.inherits and c.inherits not in divergent
        else c
        for c in comparisons
    ]


def _declared(comparison: Comparison, about: Sequence[Deviation], today: date) -> Comparison:
    """A divergent comparison as DECLARED by the first entry that allows it, else with a note."""
    for entry in about:
        if not entry.expired(today) and not entry.exceeded_by(comparison):
            note = f"declared as {entry.id}: {entry.reason}"
            return replace(comparison, status=Status.DECLARED, note=note)
    why = "expired" if about[0].expired(today) else "is larger than declared"
    return replace(comparison, note=f"{comparison.note}; {about[0].id} {why}")


def _declared_row(entry: Deviation, shown: Sequence[Comparison], ran: bool) -> DeclaredRow:
    """How an entry showed: in how many cases, and how large; None if its cases did not run."""
    cases = len({comparison.case for comparison in shown})
    size = max((c.max_abs for c in shown), default=0.0) if entry.sized_by_value else float(cases)
    fields = structs.asdict(entry)
    return DeclaredRow(**fields, seen=bool(shown), seen_cases=cases, size=size if ran else None)


def _complaint(row: DeclaredRow, today: date) -> str:
    """Why an entry makes the gate fail; empty if it does not."""
    if row.size is None:
        return ""
    if row.expired(today):
        return f"declared deviation {row.id} expired on {row.expires}: renew or remove it"
    if not row.seen:
        return f"declared deviation {row.id} no longer shows: remove it"
    if row.range is None or row.range[0] <= row.size <= row.range[1]:
        return ""
    how = "grew" if row.size > row.range[1] else "shrank"
    unit = "largest |Δ|" if row.sized_by_value else "cases"
    limits = f"[{row.range[0]:g}, {row.range[1]:g}]"
    return f"declared deviation {row.id} {how}: {unit} {row.size:g}, allowed {limits}"
