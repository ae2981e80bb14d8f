"""Writes feedback for a model to learn from: what failed, how, and where.

The text is bounded, valid UTF-8, without control characters, paths of the host and addresses, and
the same in every run of the same program. It is for insertion into templates as a value (braces in
it are those of Python's own dictionaries and sets); whoever formats it a second time must not.
"""

import os
import re
from collections.abc import Sequence

from sdpo.benchmark.sandbox.display import shorten
from sdpo.benchmark.sandbox.exceptions import Description

MAX_FEEDBACK = 2000
_MAX_TEST, _MAX_VALUE, _MAX_MESSAGE, _MAX_LINE = 300, 300, 300, 200

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_HOST_PATH = re.compile(
    r"(?<![\w./])/(?:bin|boot|data|dev|etc|home|lib|lib32|lib64|media|mnt|opt|private|proc|root|run"
    r"|sbin|srv|sys|tmp|usr|var|Applications|Library|System|Users|Volumes|workspace|work)"
    r"(?:/[^\s'\"`,;:)\]}>]*)?(?![\w-])"
)


def printable(text: str) -> str:
    """Write what is not printable as an escape: controls, surrogates, invisible marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _hide(text: str, known: str) -> str:
    """Replace addresses and the host's paths, except those that the test itself contains."""

    def replace(match: re.Match[str]) -> str:
        return match[0] if match[0] in known else "<path>"

    return _ADDRESS.sub("0x...", _HOST_PATH.sub(replace, text.replace(os.getcwd(), "<path>")))


def _line(text: str, limit: int, known: str = "") -> str:
    # Cut twice: at first roughly, so that the work does not grow with a hostile text.
    return shorten(printable(_hide(shorten(text, 4 * limit), known)), limit)


def difference(expected: str, actual: str, test: str) -> list[str]:
    """Lines for a test whose value is not the expected one, both as `display` shows them."""
    return [
        f"Expected: {_line(expected, _MAX_VALUE, test)}",
        f"Actual: {_line(actual, _MAX_VALUE, test)}",
    ]


def returned(calls: Sequence[tuple[str, str]], test: str) -> list[str]:
    """Lines for an assert that is false without an expected value: what the calls returned."""
    lines = ["The assertion is false."]
    for expression, value in calls[-3:]:
        shown = _line(value, _MAX_VALUE, test)
        lines.append(f"{_line(expression, _MAX_TEST, test)} returned {shown}")
    return lines


def exception(error: Description, code: str, test: str = "") -> list[str]:
    """Lines for an exception: type, message, and the line of the submitted code.

    Args:
        error: The exception.
        code: The submitted code.
        test: Source of the test, whose own paths are left as they are.
    """
    message = _line(error["message"], _MAX_MESSAGE, test)
    lines = [f"{_line(error['type'], 100)}: {message}".rstrip(": ")]
    number = error["line"]
    source = code.split("\n")
    if number is not None and 0 < number <= len(source):
        text = _line(source[number - 1].strip(), _MAX_LINE, test)
        lines.append(f"Line {number} of the submitted code: {text}")
    return lines


def heading(number: int, what: str, test: str) -> str:
    """First line about a test, `number` counted from 1."""
    return f"Test {number} {what}: {_line(' '.join(test.split()), _MAX_TEST, test)}"


def compose(passed: int, total: int, parts: Sequence[Sequence[str]]) -> str:
    """Put the parts together within `MAX_FEEDBACK` characters."""
    text = f"{passed} of {total} tests passed."
    for index, part in enumerate(parts):
        addition = "\n" + "\n".join(part)
        rest = f"\n({len(parts) - index} more not shown)"
        if len(text) + len(addition) + len(rest) > MAX_FEEDBACK:
            return text + rest
        text += addition
    return text
