"""Runs one submission inside the confinement and answers requests for values.

The process learns the submission, the test's imports and set-up code, and call expressions, which
may lie in its connection before it needs them. It never learns what the calls should return.

It sends, in order: `defined` (which of the names to be called the submission binds, found before
any of it runs), `ready` (imports, submission and set-up code have run), then one reply per request.
A reply repeats the request's random number, so that what a submission writes itself is not mistaken
for one. In place of a message there may be an `error`.
"""

import builtins
import contextlib
import itertools
import operator
import sys
import types
from typing import Any

from sdpo.benchmark.sandbox.bound_names import bound_names
from sdpo.benchmark.sandbox.exceptions import SUBMISSION_FILE, describe
from sdpo.benchmark.sandbox.values import Encoded, Encoder, decode
from sdpo.benchmark.sandbox.wire import Pipe, Reply, Request, Submission, pack

# A private copy: a submission that patches a builtin does not reach the functions below.
__builtins__ = dict(vars(builtins))

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
_set_recursion_limit = sys.setrecursionlimit
# What the test's side may ask for besides evaluating an expression: operations on its arguments,
# the first of which is a value that was kept here.
_OPERATIONS = {
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
    "take": lambda iterator, count: list(itertools.islice(iterator, count)),
    "iterate": iter,
    "attribute": getattr,
    "item": operator.getitem,
    "truth": bool,
    "length": len,
}


class _Phase:
    """Names what was going on when an exception came."""

    def __init__(self) -> None:
        self.name = "syntax"


def run(pipe: Pipe) -> None:
    """Serve one submission until the harness closes or kills."""
    # Not at the top: the server's preparations must come before (see there).
    import random

    submission: Submission = pipe.receive()
    # A fixed seed keeps what uses the generator the same in every run.
    random.seed(0)
    sys.argv = ["submission.py"]
    _set_recursion_limit(1000 + _EXTRA_FRAMES)
    phase = _Phase()
    try:
        namespace = _define(submission, pipe, phase)
    except BaseException as error:
        pipe.send({"error": describe(error), "phase": phase.name})
        return
    pipe.send({"ready": True})
    encoder = Encoder()
    while True:
        request = pipe.receive()
        pipe.send(_answer(request, namespace, encoder))


class _Rehearsal(Pipe):
    """Stands for a connection: hands out prepared requests and drops the replies."""

    def __init__(self, submission: Submission, requests: list[Request]) -> None:
        super().__init__(-1)
        self._buffer += b"".join(map(pack, [submission, *requests]))

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
    requests: list[Request] = [
        {"expression": expression, "bindings": {}, "number": 1 << 52}
        for expression in ("f(3, 'a')", "f([1, 2], (3.5, None))", "f({}, [])", "f()") * 4
    ]
    for name, code in (("f", _REHEARSED), ("g", "g = 1\n"), ("f", "f = 0 / 0\n"), ("f", "f =")) * 3:
        submission = Submission(code=code, imports="import math", setup="", names=[name])
        with contextlib.suppress(EOFError):
            run(_Rehearsal(submission, requests))
    sys.modules.pop(_MODULE, None)


def _define(submission: Submission, pipe: Pipe, phase: _Phase) -> dict[str, object]:
    code = compile(submission["code"], SUBMISSION_FILE, "exec", dont_inherit=True)
    pipe.send({"defined": _defined(submission["code"], submission["names"])})
    module = types.ModuleType(_MODULE)
    sys.modules[_MODULE] = module
    namespace = vars(module)
    namespace["__file__"] = "submission.py"
    for phase.name, source in (("imports", submission["imports"]), ("definition", code)):
        if isinstance(source, str):
            source = compile(source, _TEST_FILE, "exec", dont_inherit=True)
        exec(source, namespace)
    phase.name = "setup"
    exec(compile(submission["setup"], _TEST_FILE, "exec", dont_inherit=True), namespace)
    return namespace


def _defined(source: str, names: list[str]) -> list[str]:
    """List the names that the submission binds; parses it only where a plain look fails."""
    text = "\n" + source
    if all(f"\ndef {name}(" in text for name in names):
        return names
    return bound_names(source, names)


def _answer(request: Request, namespace: dict[str, object], encoder: Encoder) -> Reply:
    reply = Reply(number=request.get("number", 0))
    try:
        if "operation" in request:
            arguments = [_decoded(data, encoder) for data in request["arguments"]]
            value = _OPERATIONS[request["operation"]](*arguments)
            bindings = {}
        else:
            bindings = {name: _decoded(data, encoder) for name, data in request["bindings"].items()}
            value = _evaluated(str(request["expression"]), namespace, bindings)
        _set_recursion_limit(1000 + _EXTRA_FRAMES)
        reply["value"] = encoder.encode(value)
        changed = {
            name: encoder.encode(value)
            for name, value in bindings.items()
            if isinstance(value, (list, dict, set, bytearray))
        }
        if changed:
            reply["changed"] = changed
    except BaseException as error:
        reply["error"] = describe(error)
    return reply


def _decoded(data: Encoded, encoder: Encoder) -> Any:
    return decode(data, lambda handle, name: encoder.kept[handle])


def _evaluated(expression: str, namespace: dict[str, object], bindings: dict[str, object]) -> Any:
    code = compile(expression, _TEST_FILE, "eval", dont_inherit=True)
    if not bindings:
        return eval(code, namespace)
    # One dictionary, because lambdas and comprehensions look names up in the global one only.
    return eval(code, {**namespace, **bindings})
