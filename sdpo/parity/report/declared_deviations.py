"""Declared deviations: known differences with a reason, so that only undeclared ones fail.

A file of them is a ledger: TOML with `[[deviation]]` entries. None is read unless it is asked for;
documented improvements on the reference need none (`improvements.py`).
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.comparison import FINITE, Comparison
from sdpo.parity.compare.improvements import improvements
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.faults.catalogue import BY_ID

LEDGERS = Path(__file__).parent / "ledgers"
EFFECTS = ("value", FINITE, "nan", "dtype", "failure")
ANY = "*"


class DeclaredError(Exception):
    """The file of declared deviations is missing or not in its format."""


@dataclass(frozen=True)
class Deviation:
    """One declared deviation of a candidate from the reference.

    The entry is about divergent comparisons of one of the `candidates`, or of an adapter derived
    from that one's, at one of `stages`, with that `effect`, in cases that have the `tag` and, if
    `cases` names some, are among them; `*` is any candidate or tag. Its size is the largest |Δ|
    where the effect is a `value` of a numeric stage, else the number of cases; `measured` is the
    size when it was declared, and `range` the sizes that are allowed. What is a documented
    improvement (`improvements.py`) needs no entry; one with the effect
    `finite_where_reference_is_not` may speak of it all the same, and then shows.
    """

    id: str
    candidates: tuple[str, ...]
    stages: tuple[str, ...]
    effect: str
    reason: str
    tag: str = ANY
    cases: tuple[str, ...] = ()
    fault: str = ""
    link: str = ""
    measured: float | None = None
    range: tuple[float, float] | None = None
    expires: date | None = None

    @property
    def sized_by_value(self) -> bool:
        """Whether the size is the largest |Δ|, and not a number of cases."""
        return self.effect == "value" and all(STAGES[s].kind == "numeric" for s in self.stages)

    def covers(self, result: CaseResult, comparison: Comparison) -> bool:
        """Whether this entry is about a divergent comparison, whatever its size."""
        effect = FINITE if comparison.effect in improvements() else comparison.effect
        return self.is_about(result, comparison) and effect == self.effect

    def is_about(self, result: CaseResult, comparison: Comparison) -> bool:
        """Whether this entry speaks of a case and stage."""
        return (
            comparison.stage in self.stages
            and self.tag in (ANY, *result.tags)
            and (not self.cases or result.id in self.cases)
        )

    def concerns(self, names: Sequence[str]) -> bool:
        """Whether this entry is about a candidate, by its name or one that it derives from."""
        return bool({ANY, *names} & set(self.candidates))

    def expired(self, today: date) -> bool:
        """Whether the entry no longer holds."""
        return self.expires is not None and today > self.expires

    def exceeded_by(self, comparison: Comparison) -> bool:
        """Whether a comparison alone is larger than the range allows."""
        return self.range is not None and self.sized_by_value and comparison.max_abs > self.range[1]

    def row(self) -> dict[str, Any]:
        """The entry in the report."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {name: list(found[name]) for name in ("candidates", "stages", "cases")}
        limits = list(self.range) if self.range else None
        expires = self.expires.isoformat() if self.expires else None
        return found | lists | {"range": limits, "expires": expires}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Deviation":
        """The entry of a row in a report."""
        known = {f.name: row[f.name] for f in fields(cls)}
        known |= {name: tuple(row[name]) for name in ("candidates", "stages", "cases")}
        known["range"] = tuple(row["range"]) if row["range"] else None
        known["expires"] = date.fromisoformat(row["expires"]) if row["expires"] else None
        return cls(**known)


def load_for(files: Sequence[str] = ()) -> list[Deviation]:
    """The entries of some files or packaged ledgers.

    Args:
        files: paths, or names of packaged ledgers such as `trl`.

    Raises:
        DeclaredError: a file is unusable, or two entries have one id.
    """
    paths = [ledger_or_file(file) for file in files]
    entries = [entry for path in paths for entry in load_declared(path)]
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise DeclaredError(f"declared deviations: two entries have the id {entry.id}")
        seen.add(entry.id)
    return entries


def ledger_or_file(name: str) -> Path:
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


def _deviation(path: Path, entry: dict[str, Any]) -> Deviation:
    where = f"{path}: entry {entry.get('id', '?')}"
    known = {f.name for f in fields(Deviation)}
    if unknown := sorted(set(entry) - known):
        raise DeclaredError(f"{where}: unknown fields {unknown}; valid are {sorted(known)}")
    if missing := [n for n in ("id", "candidates", "stages", "effect", "reason") if n not in entry]:
        raise DeclaredError(f"{where}: {missing} missing")
    if problem := wrong_types(entry) or wrong_values(entry):
        raise DeclaredError(f"{where}: {problem}")
    names = {"candidates", "stages", "cases", "range"} & entry.keys()
    lists: dict[str, Any] = {name: tuple(entry[name]) for name in names}
    return Deviation(**entry | lists)


