"""Runs one submission inside the confinement and answers requests for values.

The process learns the submission, the test's imports and set-up code, and call expressions, which
may lie in its connection before it needs them. It never learns what the calls should return.

Its messages, in order: `defined` (which of the names to be called the submission binds, found
before any of it runs), `ready` (imports, submission and set-up code have run), then one reply per
request. A reply repeats the request's random number, so what a submission writes on its own
account is not mistaken for one. In place of a message there may be an `error`.
"""

import builtins
import contextlib
import itertools
import sys
import types
from typing import Any

from sdpo.benchmark.sandbox.bound_names import bound_names
from sdpo.benchmark.sandbox.values import Encoder, decode
from sdpo.benchmark.sandbox.wire import Pipe, pack

# A private copy: a submission that patches a builtin does not reach the functions below.
__builtins__ = dict(vars(builtins))

FILE_NAME = "<submission>"
_TEST_FILE = "<test>"
_MODULE = "submission"
# Frames below the submission's own; a bare script has one.
_EXTRA_FRAMES = 20
_REHEARSED = """import re
def f(a, b):
    parts = [a, (a, b), {str(a): 1.5}, {2}]
    for index, part in enumerate(parts):
        if isinstance(part, tuple) and len(part) > index:
            parts.append(re.sub("a", "b", "abc"))
    return sorted(parts, key=str), max(x for x in range(3))
"""
_MAX_MESSAGE = 2000
_set_recursion_limit = sys.setrecursionlimit


class _Phase:
    """What was going on when an exception came."""

    def __init__(self) -> None:
        self.name = "syntax"


def run(pipe: Pipe) -> None:
    """Serve one submission until the harness closes or kills."""
    # Not at the top: the server's preparations must come before (see there).
    import random

    job = pipe.receive()
    # A fixed seed keeps what uses the generator the same in every run.
    random.seed(0)
    sys.argv = ["submission.py"]
    _set_recursion_limit(1000 + _EXTRA_FRAMES)
    phase = _Phase()
    try:
        namespace = _define(job, pipe, phase)
    except BaseException as error:
        pipe.send({"error": describe(error), "phase": phase.name})
        return
    pipe.send({"ready": True})
    encoder = Encoder()
    while True:
        request = pipe.receive()
        pipe.send(_answer(request, namespace, encoder))


class _Rehearsal(Pipe):
    """A connection that leads nowhere: hands out prepared requests, drops replies."""

    def __init__(self, requests: list[dict]) -> None:
        super().__init__(-1)
        self._buffer += b"".join(map(pack, requests))

    def _fill(self) -> None:
        raise EOFError("the end of the rehearsal")

    def send(self, message: object) -> None:
        """Encode a message."""
        pack(message)


def rehearse() -> None:
    """Run small programs in the fork server itself.

    What the interpreter prepares on first use (specialised code, look-up caches) the children then
    have from birth. Otherwise each would prepare it anew, and every memory page changed by that
    would have to be copied.
    """
    requests = [
        {"operation": "evaluate", "expression": expression, "number": 1 << 52}
        for expression in ("f(3, 'a')", "f([1, 2], (3.5, None))", "f({}, [])", "f()") * 4
    ]
    for name, code in (("f", _REHEARSED), ("g", "g = 1\n"), ("f", "f = 0 / 0\n"), ("f", "f =")) * 3:
        job = {"code": code, "imports": "import math", "setup": "", "names": [name]}
        with contextlib.suppress(EOFError):
            run(_Rehearsal([job, *requests]))
    sys.modules.pop(_MODULE, None)


def _define(job: dict, pipe: Pipe, phase: _Phase) -> dict[str, Any]:
    code = compile(job["code"], FILE_NAME, "exec", dont_inherit=True)
    pipe.send({"defined": _defined(job["code"], job["names"])})
    module = types.ModuleType(_MODULE)
    sys.modules[_MODULE] = module
    namespace = vars(module)
    namespace["__file__"] = "submission.py"
    for phase.name, source in (("imports", job["imports"]), ("definition", code)):
        if isinstance(source, str):
            source = compile(source, _TEST_FILE, "exec", dont_inherit=True)
        exec(source, namespace)
    phase.name = "setup"
    exec(compile(job["setup"], _TEST_FILE, "exec", dont_inherit=True), namespace)
    return namespace


def _defined(source: str, names: list[str]) -> list[str]:
    """Which names the submission binds; a syntax tree is made only where a plain look fails."""
    text = "\n" + source
    if all(f"\ndef {name}(" in text for name in names):
        return names
    return bound_names(source, names)


def _answer(request: dict, namespace: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    reply: dict[str, Any] = {"number": request["number"]}
    try:
        bound = {
            name: _restore(data, encoder) for name, data in request.get("bindings", {}).items()
        }
        value = _OPERATIONS[request["operation"]](request, namespace, bound, encoder)
        _set_recursion_limit(1000 + _EXTRA_FRAMES)
        reply["value"] = encoder.encode(value)
        changed = {
            name: encoder.encode(value)
            for name, value in bound.items()
            if isinstance(value, (list, dict, set, bytearray))
        }
        if changed:
            reply["changed"] = changed
    except BaseException as error:
        reply["error"] = describe(error)
    return reply


def _restore(data: Any, encoder: Encoder) -> Any:
    return decode(data, lambda handle, name: encoder.kept[handle])


def _evaluate(request: dict, namespace: dict, bound: dict, encoder: Encoder) -> Any:
    code = compile(request["expression"], _TEST_FILE, "eval", dont_inherit=True)
    if not bound:
        return eval(code, namespace)
    # One dictionary, because lambdas and comprehensions look names up in the global one only.
    return eval(code, {**namespace, **bound})


def _call(request: dict, namespace: dict, bound: dict, encoder: Encoder) -> Any:
    return encoder.kept[request["handle"]](  # pyright: ignore[reportCallIssue]
        *bound["arguments"], **bound["keywords"]
    )


def _take(request: dict, namespace: dict, bound: dict, encoder: Encoder) -> Any:
    iterator: Any = encoder.kept[request["handle"]]
    return list(itertools.islice(iterator, request["count"]))


_OPERATIONS = {
    "evaluate": _evaluate,
    "call": _call,
    "take": _take,
    "iterate": lambda r, n, b, e: iter(e.kept[r["handle"]]),
    "attribute": lambda r, n, b, e: getattr(e.kept[r["handle"]], r["name"]),
    "item": lambda r, n, b, e: e.kept[r["handle"]][b["key"]],
    "truth": lambda r, n, b, e: bool(e.kept[r["handle"]]),
    "length": lambda r, n, b, e: len(e.kept[r["handle"]]),
}


def describe(error: BaseException) -> dict[str, Any]:
    """Type, ancestors, message and line in the submission of an exception, as plain data."""
    kind = type(error)
    bases = [base.__name__ for base in type.__dict__["__mro__"].__get__(kind)]
    line = None
    if isinstance(error, SyntaxError) and error.filename == FILE_NAME:
        message, line = str(error.msg), error.lineno
    else:
        message = _message(error)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return {"type": bases[0], "bases": bases, "message": message[:_MAX_MESSAGE], "line": line}


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:
        return "(its message cannot be shown)"
