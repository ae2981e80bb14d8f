"""The dtype of each value, for the candidates that must have the reference's own.

The transcription and a checkout stand for the reference, and our stages say that they follow it: a
value of another dtype is another result there, whatever its distance. What a user's callable
returns may be of any floating dtype.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status


def other_dtypes(
    candidate: Any,
    case: str,
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    stage_of: Callable[[str], str | None],
) -> list[Comparison]:
    """A divergent comparison for each value whose dtype is not the reference's.

    Args:
        candidate: judged only if it has a true `dtypes_are_judged`.
        case: identifier of the case.
        actual: the candidate's values.
        expected: the reference's, recorded where they were, under the same names.
        stage_of: the stage of a name, None for what is not compared.
    """
    if not getattr(candidate, "dtypes_are_judged", False):
        return []
    comparisons = []
    for name, value in actual.items():
        stage = stage_of(name)
        if stage is None or name not in expected or value.dtype == expected[name].dtype:
            continue
        dtypes = {"actual": _dtype_name(value), "expected": _dtype_name(expected[name])}
        note = f"{name} is {dtypes['actual']}, expected {dtypes['expected']}"
        worst = {"value": f"dtype of {name}"} | dtypes
        comparisons.append(
            Comparison(
                stage, Status.DIVERGENT, case, compared=1, worst=worst, note=note, effect="dtype"
            )
        )
    return comparisons


def _dtype_name(tensor: Tensor) -> str:
    """`float32` and the like."""
    return str(tensor.dtype).removeprefix("torch.")