def wrong_types(entry: Mapping[str, Any]) -> str:
    """What is wrong with the types of an entry's fields; empty if nothing is."""
    for name in ("id", "effect", "reason", "tag", "fault", "link"):
        if not isinstance(entry.get(name, ""), str):
            return f"{name} must be a text, not {entry[name]!r}"
    for name in ("candidates", "stages", "cases"):
        value = entry.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f"{name} must be a list of texts, not {value!r}"
    if type(entry.get("expires", date.min)) is not date:
        return f"expires must be a date such as 2027-01-31, not {entry['expires']!r}"
    numbers = [entry.get("measured", 0.0), *_as_list(entry.get("range", [0.0, 0.0]))]
    if not all(_is_size(number) for number in numbers) or len(numbers) != 3:
        return "measured must be a size, and range two sizes [least, most]: finite, not negative"
    return ""


def wrong_values(entry: Mapping[str, Any]) -> str:
    """What is wrong with an entry of the right types; empty if nothing is."""
    if not entry["candidates"] or not entry["stages"]:
        return "candidates and stages must each name at least one"
    if unknown := [stage for stage in entry["stages"] if stage not in STAGES]:
        return f"unknown stages {unknown}; valid are {', '.join(STAGES)}"
    if len({STAGES[stage].kind for stage in entry["stages"]}) > 1:
        return "exact and numeric stages need entries of their own"
    if entry["effect"] not in EFFECTS:
        return f"effect must be one of {EFFECTS}"
    if not entry["reason"].strip():
        return "reason is empty: say why this deviation is meant to be"
    if entry.get("fault", "") and entry["fault"] not in BY_ID:
        return f"unknown fault {entry['fault']!r}; `sdpo mutants` lists the catalogue"
    if ("measured" in entry) != ("range" in entry):
        return "measured and range belong together"
    if "range" not in entry:
        return "measured and range are needed for the effect 'value'" * (entry["effect"] == "value")
    least, most = entry["range"]
    if not least <= entry["measured"] <= most:
        return f"measured = {entry['measured']:g} lies outside range = [{least:g}, {most:g}]"
    return ""


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_size(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class Judged:
    """Cases with their declared divergences, what is wrong with the declarations, report rows."""

    results: list[CaseResult]
    complaints: list[str]
    rows: list[dict[str, Any]]


def judge(
    results: Sequence[CaseResult],
    candidate: str,
    declared: Sequence[Deviation],
    *,
    today: date,
    stages: Sequence[str] = (),
    derives_from: Sequence[str] = (),
) -> Judged:
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
                comparison = declare(comparison, about, today) if departs else comparison
            comparisons.append(comparison)
        judged.append(replace(result, comparisons=follow(comparisons)))
    ran = {
        entry.id
        for entry in entries
        for result in results
        if any(entry.is_about(result, c) for c in result.comparisons)
    }
    rows = [entry.row() | found(entry, shown[entry.id], entry.id in ran) for entry in entries]
    said = [complaint(entry, row, today) for entry, row in zip(entries, rows, strict=True)]
    return Judged(judged, [text for text in said if text], rows)


def follow(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Values that follow from a stage which is no longer divergent are declared with it."""
    divergent = {c.stage for c in comparisons if c.status == Status.DIVERGENT and not c.inherits}
    return [
        replace(c, status=Status.DECLARED, note=f"follows from {c.inherits}")
        if c.status == Status.DIVERGENT and c.inherits and c.inherits not in divergent
        else c
        for c in comparisons
    ]


def declare(comparison: Comparison, about: Sequence[Deviation], today: date) -> Comparison:
    """A divergent comparison as DECLARED by the first entry that allows it, else with a note."""
    for entry in about:
        if not entry.expired(today) and not entry.exceeded_by(comparison):
            note = f"declared as {entry.id}: {entry.reason}"
            return replace(comparison, status=Status.DECLARED, note=note)
    why = "expired" if about[0].expired(today) else "is larger than declared"
    return replace(comparison, note=f"{comparison.note}; {about[0].id} {why}")


def found(entry: Deviation, shown: Sequence[Comparison], ran: bool) -> dict[str, Any]:
    """How an entry showed: in how many cases, and how large; None if its cases did not run."""
    cases = len({comparison.case for comparison in shown})
    size = max((c.max_abs for c in shown), default=0.0) if entry.sized_by_value else float(cases)
    return {"seen": bool(shown), "seen_cases": cases, "size": size if ran else None}


def complaint(entry: Deviation, row: Mapping[str, Any], today: date) -> str:
    """Why an entry makes the gate fail; empty if it does not."""
    size = row["size"]
    if size is None:
        return ""
    if entry.expired(today):
        return f"declared deviation {entry.id} expired on {entry.expires}: renew or remove it"
    if not row["seen"]:
        return f"declared deviation {entry.id} no longer shows: remove it"
    if entry.range is None or entry.range[0] <= size <= entry.range[1]:
        return ""
    how = "grew" if size > entry.range[1] else "shrank"
    unit = "largest |Δ|" if entry.sized_by_value else "cases"
    limits = f"[{entry.range[0]:g}, {entry.range[1]:g}]"
    return f"declared deviation {entry.id} {how}: {unit} {size:g}, allowed {limits}"
