"""Exceptions travel as text and numbers, and nothing that a submission says of one is trusted."""

from sdpo.benchmark.sandbox.exceptions import (
    SUBMISSION_FILE,
    checked_description,
    describe,
    nearest_builtin,
)


def raised_by(source: str) -> BaseException:
    try:
        exec(compile(source, SUBMISSION_FILE, "exec"), {})
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_line_is_the_last_of_the_submission() -> None:
    found = describe(raised_by("def f():\n    return {}[1]\n\nf()"))
    assert found["type"] == "KeyError"
    assert found["bases"][:3] == ["KeyError", "LookupError", "Exception"]
    assert (found["message"], found["line"]) == ("1", 2)
    assert describe(ValueError("elsewhere"))["line"] is None
    assert describe(raised_by("x = 1\ny = ("))["line"] == 2


def test_a_message_that_cannot_be_made_is_replaced() -> None:
    source = "class X(Exception):\n    def __str__(self):\n        raise SystemExit\nraise X"
    assert describe(raised_by(source))["message"] == "(its message cannot be shown)"
    assert len(describe(ValueError("x" * 10_000))["message"]) == 2000


def test_a_forged_description_has_the_right_types() -> None:
    empty = {"type": "None", "bases": [], "message": "None", "line": None}
    for forged in (None, 3, [], {}, {"bases": "abc", "line": "7"}):
        assert checked_description(forged) == empty
    found = checked_description({"type": [1], "bases": [2] * 99, "message": {}, "line": 7})
    assert found == {"type": "[1]", "bases": ["2"] * 50, "message": "{}", "line": 7}


def test_a_handler_of_the_test_catches_the_nearest_builtin() -> None:
    own = describe(raised_by("class Empty(LookupError): pass\nraise Empty('gone')"))
    nearest = nearest_builtin(own)
    assert (type(nearest), str(nearest)) == (LookupError, "gone")
    # UnicodeDecodeError takes five arguments: its base is nearer than nothing.
    assert type(nearest_builtin(describe(raised_by("b'\\xff'.decode()")))) is UnicodeError
    nameless = checked_description({"bases": ["exec", "open"], "message": "m"})
    assert type(nearest_builtin(nameless)) is RuntimeError
