"""Records the packaged cases again and compares them with what is packaged, bit for bit.

Losses and prompts have the recorded bits on any processor with AVX2 (`launch.KERNELS`). The
matrix products of whole updates are those of the recording's make of processor alone. Where an
update has other bits, the transcription decides, which has the recorded ones there: the fork must
give its bits here, and all values must be within the budgets of the audit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from sdpo.fixtures import FAMILIES, GoldenCase, GoldenFamily, packaged_family
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.compare.statuses import Status
from sdpo.parity.record.recipes import Recording, recipe_of
from sdpo.parity.record.recorder import CaseRecorder
from sdpo.parity.recorded.golden_updates import golden_tensors, recorded_trace
from sdpo.parity.recorded.updates import run_case, run_reference


class Found(StrEnum):
    """What became of a case that was recorded again."""

    SAME = "the recorded bits"
    PROCESSOR = "the transcription's bits on this processor, whose matrix products are others"
    DIFFERENT = "other values than recorded"


@dataclass(frozen=True)
class Checked:
    """A case that was recorded again, and where it differs."""

    family: str
    case: str
    found: Found
    where: str = ""


def check_packaged(progress: Callable[[str, int, int], None]) -> list[Checked]:
    """Record every packaged case again.

    Args:
        progress: told the family, cases done, and cases in all.
    """
    recorder, checked = CaseRecorder(), []
    for name in FAMILIES:
        family = packaged_family(name)
        for number, golden in enumerate(family):
            progress(name, number, len(family))
            checked.append(check_case(recorder, family, golden))
        progress(name, len(family), len(family))
    return checked


def check_case(recorder: CaseRecorder, family: GoldenFamily, golden: GoldenCase) -> Checked:
    """Record one packaged case again."""
    made = recorder.record(recipe_of(golden))
    differing = differing_fields(golden, made)
    if not differing:
        return Checked(family.name, golden.id, Found.SAME)
    by_processor = set(differing) <= {"sha256", "results"} and family.name == "update"
    if by_processor and as_transcribed(family, golden, made):
        return Checked(family.name, golden.id, Found.PROCESSOR)
    return Checked(family.name, golden.id, Found.DIFFERENT, where(golden, made, differing))


def differing_fields(golden: GoldenCase, made: Recording) -> list[str]:
    """Fields of the manifest's entry that are not as recorded; `sha256` stands for the tensors."""
    names = golden.entry.keys() | made.entry.keys()
    return sorted(n for n in names if not same(golden.entry.get(n), made.entry.get(n)))


def same(recorded: object, made: object) -> bool:
    """Whether two values of manifests are equal; NaN, which JSON reads as a float, is itself."""
    return recorded == made or str(recorded) == str(made)


@dataclass(frozen=True)
class MadeUpdate:
    """A candidate that gives what was recorded just now."""

    made: Recording
    dtypes_are_judged = True

    def update_trace(
        self, family: GoldenFamily, golden: GoldenCase, tensors: dict[str, Tensor]
    ) -> StageTrace:
        """The new values by their places."""
        again = replace(golden, entry=dict(self.made.entry))
        return recorded_trace(again, dict(self.made.tensors))


def as_transcribed(family: GoldenFamily, golden: GoldenCase, made: Recording) -> bool:
    """Whether an update has the transcription's bits here, and is within the audit's budgets."""
    transcribed = golden_tensors(run_reference(family, golden, golden.tensors(), torch.float32))
    compared = [name for name in made.tensors if name in transcribed]
    if not all(same_bits(made.tensors[name], transcribed[name]) for name in compared):
        return False
    result = run_case(MadeUpdate(made), family, golden)
    return result.status in (Status.MATCH, Status.PASS)


def where(golden: GoldenCase, made: Recording, differing: list[str]) -> str:
    """Tensors and fields of a case that differ, the first few by name."""
    recorded = golden.tensors()
    tensors = [
        name
        for name in sorted(recorded.keys() | made.tensors.keys())
        if name not in recorded
        or name not in made.tensors
        or not same_bits(recorded[name], made.tensors[name])
    ]
    names = [*tensors, *(name for name in differing if name not in ("sha256", "tensors"))]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
