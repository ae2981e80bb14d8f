"""Encodes values as plain data, by exact base type, so that no method of a submission takes part.

JSON's own types stand for themselves: `None`, booleans, integers up to 64 bits, finite floats,
strings, lists. Everything else is an object with one key:

| key | value | key | value |
|---|---|---|---|
| `i` | other integers, hexadecimal | `t` | tuple |
| `f` | `nan`, `inf`, `-inf` | `s`, `z` | set, frozenset |
| `c` | complex, two `repr` of floats | `d` | dict, keys and values in turn |
| `b`, `y` | bytes, bytearray, hexadecimal | `q` | deque |
| `r` | range | `k`, `m` | view of a dict's keys, of its items |
| `D` | Decimal | `F` | Fraction, date, time, datetime, timedelta: name, integers |
| `B` | a builtin type, `Ellipsis`, `NotImplemented` | `o` | anything else, by handle |

An instance of a subclass (Counter, defaultdict, OrderedDict, namedtuple, IntEnum) is encoded as its
plain base, with the base's own methods. Cycles, and what is nested deeper than `MAX_DEPTH`, become
opaque: equal to nothing but themselves.
"""

import builtins
import collections
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

# A private copy: a submission that patches a builtin does not reach the functions below.
__builtins__ = dict(vars(builtins))

MAX_DEPTH = 100
MAX_NODES = 1_000_000
_MAX_INTEGER = 1 << 63

_BUILTINS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) or name in ("Ellipsis", "NotImplemented")
}
_BUILTIN_NAMES = {id(value): name for name, value in _BUILTINS.items()}
_DATE = ("year", "month", "day")
_TIME = ("hour", "minute", "second", "microsecond")
# Types made from integers, with the attributes that hold these. Their modules are loaded only if a
# submission loads them: each costs every run a little.
_FROM_INTEGERS = {
    "Fraction": ("fractions", ("numerator", "denominator")),
    "date": ("datetime", _DATE),
    "time": ("datetime", _TIME),
    "datetime": ("datetime", (*_DATE, *_TIME)),
    "timedelta": ("datetime", ("days", "seconds", "microseconds")),
}
_mro_of = type.__dict__["__mro__"].__get__
_DictKeys, _DictItems = type({}.keys()), type({}.items())

# What JSON holds.
Encoded = Any


class TooLargeError(Exception):
    """A value with more than `MAX_NODES` parts."""


class Encoder:
    """Encodes values and keeps those that are not plain, each under a handle of its own."""

    def __init__(self) -> None:
        self.kept: list[object] = []
        self._handles: dict[int, int] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def encode(self, value: object) -> Encoded:
        """Encode one value; raises `TooLargeError`."""
        self._nodes = 0
        self._open = set()
        return self._encode(value, 0)

    def opaque(self, value: object) -> Encoded:
        """Keep a value that is not plain, and encode its handle and the name of its type."""
        if id(value) not in self._handles:
            self._handles[id(value)] = len(self.kept)
            self.kept.append(value)
        name = type.__dict__["__name__"].__get__(type(value))
        return {"o": [self._handles[id(value)], str.__str__(name)]}

    def _encode(self, value: Any, depth: int) -> Encoded:
        self._count(1)
        for base in _mro_of(type(value)):
            if base is list and _stands_for_itself(value):
                self._count(list.__len__(value))
                return list.__getitem__(value, slice(None))
            if base in _SCALARS:
                return _SCALARS[base](value)
            if base in _CONTAINERS:
                tag, parts = _CONTAINERS[base]
                return self._container(tag, value, parts(value), depth)
        return self._exact_type_only(value, depth)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise TooLargeError(f"more than {MAX_NODES} parts")

    def _container(self, tag: str, value: object, parts: Iterable[Any], depth: int) -> Encoded:
        """Encode the parts under the tag; a cycle, or too deep nesting, is opaque."""
        if depth >= MAX_DEPTH or id(value) in self._open:
            return self.opaque(value)
        self._open.add(id(value))
        try:
            encoded = [self._encode(part, depth + 1) for part in parts]
        finally:
            self._open.discard(id(value))
        return {tag: encoded} if tag else encoded

    def _exact_type_only(self, value: Any, depth: int) -> Encoded:
        """Encode a value of a type whose subclasses, as all other types, are opaque."""
        kind = type(value)
        if id(value) in _BUILTIN_NAMES:
            return {"B": _BUILTIN_NAMES[id(value)]}
        if kind is range:
            return self._container("r", value, (value.start, value.stop, value.step), depth)
        if kind is _DictKeys:
            return self._container("k", value, iter(value), depth)
        if kind is _DictItems:
            return self._container("m", value, _flat(value), depth)
        if kind is _loaded("decimal", "Decimal"):
            return {"D": str(value)}
        for name, (module, attributes) in _FROM_INTEGERS.items():
            if kind is _loaded(module, name) and getattr(value, "tzinfo", None) is None:
                return {"F": [name, *(_integer(getattr(value, key)) for key in attributes)]}
        return self.opaque(value)


