"""What is asked of the fork, and what it gave: one case before and after it is recorded."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sdpo.fixtures import GoldenCase
from sdpo.fixtures.loader import DTYPES

NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}

GIVEN = ("id", "description", "tags", "config", "inputs", "updates")
"""Fields of a manifest's entry that are asked for; all others come from the fork."""


@dataclass(frozen=True)
class Recipe:
    """A case to record.

    Attributes:
        family: `loss`, `reprompt` or `update`.
        given: its fields in the manifest that are asked for, see `GIVEN`.
        inputs: its input tensors, under the names of the recording.
    """

    family: str
    given: Mapping[str, Any]
    inputs: Mapping[str, Tensor]

    @property
    def id(self) -> str:
        """Identifier, for example `P-L149`."""
        return self.given["id"]

    @property
    def config(self) -> Mapping[str, Any]:
        """Settings, as the manifest has them."""
        return self.given["config"]


@dataclass(frozen=True)
class Recording:
    """A recorded case: its entry in the manifest, and the bytes of its tensor file."""

    entry: Mapping[str, object]
    tensors: Mapping[str, Tensor]
    data: bytes

    @property
    def file(self) -> str:
        """Name of the tensor file."""
        return str(self.entry["file"])


def recipe_of(golden: GoldenCase) -> Recipe:
    """The recipe of a recorded case, from its own inputs.

    Raises:
        GoldenDataError: its file is missing or damaged.
    """
    given = {name: golden.entry[name] for name in GIVEN if name in golden.entry}
    inputs = {name: t for name, t in golden.tensors().items() if is_input(name)}
    return Recipe(golden.family, given, inputs)


def is_input(name: str) -> bool:
    """Whether a recorded tensor is an input: `in.responses`, `u0.in.responses`."""
    return "in" in name.split(".")[:2]


def recording(
    recipe: Recipe, outputs: Mapping[str, Tensor], facts: Mapping[str, object]
) -> Recording:
    """Put a recorded case together.

    Args:
        recipe: what was asked for.
        outputs: tensors that the fork gave, or an input that it made, under the recorded names.
        facts: further fields of the entry.
    """
    tensors = {
        name: value.detach().contiguous() for name, value in {**recipe.inputs, **outputs}.items()
    }
    data = save(tensors)
    layout = {
        name: [NAMES_OF_DTYPES[value.dtype], list(value.shape)] for name, value in tensors.items()
    }
    entry = {
        **recipe.given,
        "file": f"{recipe.id}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "tensors": layout,
        **facts,
    }
    return Recording(json_values(entry), tensors, data)


def json_values(value: Any) -> Any:
    """A value as it stands in a manifest: numbers that are not finite are texts."""
    if isinstance(value, Mapping):
        return {str(name): json_values(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(entry) for entry in value]
    if isinstance(value, Tensor):
        return json_values(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name in a manifest."""
    return DTYPES[name]
