"""Values as plain data: encoded by exact base type, so that no method of a submission takes part.

JSON's own types stand for themselves: `None`, booleans, integers up to 64 bits, finite floats,
strings, lists. Everything else is an object with one key:

| key | value | key | value |
|---|---|---|---|
| `i` | other integers, hexadecimal | `t` | tuple |
| `f` | `nan`, `inf`, `-inf` | `s`, `z` | set, frozenset |
| `c` | complex, two `repr` of floats | `d` | dict, list of pairs |
| `b`, `y` | bytes, bytearray, hexadecimal | `q` | deque |
| `r` | range | `k`, `m` | view of a dict's keys, of its items |
| `D`, `F` | Decimal, Fraction | `T` | date, time, datetime, timedelta |
| `B` | a builtin type, `Ellipsis`, `NotImplemented` | `o` | anything else, by handle |

An instance of a subclass (Counter, defaultdict, OrderedDict, namedtuple, IntEnum) is encoded as its
plain base, with the base's own methods. Cycles, and what is nested deeper than `MAX_DEPTH`, become
opaque: equal to nothing but themselves.
"""

import builtins
import collections
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

# A private copy: a submission that patches a builtin does not reach the functions below.
__builtins__ = dict(vars(builtins))

MAX_DEPTH = 100
MAX_NODES = 1_000_000
_SMALL = 1 << 63

_NAMED = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) or name in ("Ellipsis", "NotImplemented")
}
_NAMES = {id(value): name for name, value in _NAMED.items()}
_DAY = ("year", "month", "day")
_HOUR = ("hour", "minute", "second", "microsecond")
_MOMENTS = {
    "date": _DAY,
    "time": _HOUR,
    "datetime": (*_DAY, *_HOUR),
    "timedelta": ("days", "seconds", "microseconds"),
}
# Modules that are loaded only if a submission loads them: each costs every run a little.
_LATE = {"decimal": ("Decimal",), "fractions": ("Fraction",), "datetime": tuple(_MOMENTS)}
_bases_of = type.__dict__["__mro__"].__get__
_KEYS, _ITEMS = type({}.keys()), type({}.items())


class TooLargeError(Exception):
    """A value with more than `MAX_NODES` parts."""


