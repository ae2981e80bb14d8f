"""The fault catalogue: named single deviations from the reference, seen in the field or designed.

It is used twice: as the self-test of the harness (`sdpo mutants`: each fault must be found, and
first at its stage), and to explain a divergence (`explain.py`: which fault gives the candidate's
results). Ids are contract; a letter marks a second form of a fault.

    M01-M32   classes of fault that were reported or claimed somewhere, with the source
    M33-      further single deviations, stage by stage

Faults of the loss are variants of the reference with one part exchanged (`faults_parts.py`). Those
of teacher prompt and update are planted and found in the tests that their entries name.
"""

from collections.abc import Iterable

from sdpo.parity import (
    faults_divergence,
    faults_importance,
    faults_outcome,
    faults_outside,
    faults_ports,
    faults_support,
    faults_tail,
)
from sdpo.parity.faults_parts import Fault
from sdpo.parity.stages import NAMES


def by_number(fault: Fault) -> tuple[int, str]:
    """Sorts `M06` before `M06b` before `M07`."""
    digits = fault.id.strip("Mabcdefgh")
    return int(digits), fault.id


def collected(groups: Iterable[tuple[Fault, ...]]) -> tuple[Fault, ...]:
    """All faults in the order of their ids.

    Raises:
        ValueError: an id is used twice, or a stage is unknown.
    """
    found = sorted((fault for group in groups for fault in group), key=by_number)
    ids = [fault.id for fault in found]
    if repeated := {id_ for id_ in ids if ids.count(id_) > 1}:
        raise ValueError(f"fault ids used twice: {sorted(repeated)}")
    if unknown := {fault.stage for fault in found} - set(NAMES):
        raise ValueError(f"faults of unknown stages: {sorted(unknown)}")
    return tuple(found)


CATALOGUE = collected(
    [
        faults_support.LOG_PROBS,
        faults_support.SUPPORT,
        faults_tail.TAIL,
        faults_support.GRADIENT,
        faults_tail.GRADIENT,
        faults_divergence.DIVERGENCE,
        faults_importance.IMPORTANCE,
        faults_importance.GRADIENT,
        faults_divergence.GRADIENT,
        faults_outcome.AGGREGATE,
        faults_outcome.SCALE,
        faults_outcome.GRADIENT,
        faults_outside.OUTSIDE,
        faults_ports.PORTS,
    ]
)
LOSS_FAULTS = tuple(fault for fault in CATALOGUE if fault.in_loss)
BY_ID = {fault.id: fault for fault in CATALOGUE}
