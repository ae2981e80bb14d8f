"""Counts the faults under one condition alone that some loss cases show.

A conditional fault is a known fault that a loss has only where a condition holds: with more than 32
tokens, say. It shows where a case fulfils the condition and shows the fault. Which case shows which
fault was found out once: `python -m sdpo.parity.explain.conditional_faults` writes it to
`faults_shown.json`, for the recorded cases and the generated ones of seed 0. A fault and a
condition count as a pair if one of these cases, or of some drawn at random, has both.
"""

import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from msgspec import Struct, convert

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.explain.conditions import CONDITIONS, fulfilled
from sdpo.parity.explain.explanation_rows import ConditionalFaults
from sdpo.parity.explain.fault_coverage import shows
from sdpo.parity.faults.catalogue import LOSS_FAULTS

TABLE = Path(__file__).with_name("faults_shown.json")
STAGES = {"aggregate", "gradient"}
DRAWN = 300
"""Cases that are drawn at random, to see which pairs there are."""


class ShownFaults(Struct, frozen=True, forbid_unknown_fields=True):
    """Which faults some cases show.

    Attributes:
        faults: their ids, in the order of the bits.
        cases: by name, a number with a bit for each fault that the case shows.
        pairs: by condition, a number with a bit for each fault that was seen under it.
    """

    faults: list[str]
    cases: dict[str, str]
    pairs: dict[str, str]


@cache
def shown_faults() -> ShownFaults:
    """Read the table."""
    return convert(json.loads(TABLE.read_text(encoding="utf-8")), ShownFaults)


def conditional_faults(
    cases: Iterable[LossCase], faults: Collection[str]
) -> ConditionalFaults | None:
    """Count the pairs of a fault and a condition that some cases show.

    Args:
        cases: those in which the candidate was compared; others than those of the table are not
            counted.
        faults: ids of the faults that the candidate can have.

    Returns:
        The counts, with the conditions under which fewest show; None where the table holds none of
        the cases, or misses one of the faults.
    """
    table = shown_faults()
    known = [case for case in cases if case.id in table.cases]
    if not known or set(faults) - set(table.faults):
        return None
    wanted = _bits(table.faults, faults)
    seen = dict.fromkeys(CONDITIONS, 0)
    for case in known:
        for name in fulfilled(case):
            seen[name] |= int(table.cases[case.id], 16)
    pairs = {name: int(bits, 16) & wanted for name, bits in table.pairs.items()}
    counts = {name: bits.bit_count() for name, bits in pairs.items() if bits}
    shown = {name: (seen[name] & pairs[name]).bit_count() for name in counts}
    least = sorted(counts, key=lambda name: shown[name] / counts[name])
    return ConditionalFaults(
        sum(counts.values()),
        sum(shown.values()),
        len(counts),
        {n: f"{shown[n]} of {counts[n]}" for n in least if shown[n] < counts[n]},
    )


def _bits(ids: Sequence[str], chosen: Collection[str]) -> int:
    """A number with a bit for each chosen one."""
    return sum(1 << place for place, id_ in enumerate(ids) if id_ in chosen)


def faults_of(case: LossCase) -> int:
    """A number with a bit for each fault of the catalogue that shows in loss or gradient."""
    return sum(1 << n for n, fault in enumerate(LOSS_FAULTS) if shows(fault, STAGES, case))


def _shown_in(names: Sequence[str]) -> Mapping[str, int]:
    """The same by name, for a process of its own."""
    from sdpo.settings.determinism import deterministic

    with deterministic():
        by_name = {case.id: case for case in _all_cases()}
        return {name: faults_of(by_name[name]) for name in names}


@cache
def _all_cases() -> tuple[LossCase, ...]:
    """The recorded cases, the generated ones of seed 0, and some drawn at random."""
    from sdpo.fixtures import packaged_family
    from sdpo.parity.cases.loss_case import loss_cases
    from sdpo.parity.generated.make_case import covering_cases, make_case
    from sdpo.parity.generated.random_rows import random_row

    chance = random.Random(0)
    drawn = [make_case(random_row(chance, telling=True), 0) for _ in range(DRAWN)]
    return (*loss_cases(packaged_family("loss")), *covering_cases(0), *drawn)


def write_table() -> None:
    """Evaluate all faults on all cases, and write the table; minutes on two cores."""
    cases = {case.id: case for case in _all_cases()}
    names = list(cases)
    with ProcessPoolExecutor(2) as pool:
        shown: dict[str, int] = {}
        for part in pool.map(_shown_in, [names[n::16] for n in range(16)]):
            shown.update(part)
    pairs = dict.fromkeys(CONDITIONS, 0)
    for name, bits in shown.items():
        for condition in fulfilled(cases[name]):
            pairs[condition] |= bits
    drawn = {case.id for case in _all_cases()[-DRAWN:]}
    table = {
        "faults": [fault.id for fault in LOSS_FAULTS],
        "cases": {name: f"{shown[name]:x}" for name in names if name not in drawn},
        "pairs": {name: f"{bits:x}" for name, bits in pairs.items()},
    }
    TABLE.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
