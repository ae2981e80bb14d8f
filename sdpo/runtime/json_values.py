"""Values as JSON holds them, and types of documents that are checked when they are read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, structs

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can hold."""
Number = float | Literal["nan", "inf", "-inf"]
"""JSON has no NaN and no infinities: `json_safe` makes texts of them."""
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a document; an unknown field in one that is read is an error."""


def json_safe(value: object) -> Json:
    """Turn a value into dicts, lists, numbers and texts, without what JSON or UTF-8 lack.

    NaN and infinities become texts, lone surrogates their escapes; of objects the fields are taken.

    Raises:
        TypeError: JSON has no form for the value.
    """
    if isinstance(value, Struct):
        return json_safe(structs.asdict(value))
    if is_dataclass(value):
        return json_safe(vars(value))
    if isinstance(value, dict):
        return {safe_text(str(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return safe_text(str(value))
    if isinstance(value, date):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int)):
        return value
    raise TypeError(f"JSON has no form for a {type(value).__name__}: {value!r}")


def safe_text(text: str) -> str:
    """Escape the lone surrogates of a text, which UTF-8 does not have."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
