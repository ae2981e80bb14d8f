"""A result or a crash comes out of a process that works for the command."""

import json
import sys

import pytest
from msgspec import Struct

from sdpo.parity.audit.child_process import Crash, Ended, answer


class Question(Struct):
    number: int


class Answer(Struct):
    half: float


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Answers a question in this process; standard output is a file, as in a child."""

    def answered(work, document='{"number": 3}'):
        (tmp_path / "request").write_text(document)
        with (tmp_path / "log").open("w") as log:
            monkeypatch.setattr(sys, "stdout", log)
            monkeypatch.setattr("signal.signal", lambda *_: None)
            answer(str(tmp_path / "request"), str(tmp_path / "result"), Question, work)
        return json.loads((tmp_path / "result").read_text()), (tmp_path / "log").read_text()

    return answered


def test_the_result_is_written_as_json(answered):
    assert answered(lambda question: Answer(question.number / 2)) == ({"half": 1.5}, "")


def test_a_number_that_json_lacks_is_a_text(answered):
    assert answered(lambda question: Answer(float("inf")))[0] == {"half": "inf"}


def test_a_failure_is_a_crash_and_its_traceback_is_in_the_log(answered):
    document, log = answered(lambda question: Answer(question.number / 0))
    assert document["crash"].startswith("the audit itself failed: ZeroDivisionError")
    assert "Traceback" in log


def test_a_missing_package_is_named_without_a_traceback(answered):
    def work(question: Question) -> Answer:
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")

    document, log = answered(work)
    assert "nothing" in document["crash"]
    assert log == ""


def test_a_process_without_result_has_a_problem():
    assert Ended(None, 7).problem == "the process ended with exit code 7"
    assert Ended(Crash("why"), 0).problem == "why"
    assert Ended(Answer(1.0), 0).problem == ""
