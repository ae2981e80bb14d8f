"""Values as JSON holds them."""

import math
from dataclasses import is_dataclass
from typing import Any

from msgspec import Struct, structs


def json_safe(value: Any) -> Any:
    """The value in dicts, lists and texts, without what JSON or UTF-8 lack.

    NaN and infinities become texts, lone surrogates their escapes; of objects the fields are taken.
    """
    if isinstance(value, Struct):
        return json_safe(structs.asdict(value))
    if is_dataclass(value) and not isinstance(value, type):
        return json_safe(vars(value))
    if isinstance(value, dict):
        return {json_safe(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        text = str(value)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
