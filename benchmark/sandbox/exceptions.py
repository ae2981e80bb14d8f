"""Describes exceptions as plain data, so that they can leave the process they were raised in."""

import builtins
from typing import TypedDict

# A private copy: a submission that patches a builtin does not reach the functions below.
__builtins__ = dict(vars(builtins))

SUBMISSION_FILE = "<submission>"
_MAX_MESSAGE = 2000
_MAX_NAME, _MAX_BASES = 100, 50


class Description(TypedDict):
    """Describes an exception: its type, the names of the type's ancestors, its message, its line.

    `line` is that of the submission's code, `None` where no frame of it was left.
    """

    type: str
    bases: list[str]
    message: str
    line: int | None


def describe(error: BaseException) -> Description:
    """Describe an exception of this process."""
    bases = [base.__name__ for base in type.__dict__["__mro__"].__get__(type(error))]
    line = None
    if isinstance(error, SyntaxError) and error.filename == SUBMISSION_FILE:
        message, line = str(error.msg), error.lineno
    else:
        message = _message(error)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == SUBMISSION_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return {"type": bases[0], "bases": bases, "message": message[:_MAX_MESSAGE], "line": line}


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:
        return "(its message cannot be shown)"


def checked_description(data: object) -> Description:
    """Read a description that a confined process sent, trusting nothing in it."""
    fields = data if isinstance(data, dict) else {}
    line, bases = fields.get("line"), fields.get("bases")
    names = bases[:_MAX_BASES] if isinstance(bases, list) else []
    return {
        "type": str(fields.get("type"))[:_MAX_NAME],
        "bases": [str(name)[:_MAX_NAME] for name in names],
        "message": str(fields.get("message"))[:_MAX_MESSAGE],
        "line": line if isinstance(line, int) else None,
    }


def nearest_builtin(description: Description) -> BaseException:
    """Make the nearest builtin exception, so that a test's own handlers work as they would."""
    for name in description["bases"]:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(description["message"])
            except TypeError:
                continue
    return RuntimeError(description["message"])
