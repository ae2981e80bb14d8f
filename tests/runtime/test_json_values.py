"""What becomes of values that JSON or UTF-8 lack."""

from dataclasses import dataclass
from datetime import date

import pytest
from msgspec import Struct

from sdpo.parity.compare.statuses import Status
from sdpo.runtime.json_values import json_safe


@dataclass
class Inner:
    size: float


class Outer(Struct):
    inner: Inner
    day: date


def test_objects_become_their_fields_and_dates_texts():
    value = Outer(Inner(0.5), date(2026, 1, 2))
    assert json_safe(value) == {"inner": {"size": 0.5}, "day": "2026-01-02"}


def test_nan_and_infinities_become_texts():
    values = (float("nan"), float("inf"), -float("inf"), 1.5)
    assert json_safe(values) == ["nan", "inf", "-inf", 1.5]


def test_numbers_switches_and_null_stay_as_they_are():
    assert json_safe([None, True, 2, 0.25, "é"]) == [None, True, 2, 0.25, "é"]


def test_a_lone_surrogate_becomes_its_escape_also_in_a_key():
    assert json_safe({"a\ud800": "b\udfff"}) == {"a\\ud800": "b\\udfff"}


def test_a_status_becomes_a_plain_text_also_as_a_key():
    safe = json_safe({Status.PASS: Status.MATCH})
    assert isinstance(safe, dict)
    ((key, value),) = safe.items()
    assert (type(key), key, type(value), value) == (str, "PASS", str, "MATCH")


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(TypeError, match="JSON has no form for a set"):
        json_safe({"names": {1, 2}})
