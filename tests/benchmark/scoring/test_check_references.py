"""A reference solution that does not pass its own tests is found."""

from sdpo.benchmark.problems.dataset import Dataset, Problem
from sdpo.benchmark.scoring.check_references import check_references, reference_case
from sdpo.benchmark.scoring.executor import Executor

_RIGHT = Problem(1, "", "def f(x):\n    return x + 1", ("assert f(1) == 2", "assert f(2) == 3"))
_WRONG = Problem(2, "", "def f(x):\n    return x", ("assert f(1) == 2", "assert f(2) == 2"))


def test_what_fails_is_listed_with_its_result(executor: Executor) -> None:
    data = Dataset((_RIGHT, _WRONG), "sha", "here")
    seen = []
    (failure,) = check_references(executor, data, progress=seen.append)
    assert failure.task_id == 2
    assert (failure.result.status, failure.result.passed, failure.result.total) == ("fail", 1, 2)
    assert len(seen) == 2


def test_tests_can_be_taken_in_reversed_order() -> None:
    case = reference_case(_RIGHT, reverse=True)
    assert case.test_list == ("assert f(2) == 3", "assert f(1) == 2")
    assert (case.id, case.completion) == (1, _RIGHT.code)