class Encoder:
    """Encodes values and keeps those that are not plain, each under a handle of its own."""

    def __init__(self) -> None:
        self.kept: list[object] = []
        self._handles: dict[int, int] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def encode(self, value: object) -> Any:
        """Encode one value; raises `TooLargeError`."""
        self._nodes = 0
        self._open = set()
        return self._encode(value, 0)

    def _encode(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise TooLargeError(f"more than {MAX_NODES} parts")
        for base in _bases_of(type(value)):
            encode = _ENCODERS.get(base)
            if encode is not None:
                return encode(self, value, depth)
        if id(value) in _NAMES and _NAMED[_NAMES[id(value)]] is value:
            return {"B": _NAMES[id(value)]}
        encoded = _exact_only(self, value, depth)
        return self._opaque(value) if encoded is None else encoded

    def _opaque(self, value: object) -> dict[str, Any]:
        if id(value) not in self._handles:
            self._handles[id(value)] = len(self.kept)
            self.kept.append(value)
        name = type.__dict__["__name__"].__get__(type(value))
        return {"o": [self._handles[id(value)], str.__str__(name)]}

    def _parts(self, value: object, parts: Any, depth: int) -> list[Any] | None:
        """Encode the parts, or `None` for a cycle or too deep nesting."""
        if depth >= MAX_DEPTH or id(value) in self._open:
            return None
        self._open.add(id(value))
        try:
            return [self._encode(part, depth + 1) for part in parts]
        finally:
            self._open.discard(id(value))

    def _list(self, value: Any, depth: int) -> Any:
        if _is_simple(value):
            self._nodes += list.__len__(value)
            if self._nodes > MAX_NODES:
                raise TooLargeError(f"more than {MAX_NODES} parts")
            return list.__getitem__(value, slice(None))
        parts = self._parts(value, list.__iter__(value), depth)
        return self._opaque(value) if parts is None else parts

    def _tagged(self, tag: str, value: object, parts: Any, depth: int) -> dict[str, Any]:
        encoded = self._parts(value, parts, depth)
        return self._opaque(value) if encoded is None else {tag: encoded}

    def _pairs(self, tag: str, value: object, pairs: Any, depth: int) -> dict[str, Any]:
        flat = [part for pair in list(pairs) for part in pair]
        encoded = self._parts(value, flat, depth)
        if encoded is None:
            return self._opaque(value)
        return {tag: [[encoded[i], encoded[i + 1]] for i in range(0, len(encoded), 2)]}


def _is_simple(value: list[Any]) -> bool:
    """Whether a list stands for itself; saves most of the time for long ones."""
    kinds = set(map(type, list.__iter__(value)))
    if kinds == {int}:
        numbers = list.__getitem__(value, slice(None))
        return min(numbers) >= -_SMALL and max(numbers) < _SMALL
    return kinds <= {str, bool, type(None)}


def _integer(value: Any) -> Any:
    exact = int.__pos__(value)
    return exact if -_SMALL <= exact < _SMALL else {"i": hex(exact)}


def _float(value: Any) -> Any:
    exact = float.__pos__(value)
    return exact if math.isfinite(exact) else {"f": repr(exact)}


def _complex(value: Any) -> Any:
    exact = complex.__pos__(value)
    return {"c": [repr(exact.real), repr(exact.imag)]}


def _late_name(kind: type) -> str:
    """Name of a type from one of the modules in `_LATE`; empty for any other."""
    for module, names in _LATE.items():
        loaded = sys.modules.get(module)
        for name in names:
            if loaded is not None and getattr(loaded, name, None) is kind:
                return name
    return ""


def _moment(encoder: Encoder, name: str, value: Any) -> Any:
    if getattr(value, "tzinfo", None) is not None:
        return encoder._opaque(value)
    return {"T": [name, *(getattr(value, part) for part in _MOMENTS[name])]}


def _exact_only(encoder: Encoder, value: Any, depth: int) -> Any:
    """Encode a value of a type whose subclasses are opaque; `None` for any other type."""
    kind = type(value)
    if kind is range:
        return {"r": [_integer(part) for part in (value.start, value.stop, value.step)]}
    if kind is _KEYS:
        return encoder._tagged("k", value, iter(value), depth)
    if kind is _ITEMS:
        return encoder._pairs("m", value, iter(value), depth)
    name = _late_name(kind)
    if name == "Decimal":
        return {"D": str(value)}
    if name == "Fraction":
        return {"F": [_integer(value.numerator), _integer(value.denominator)]}
    return _moment(encoder, name, value) if name else None


_ENCODERS: dict[type, Callable[[Encoder, Any, int], Any]] = {
    type(None): lambda e, v, n: None,
    bool: lambda e, v, n: v,
    int: lambda e, v, n: _integer(v),
    float: lambda e, v, n: _float(v),
    complex: lambda e, v, n: _complex(v),
    str: lambda e, v, n: str.__str__(v),
    bytes: lambda e, v, n: {"b": bytes.hex(v)},
    bytearray: lambda e, v, n: {"y": bytearray.hex(v)},
    list: lambda e, v, n: e._list(v, n),
    tuple: lambda e, v, n: e._tagged("t", v, tuple.__iter__(v), n),
    set: lambda e, v, n: e._tagged("s", v, set.__iter__(v), n),
    frozenset: lambda e, v, n: e._tagged("z", v, frozenset.__iter__(v), n),
    dict: lambda e, v, n: e._pairs("d", v, dict.items(v), n),
    collections.deque: lambda e, v, n: e._tagged("q", v, collections.deque.__iter__(v), n),
}


class DecodeError(ValueError):
    """Data that no encoder makes: the confined process forged it."""


def decode(data: Any, opaque: Callable[[int, str], object]) -> Any:
    """Turn what `Encoder.encode` made back into values.

    Args:
        data: Decoded JSON; nothing about it is trusted.
        opaque: Makes the stand-in for a value that is not plain, from its handle and type name.

    Raises:
        DecodeError: If the data is malformed.
    """
    try:
        return _decode(data, opaque, 0)
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DecodeError(f"malformed value: {type(error).__name__}") from error


def _decode(data: Any, opaque: Callable[[int, str], object], depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deep")
    if isinstance(data, list):
        return [_decode(part, opaque, depth + 1) for part in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag == "o":
        handle, name = content
        return opaque(int(handle), str(name)[:100])
    if tag in _SCALARS:
        return _SCALARS[tag](content)
    parts = [_decode(part, opaque, depth + 1) for part in content]
    return _CONTAINERS[tag](parts)


def _late(module: str, name: str, parts: Any) -> Any:
    if name not in _LATE[module]:
        raise ValueError(name)
    return getattr(importlib.import_module(module), name)(*parts)


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": lambda text: int(text, 16),
    "f": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "c": lambda pair: complex(float(pair[0]), float(pair[1])),
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "D": lambda text: _late("decimal", "Decimal", [str(text)]),
    "T": lambda parts: _late("datetime", parts[0], parts[1:]),
    "B": lambda name: _NAMED[name],
}
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "d": dict,
    "q": collections.deque,
    "r": lambda parts: range(*parts),
    "k": lambda parts: dict.fromkeys(parts).keys(),
    "m": lambda parts: dict(parts).items(),
    "F": lambda parts: _late("fractions", "Fraction", parts),
}
