"""Runs the reference solutions of a data set: each must pass its own tests."""

import dataclasses
from collections.abc import Callable

from sdpo.benchmark.problems.case import Case, Result
from sdpo.benchmark.problems.dataset import Dataset, Problem
from sdpo.benchmark.scoring.executor import Executor


@dataclasses.dataclass(frozen=True)
class Failure:
    """Names a reference solution that did not pass."""

    task_id: int
    result: Result


def reference_case(problem: Problem, *, reverse: bool = False) -> Case:
    """Make a case of the reference solution, optionally with its tests in reversed order."""
    tests = problem.test_list[::-1] if reverse else problem.test_list
    return Case(problem.task_id, problem.code, tests, problem.test_imports, problem.test_setup_code)


def check_references(
    executor: Executor,
    dataset: Dataset,
    *,
    reverse: bool = False,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Failure]:
    """Run every reference solution.

    Args:
        executor: Does the scoring.
        dataset: The problems.
        reverse: Judge each problem's tests in reversed order.
        progress: Called after each problem.

    Returns:
        Those that did not pass.
    """
    failures = []
    cases = [reference_case(problem, reverse=reverse) for problem in dataset.problems]
    for problem, result in zip(dataset.problems, executor.map(cases), strict=True):
        progress(result)
        if result.status != "pass":
            failures.append(Failure(problem.task_id, result))
    return failures
