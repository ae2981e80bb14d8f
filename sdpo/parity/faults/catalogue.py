"""The fault catalogue: named single deviations from the reference, seen in the field or designed.

It is used twice: as the self-test of the harness (`sdpo mutants`: each fault must be found, and
first at its stage), and to explain a divergence (`match_faults.py`: which fault gives the
candidate's results). `catalogue.toml` lists the faults; those of the loss are variants of the
reference with parts exchanged (`reference_parts.py`), which the modules of the stages hold by id.
"""

import string
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.faults import (
    aggregate,
    divergence,
    gradient,
    importance,
    log_probs,
    support,
    tail,
)
from sdpo.parity.faults.reference_parts import FROM_LOGITS_ONLY, FaultParts, LossPart

_TABLE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, eq=False, kw_only=True)
class Fault:
    """A named single deviation from the reference; `catalogue.toml` describes the fields.

    `parts` holds the exchanged parts of the loss; it is empty for faults outside the loss, whose
    `proof` names the test that plants them.
    """

    id: str
    stage: str
    name: str
    group: str
    source: str = "design"
    parts: Mapping[str, LossPart] = field(default_factory=dict)
    proof: str = ""
    inactive: str = ""
    needs_logits: bool = False

    @property
    def label(self) -> str:
        """What reports print: `M07 mean over all rows`."""
        return f"{self.id} {self.name}"

    @property
    def in_loss(self) -> bool:
        """Whether the fault is a variant of the loss that can be run."""
        return bool(self.parts)

    @property
    def after_log_probs(self) -> bool:
        """Whether the fault lies in a loss that starts from log-probs."""
        return self.in_loss and not (self.needs_logits or FROM_LOGITS_ONLY & self.parts.keys())


class _FaultEntry(msgspec.Struct, forbid_unknown_fields=True):
    """A line of `catalogue.toml`."""

    name: str
    group: str
    source: str = "design"
    proof: str = ""
    inactive: str = ""
    needs_logits: bool = False


def read_catalogue(text: str, parts: FaultParts) -> tuple[Fault, ...]:
    """Read the faults, in the order of their ids.

    Args:
        text: of `catalogue.toml`.
        parts: the exchanged parts of each fault of the loss, by id.

    Raises:
        ValueError: an unknown stage, a field of another name or type, an id that is used twice, a
            fault with neither parts nor proof or with both, or parts of an id that is not listed.
    """
    faults: list[Fault] = []
    for stage, table in tomllib.loads(text).items():
        if stage not in NAMES:
            raise ValueError(f"[{stage}]: faults of an unknown stage")
        group = table.pop("group", "")
        for id_, fields in table.items():
            try:
                entry = msgspec.convert({"group": group, **fields}, _FaultEntry)
            except msgspec.ValidationError as error:
                raise ValueError(f"fault {id_}: {error}") from error
            if bool(entry.proof) == (id_ in parts):
                raise ValueError(f"fault {id_}: needs either a proof or code under its id")
            exchanged = parts.get(id_, {})
            faults.append(
                Fault(id=id_, stage=stage, parts=exchanged, **msgspec.structs.asdict(entry))
            )
    ids = [fault.id for fault in faults]
    if repeated := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
        raise ValueError(f"fault ids used twice: {repeated}")
    if unlisted := sorted(parts.keys() - set(ids)):
        raise ValueError(f"parts of faults that are not listed: {unlisted}")
    return tuple(sorted(faults, key=_by_number))


def merged_parts(tables: Iterable[FaultParts]) -> FaultParts:
    """The parts of all modules by fault.

    Raises:
        ValueError: two modules have parts of the same fault.
    """
    merged: dict[str, Mapping[str, LossPart]] = {}
    for table in tables:
        if repeated := sorted(merged.keys() & table.keys()):
            raise ValueError(f"fault ids used twice: {repeated}")
        merged |= table
    return merged


def _by_number(fault: Fault) -> tuple[int, str]:
    """Sort `M06` before `M06b` before `M07`."""
    return int(fault.id.strip(string.ascii_letters)), fault.id


_MODULES = (log_probs, support, tail, divergence, importance, aggregate, gradient)
CATALOGUE = read_catalogue(
    _TABLE.read_text(encoding="utf-8"), merged_parts(module.FAULTS for module in _MODULES)
)
LOSS_FAULTS = tuple(fault for fault in CATALOGUE if fault.in_loss)
BY_ID = {fault.id: fault for fault in CATALOGUE}


def possible_faults(after_log_probs: bool) -> list[Fault]:
    """List the faults of the loss that a candidate can have.

    Args:
        after_log_probs: it is given log-probs, so that only what comes after them is its own.
    """
    return [fault for fault in LOSS_FAULTS if fault.after_log_probs or not after_log_probs]
