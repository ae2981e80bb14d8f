"""A case is read from a record, or the message says which field is wrong."""

import pytest

from sdpo.benchmark.problems.case import Case, CaseError, Result, source

RECORD = {"id": 7, "completion": "x = 1", "test_list": ["assert x == 1"]}


def test_fields_are_read_and_unknown_ones_ignored():
    record = {**RECORD, "test_imports": ["import math", "import re"], "other": 1}
    assert Case.from_record(record) == Case(
        7, "x = 1", ("assert x == 1",), test_imports="import math\nimport re"
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([1], "expected an object, found a list"),
        ({"test_list": []}, '"completion" is missing'),
        ({**RECORD, "completion": None}, '"completion" must be a string, found null'),
        ({"completion": ""}, '"test_list" is missing'),
        ({**RECORD, "test_list": "assert x"}, '"test_list" must be a list of strings, found a s'),
        ({**RECORD, "test_list": [True]}, '"test_list" must hold strings only, found a boolean'),
        ({**RECORD, "test_imports": 3}, '"test_imports" must be a list of strings, found a n'),
    ],
)
def test_a_wrong_field_is_named(record, said):
    with pytest.raises(CaseError) as error:
        Case.from_record(record)
    assert str(error.value).startswith(said)


def test_source_has_plain_line_ends():
    assert source("a\r\nb", "code") == "a\nb"
    assert source(["a", "b\r\n"], "code") == "a\nb\n"
    assert source(None, "code") == ""


def test_a_result_is_written_with_rounded_seconds():
    line = Result("fail", 1, 3, "Test 2 failed", 0.12345, ("seccomp",)).record("x")
    assert (line["id"], line["seconds"], line["isolation"]) == ("x", 0.123, ["seccomp"])
