"""Evaluates a test's own code in a confined process that never sees the submission.

The test arrives rewritten (see `split_test`): every expression that the submission must evaluate
has become `__ask__(number, variables)`, every assert a call of `__compare__` or `__truth__`. Values
come back as plain data; what is not plain is an `Opaque`, which forwards iteration, calls, items
and attributes to the submission's process and compares equal to nothing but itself.
"""

import importlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from sdpo.benchmark.sandbox.display import display_pair
from sdpo.benchmark.sandbox.exceptions import describe, nearest_builtin
from sdpo.benchmark.sandbox.values import Encoded, Encoder, decode
from sdpo.benchmark.sandbox.wire import Pipe, PlannedTest, Report, Request

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "Is": operator.is_,
    "IsNot": operator.is_not,
    "In": lambda left, right: left in right,
    "NotIn": lambda left, right: left not in right,
}
# Items fetched at once from an iterator: few at first, since making one may have an effect.
_FIRST_ITEMS, _MOST_ITEMS = 1, 1024


class _AssertFailed(AssertionError):
    """An assert of the test did not hold."""


class Opaque:
    """Stands for a value in the submission's process.

    The name shows in feedback, as in `unsupported operand type(s) for +: 'Opaque' and 'int'`.
    """

    __slots__ = ("_apply", "_handle", "_kind")

    def __init__(self, apply: Callable[..., Any], handle: int, kind: str) -> None:
        self._apply = apply
        self._handle = handle
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other._handle == self._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __bool__(self) -> bool:
        return self._apply("truth", self) is True

    def __len__(self) -> int:
        return self._apply("length", self)

    def __getitem__(self, key: object) -> Any:
        return self._apply("item", self, key)

    def __getattr__(self, name: str) -> Any:
        return self._apply("attribute", self, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the object in the submission's process."""
        return self._apply("call", self, arguments, keywords)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._apply("iterate", self)
        return iterator._items() if isinstance(iterator, Opaque) else iter(iterator)

    def _items(self) -> Iterator[Any]:
        count = _FIRST_ITEMS
        while items := self._apply("take", self, count):
            yield from items
            count = min(2 * count, _MOST_ITEMS)

    def __next__(self) -> Any:
        for item in self._apply("take", self, 1):
            return item
        raise StopIteration

    def __repr__(self) -> str:
        return f"<{self._kind} object>"


class _ArgumentEncoder(Encoder):
    """Encodes what the test passes to the submission: plain values, and the submission's own."""

    def opaque(self, value: object) -> Encoded:
        """Encode a value of the submission's by its handle; the test's own objects stay here."""
        if isinstance(value, Opaque):
            return {"o": [value._handle, value._kind]}
        raise TypeError(f"the test cannot pass a {type(value).__name__} to the submission")


class _Test:
    """Evaluates one test: what its rewritten code calls, and what became of its asserts."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._encode = _ArgumentEncoder().encode
        self.checks = 0
        self.sides: tuple[str, str] | None = None

    def names(self) -> dict[str, object]:
        """List the names that the test's rewritten code uses."""
        return {"__ask__": self._ask, "__compare__": self._compare, "__truth__": self._truth}

    def _ask(self, expression: int, bindings: dict[str, object]) -> Any:
        """Have the submission evaluate an expression, given the test's variables in it."""
        encoded = {name: self._encode(value) for name, value in bindings.items()}
        return self._request({"expression": expression, "bindings": encoded}, bindings)

    def _apply(self, operation: str, *arguments: Any) -> Any:
        encoded = [self._encode(argument) for argument in arguments]
        return self._request({"operation": operation, "arguments": encoded}, {})

    def _request(self, request: Request, bindings: dict[str, object]) -> Any:
        """Have the submission's process do something; its exceptions are raised here."""
        self._pipe.send({"request": request})
        reply = self._pipe.receive()
        for name, data in reply.get("changed", {}).items():
            if name in bindings:
                _update(bindings[name], self._decode(data))
        if "error" in reply:
            error = nearest_builtin(reply["error"])
            error.__dict__["description"] = reply["error"]
            raise error
        return self._decode(reply["value"])

    def _decode(self, data: Encoded) -> Any:
        return decode(data, lambda handle, kind: Opaque(self._apply, handle, kind))

    def _compare(self, comparison: str, left: Any, right: Any) -> None:
        holds = _COMPARISONS[comparison](left, right)
        self.sides = display_pair(right, left) if comparison == "Eq" and not holds else None
        self._truth(holds)

    def _truth(self, value: Any) -> None:
        if not value:
            raise _AssertFailed
        self.checks += 1


def _update(target: Any, value: Any) -> None:
    """Give a container of the test the content that the submission's call left in its copy."""
    if type(target) is not type(value) or target == value:
        return
    if isinstance(target, (list, bytearray)):
        target[:] = value
    elif isinstance(target, (dict, set)):
        target.clear()
        target.update(value)


def run(pipe: Pipe) -> None:
    """Evaluate tests, one after the other and each with names of its own, until the end."""
    while True:
        job = pipe.receive()
        pipe.send({"report": _report(job, _Test(pipe))})


def _report(job: PlannedTest, test: _Test) -> Report:
    namespace = test.names()
    sides = error = None
    ok, in_setup, raised_by_submission = False, True, False
    try:
        for name in job["modules"]:
            namespace[name] = importlib.import_module(name)
        exec(compile(job["imports"], "<test>", "exec"), namespace)
        exec(compile(job["setup"], "<test>", "exec"), namespace)
        in_setup = False
        exec(compile(job["program"], "<test>", "exec"), namespace)
        ok = True
    except _AssertFailed:
        sides = test.sides
    except BaseException as raised:
        raised_by_submission = hasattr(raised, "description")
        error = getattr(raised, "description", None) or describe(raised)
    return Report(
        ok=ok,
        checks=test.checks,
        sides=sides,
        error=error,
        in_setup=in_setup,
        raised_by_submission=raised_by_submission,
    )
