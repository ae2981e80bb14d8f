"""Shows values as bounded, deterministic text."""

from typing import Any

_MAX_PARTS = 200
_MAX_TEXT = 1200
_MAX_DEPTH = 20
_CUT = "..."
# Larger integers are described by their size: writing them in decimal takes quadratic time.
_MAX_BITS = 4096


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - len(_CUT)) * 2 // 3
    return text[:head] + _CUT + text[len(text) - (limit - len(_CUT) - head) :]


def display(value: Any) -> str:
    """`repr` of plain data, bounded, with sets in sorted order."""
    return _display(value, [_MAX_PARTS], 0)


def display_pair(expected: Any, actual: Any) -> tuple[str, str]:
    """Both values; with their types where they look the same."""
    shown = display(expected), display(actual)
    if shown[0] != shown[1]:
        return shown
    return f"{shown[0]} ({type(expected).__name__})", f"{shown[1]} ({type(actual).__name__})"


def _display(value: Any, budget: list[int], depth: int) -> str:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        return _CUT
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"<integer of {value.bit_length()} bits>"
    if isinstance(value, str | bytes | bytearray):
        return repr(shorten(value, _MAX_TEXT) if isinstance(value, str) else value[:_MAX_TEXT])
    if isinstance(value, dict):
        return "{" + ", ".join(_pairs(value, budget, depth)) + "}"
    kind = type(value)
    if kind in _BRACKETS:
        opening, closing = _BRACKETS[kind]
        parts = _parts(value, budget, depth)
        if not parts and kind in (set, frozenset):
            return f"{kind.__name__}()"
        comma = "," if kind is tuple and len(parts) == 1 else ""
        return opening + ", ".join(parts) + comma + closing
    try:
        return repr(value)
    except ValueError:
        # An integer inside that is too long to be written in decimal.
        return f"<{kind.__name__}>"


_BRACKETS = {list: "[]", tuple: "()", set: "{}", frozenset: ("frozenset({", "})")}


def _parts(value: Any, budget: list[int], depth: int) -> list[str]:
    parts = []
    items = sorted(value, key=display) if isinstance(value, set | frozenset) else value
    for part in items:
        parts.append(_display(part, budget, depth + 1))
        if budget[0] < 0:
            break
    return parts


def _pairs(value: dict[Any, Any], budget: list[int], depth: int) -> list[str]:
    pairs = []
    for key, content in value.items():
        shown = _display(key, budget, depth + 1), _display(content, budget, depth + 1)
        pairs.append(": ".join(shown))
        if budget[0] < 0:
            break
    return pairs
