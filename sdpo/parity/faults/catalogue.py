"""The fault catalogue: named single deviations from the reference, seen in the field or designed.

It is used twice: as the self-test of the harness (`sdpo mutants`: each fault must be found, and
first at its stage), and to explain a divergence (`match_faults.py`: which fault gives the
candidate's results). Ids are contract; a letter marks a second form of a fault.

    M01-M32   classes of fault that were reported or claimed somewhere, with the source
    M33-      further single deviations, stage by stage

Faults of the loss are variants of the reference with one part exchanged (`reference_parts.py`).
Those of teacher prompt and update are planted and found in the tests that their entries name.
"""

from collections.abc import Iterable

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.faults import (
    aggregate_and_gradient,
    beyond_the_loss,
    constants_and_branches,
    divergence,
    importance,
    support,
    tail,
)
from sdpo.parity.faults.reference_parts import Fault


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
        support.LOG_PROBS,
        support.SUPPORT,
        tail.TAIL,
        support.GRADIENT,
        tail.GRADIENT,
        divergence.DIVERGENCE,
        importance.IMPORTANCE,
        importance.GRADIENT,
        divergence.GRADIENT,
        aggregate_and_gradient.AGGREGATE,
        aggregate_and_gradient.SCALE,
        aggregate_and_gradient.GRADIENT,
        beyond_the_loss.OUTSIDE,
        constants_and_branches.PORTS,
    ]
)
LOSS_FAULTS = tuple(fault for fault in CATALOGUE if fault.in_loss)
BY_ID = {fault.id: fault for fault in CATALOGUE}