def _loaded(module: str, name: str) -> object:
    """Return a module's type if the module is loaded, or else something that is no type."""
    return getattr(sys.modules.get(module), name, "not loaded")


def _stands_for_itself(value: list[Any]) -> bool:
    """Tell whether JSON holds a list as it is; saves most of the time for long ones."""
    kinds = set(map(type, list.__iter__(value)))
    if kinds == {int}:
        numbers = list.__getitem__(value, slice(None))
        return min(numbers) >= -_MAX_INTEGER and max(numbers) < _MAX_INTEGER
    return kinds <= {str, bool, type(None)}


def _flat(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(pairs))


def _integer(value: Any) -> Encoded:
    exact = int.__pos__(value)
    return exact if -_MAX_INTEGER <= exact < _MAX_INTEGER else {"i": hex(exact)}


def _float(value: Any) -> Encoded:
    exact = float.__pos__(value)
    return exact if math.isfinite(exact) else {"f": repr(exact)}


def _complex(value: Any) -> Encoded:
    exact = complex.__pos__(value)
    return {"c": [repr(exact.real), repr(exact.imag)]}


# Both tables are gone through in the order of a type's ancestors: a bool is no integer here.
_SCALARS: dict[type, Callable[[Any], Encoded]] = {
    type(None): lambda value: None,
    bool: lambda value: value,
    int: _integer,
    float: _float,
    complex: _complex,
    str: str.__str__,
    bytes: lambda value: {"b": bytes.hex(value)},
    bytearray: lambda value: {"y": bytearray.hex(value)},
}
_CONTAINERS: dict[type, tuple[str, Callable[[Any], Iterable[Any]]]] = {
    list: ("", list.__iter__),
    tuple: ("t", tuple.__iter__),
    set: ("s", set.__iter__),
    frozenset: ("z", frozenset.__iter__),
    dict: ("d", lambda value: _flat(dict.items(value))),
    collections.deque: ("q", collections.deque.__iter__),
}


class DecodeError(ValueError):
    """Data that no encoder makes: the confined process forged it."""


def decode(data: Encoded, opaque: Callable[[int, str], object]) -> Any:
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


def _decode(data: Encoded, opaque: Callable[[int, str], object], depth: int) -> Any:
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
    if tag in _DECODE_SCALAR:
        return _DECODE_SCALAR[tag](content)
    return _DECODE_CONTAINER[tag]([_decode(part, opaque, depth + 1) for part in content])


def _pairs(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _from_integers(parts: list[Any]) -> Any:
    name, *integers = parts
    if not all(type(part) is int for part in integers):
        # A Fraction of the text "1e999999999" would be computed for hours.
        raise TypeError(f"{name} is made from integers")
    return getattr(importlib.import_module(_FROM_INTEGERS[name][0]), name)(*integers)


_DECODE_SCALAR: dict[str, Callable[[Any], Any]] = {
    "i": lambda text: int(text, 16),
    "f": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "c": lambda pair: complex(float(pair[0]), float(pair[1])),
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "D": lambda text: importlib.import_module("decimal").Decimal(str(text)),
    "B": lambda name: _BUILTINS[name],
}
_DECODE_CONTAINER: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "d": _pairs,
    "q": collections.deque,
    "r": lambda parts: range(*parts),
    "k": lambda parts: dict.fromkeys(parts).keys(),
    "m": lambda parts: _pairs(parts).items(),
    "F": _from_integers,
}
