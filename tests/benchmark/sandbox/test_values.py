"""Values survive the way out as plain data, and forged data does not pass for a value."""

import collections
import datetime
import enum
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.benchmark.sandbox.display import display
from sdpo.benchmark.sandbox.values import (
    MAX_DEPTH,
    MAX_NODES,
    DecodeError,
    Encoder,
    TooLargeError,
    decode,
)


def opaque(handle: int, kind: str) -> object:
    return ("opaque", kind)


def travelled(value: object) -> Any:
    return decode(Encoder().encode(value), opaque)


_ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
_VALUES = st.recursive(
    _ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.floats(allow_nan=False))
    ),
)


@given(_VALUES)
def test_plain_values_come_back_equal_and_of_the_same_type(value: object) -> None:
    back = travelled(value)
    assert back == value
    assert type(back) is type(value)
    assert display(back) == display(value)


@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.50"),
        Fraction(-1, 3),
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
        datetime.timedelta(days=-1, seconds=5),
        range(3, 9, 2),
        {1: 2}.keys(),
        {1: 2}.items(),
        collections.deque([1, (2,)]),
        bytearray(b"\x00\xff"),
        int,
        ...,
        -0.0,
        math.inf,
        2**70,
    ],
    ids=repr,
)
def test_other_known_values_come_back_equal(value: object) -> None:
    assert travelled(value) == value


class _Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __pos__(self) -> int:
        return 7

    __hash__ = int.__hash__


class _Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (_Liar(3), 3),
        (_Colour.RED, 1),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
    ],
)
def test_subclasses_become_their_plain_base(value: object, plain: object) -> None:
    back = travelled(value)
    assert type(back) is type(plain)
    assert back == plain


def test_other_objects_are_opaque() -> None:
    for value in (object(), lambda: 1, iter([]), datetime.datetime.now(datetime.UTC)):
        assert travelled(value) == ("opaque", type(value).__name__)


def test_cycles_and_depth_are_opaque_and_size_is_an_error() -> None:
    cycle: list = [1]
    cycle.append(cycle)
    assert travelled(cycle) == [1, ("opaque", "list")]
    deep: list = []
    for _ in range(MAX_DEPTH + 10):
        deep = [deep]
    assert "opaque" in repr(travelled(deep))
    with pytest.raises(TooLargeError):
        Encoder().encode([0] * (MAX_NODES + 1))
    # of a list of numbers all parts are counted at once; two lists and a tuple are three more
    assert Encoder().encode([[0] * (MAX_NODES - 4), (0,)])
    with pytest.raises(TooLargeError):
        Encoder().encode([[0] * (MAX_NODES - 4), (0, 0)])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"t": [], "s": []},
        {"unknown": 1},
        {"i": "zz"},
        {"i": 5},
        {"f": "1.0"},
        {"c": ["a", "b"]},
        {"b": "0"},
        {"s": [[1]]},
        {"d": [1, 2, 3]},
        {"d": [[], 1]},
        {"r": [1, 2, 0]},
        {"F": ["Fraction", 1, 0]},
        {"F": ["Fraction", "1e999999999"]},
        {"F": ["Fraction", {"D": "1e999999999"}]},
        {"F": ["timedelta", {"f": "inf"}]},
        {"F": ["system", 1]},
        {"F": []},
        {"D": "x"},
        {"B": "exec"},
        {"o": 1},
        {"o": ["a", "b"]},
        {"t": 5},
        {"k": [{"d": []}]},
    ],
    ids=str,
)
def test_forged_data_is_refused(data: object) -> None:
    with pytest.raises(DecodeError):
        decode(data, opaque)


def test_a_dict_is_its_keys_and_values_in_turn() -> None:
    assert Encoder().encode({1: "a", (): {}}) == {"d": [1, "a", {"t": []}, {"d": []}]}


def test_forged_nesting_is_refused() -> None:
    data: list = []
    for _ in range(5000):
        data = [data]
    with pytest.raises(DecodeError):
        decode(data, opaque)
