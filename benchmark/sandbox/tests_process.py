"""Evaluates a test's own code in a confined process that never sees the submission.

The test arrives rewritten (see `plan_tests`): every expression that the submission must evaluate
has become `__ask__(number, variables)`, every assert a call of `__compare__` or `__truth__`. Values
come back as plain data; what is not plain is an `Opaque`, which forwards iteration, calls, items
and attributes to the submission's process and compares equal to nothing but itself.
"""

import builtins
import importlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from sdpo.benchmark.sandbox.display import display_pair
from sdpo.benchmark.sandbox.submission_process import describe
from sdpo.benchmark.sandbox.values import Encoder, decode
from sdpo.benchmark.sandbox.wire import Pipe

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


class _Failed(AssertionError):
    """An assert of the test did not hold."""


class _Stop(BaseException):
    """The submission's process can answer no more; not for the test's handlers."""


class Opaque:
    """Stand-in for a value in the submission's process."""

    __slots__ = ("_handle", "_judge", "_kind")

    def __init__(self, judge: "_Judge", handle: int, kind: str) -> None:
        self._judge = judge
        self._handle = handle
        self._kind = kind

    def _request(self, operation: str, **details: Any) -> Any:
        return self._judge.request({"operation": operation, "handle": self._handle, **details})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other._handle == self._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __bool__(self) -> bool:
        return self._request("truth") is True

    def __len__(self) -> int:
        return self._request("length")

    def __getitem__(self, key: object) -> Any:
        return self._request("item", bindings={"key": key})

    def __getattr__(self, name: str) -> Any:
        return self._request("attribute", name=name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the object in the submission's process."""
        bindings = {"arguments": arguments, "keywords": keywords}
        return self._request("call", bindings=bindings)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._request("iterate")
        if not isinstance(iterator, Opaque):
            return iter(iterator)
        return iterator._items()

    def _items(self) -> Iterator[Any]:
        count = _FIRST_ITEMS
        while items := self._request("take", count=count):
            yield from items
            count = min(2 * count, _MOST_ITEMS)

    def __next__(self) -> Any:
        for item in self._request("take", count=1):
            return item
        raise StopIteration

    def __repr__(self) -> str:
        return f"<{self._kind} object>"


class _Judge:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._encoder = Encoder()
        self.checks = 0
        self.sides: tuple[str, str] | None = None

    def request(self, request: dict[str, Any]) -> Any:
        """Have the submission's process do something; its exceptions are raised here."""
        bindings = request.get("bindings", {})
        request["bindings"] = {name: self._encode(value) for name, value in bindings.items()}
        self._pipe.send({"request": request})
        reply = self._pipe.receive()
        if "stop" in reply:
            raise _Stop
        for name, data in reply.get("changed", {}).items():
            if name in bindings:
                _update(bindings[name], self._decode(data))
        if "error" in reply:
            raise _exception(reply["error"])
        return self._decode(reply["value"])

    def _encode(self, value: object) -> Any:
        return _encode_with_handles(self._encoder.encode(value), self._encoder.kept)

    def _decode(self, data: Any) -> Any:
        return decode(data, lambda handle, kind: Opaque(self, handle, kind))

    def ask(self, number: int, bindings: dict[str, Any] | None = None) -> Any:
        return self.request(
            {"operation": "evaluate", "expression": number, "bindings": bindings or {}}
        )

    def compare(self, name: str, left: Any, right: Any) -> None:
        holds = _COMPARISONS[name](left, right)
        self.sides = display_pair(right, left) if name == "Eq" and not holds else None
        self.truth(holds)

    def truth(self, value: Any) -> None:
        if not value:
            raise _Failed
        self.checks += 1


def _encode_with_handles(data: Any, kept: list[object]) -> Any:
    """Replace the judge's own handles by those of the submission's process."""
    if isinstance(data, list):
        return [_encode_with_handles(part, kept) for part in data]
    if isinstance(data, dict):
        if "o" in data:
            value = kept[data["o"][0]]
            if isinstance(value, Opaque):
                return {"o": [value._handle, value._kind]}
        return {tag: _encode_with_handles(part, kept) for tag, part in data.items()}
    return data


def _update(target: Any, value: Any) -> None:
    """Give a container of the test the content that the submission's call left in its copy."""
    if type(target) is not type(value) or target == value:
        return
    if isinstance(target, (list, bytearray)):
        target[:] = value
    elif isinstance(target, (dict, set)):
        target.clear()
        target.update(value)


def _exception(description: dict[str, Any]) -> BaseException:
    """The nearest builtin exception, so that a test's own handlers work as they would."""
    for name in description["bases"]:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                error = kind(description["message"])
            except TypeError:
                continue
            error.__dict__["description"] = description
            return error
    return RuntimeError(description["message"])


def run(pipe: Pipe) -> None:
    """Evaluate tests, one after the other and each with names of its own, until the end."""
    while True:
        job = pipe.receive()
        pipe.send({"report": _report(job, _Judge(pipe))})


def _report(job: dict[str, Any], judge: _Judge) -> dict[str, Any]:
    namespace: dict[str, Any] = {
        "__ask__": judge.ask,
        "__compare__": judge.compare,
        "__truth__": judge.truth,
    }
    report: dict[str, Any] = {"ok": False, "stage": "setup"}
    try:
        for name in job["modules"]:
            namespace[name] = importlib.import_module(name)
        exec(compile(job["imports"], "<test>", "exec"), namespace)
        exec(compile(job["setup"], "<test>", "exec"), namespace)
        report["stage"] = "test"
        exec(compile(job["program"], "<test>", "exec"), namespace)
        report["ok"] = True
    except _Failed:
        report["sides"] = judge.sides
    except BaseException as error:
        report["error"] = getattr(error, "description", None) or describe(error)
        report["raised_by_submission"] = hasattr(error, "description")
    report["checks"] = judge.checks
    return report
