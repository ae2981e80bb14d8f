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
    faults_support,
    faults_tail,
)
from sdpo.parity.faults_parts import Fault
from sdpo.parity.stages import NAMES

UPDATE_TESTS = "tests/equivalence/test_update_faults.py"
PROMPT_TESTS = "tests/equivalence/test_reprompt_faults.py"


def elsewhere(id_: str, name: str, group: str, stage: str, source: str, proof: str) -> Fault:
    """A fault outside the loss."""
    return Fault(id_, name, group, stage, source, proof=proof)


OUTSIDE = (
    elsewhere(
        "M11",
        "missing ÷ accumulation steps",
        "aggregation",
        "accumulate",
        "TRL #4935",
        f"{UPDATE_TESTS}: loss not divided by accumulation",
    ),
    elsewhere(
        "M12",
        "accumulation scaled twice",
        "aggregation",
        "accumulate",
        "design",
        "tests/sensitivity/test_update_catalogue.py: accumulation scaled twice",
    ),
    elsewhere(
        "M24",
        "rate of the average inverted",
        "teacher",
        "teacher_update",
        "TRL #4935, a claim that the code contradicts",
        f"{UPDATE_TESTS}: teacher rate inverted",
    ),
    elsewhere(
        "M25",
        "teacher averaged per micro-batch",
        "teacher",
        "log_probs",
        "lightly-train #968",
        f"{UPDATE_TESTS}: teacher averaged per micro-batch; the second micro-batch sees it first",
    ),
    elsewhere(
        "M26",
        "dropout active in the teacher",
        "teacher",
        "log_probs",
        "TRL #5990",
        "none: the recorded models have no dropout",
    ),
    elsewhere(
        "M27",
        "system message dropped",
        "data path",
        "teacher_prompt",
        "sdpo-rl 1d101cc, fixed there",
        f"{PROMPT_TESTS}: M27 system message dropped",
    ),
    elsewhere(
        "M28",
        "success threshold 1.0 for 0.5",
        "data path",
        "demonstration",
        "the reference's own default layers",
        f"{PROMPT_TESTS}: M28 threshold 1.0",
    ),
    elsewhere(
        "M29",
        "own success reused as demonstration",
        "data path",
        "demonstration",
        "design",
        f"{PROMPT_TESTS}: M29 own success reused",
    ),
    elsewhere(
        "M30",
        "left instead of right truncation",
        "data path",
        "teacher_tokens",
        "design",
        f"{PROMPT_TESTS}: M30 left truncation",
    ),
)


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
        OUTSIDE,
    ]
)
LOSS_FAULTS = tuple(fault for fault in CATALOGUE if fault.in_loss)
BY_ID = {fault.id: fault for fault in CATALOGUE}
