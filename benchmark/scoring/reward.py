"""Rewards completions in TRL's signature: by tests passed, and by the form of the answer."""

import atexit
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo.benchmark.problems.case import Case, Result, source
from sdpo.benchmark.scoring.executor import DEFAULT_TIMEOUT, Executor
from sdpo.benchmark.scoring.extract_code import fenced_blocks

Completion = str | Sequence[Mapping[str, Any]]


def completion_text(completion: Completion) -> str:
    """Return the text of a completion, which is a string or a list of messages.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(m, Mapping) for m in completion):
        return "".join(_content(m["content"]) for m in completion if m.get("role") == "assistant")
    raise TypeError(
        f"a completion is {type(completion).__name__}; it must be a string or a list of messages"
    )


def _content(content: object) -> str:
    """Content of a message: text, or a list of parts of which the text counts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        return "".join(str(part.get("text") or "") for part in content)
    raise TypeError(f"a message's content is {type(content).__name__}; it must be text")


def _column(values: Sequence[Any] | None, size: int, name: str) -> Sequence[Any]:
    if values is None:
        return [None] * size
    if len(values) != size:
        raise ValueError(f"{name} has {len(values)} entries for {size} completions")
    return values


class MBPPReward:
    """Rewards a completion with the fraction of the tests that it passes.

    Use it as a reward function of `GRPOTrainer`, with the data set's columns `test_list` and, where
    there are any, `test_imports` and `test_setup_code`. After each call `last_feedback` holds one
    text per completion, empty where all tests passed, and `last_results` the full results.

    Args:
        all_or_nothing: Reward 1 if all tests pass and 0 otherwise.
        executor: Where to run; by default its own with `workers` and `timeout`, started at the
            first call, kept for later calls and ended by `close` or at exit.
        workers: Number of cases run at a time.
        timeout: Wall time in seconds for all tests of a case.
        require_isolation: Refuse to run unless the core layers are active.
    """

    def __init__(
        self,
        *,
        all_or_nothing: bool = False,
        executor: Executor | None = None,
        workers: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        require_isolation: bool = False,
    ) -> None:
        self.__name__ = "mbpp_reward"
        self.all_or_nothing = all_or_nothing
        self.last_feedback: list[str] = []
        self.last_results: list[Result] = []
        self._executor = executor
        self._owned = executor is None
        self._settings = {
            "workers": workers,
            "timeout": timeout,
            "require_isolation": require_isolation,
        }
        self._lock = threading.Lock()

    def _pool(self) -> Executor:
        with self._lock:
            if self._executor is None:
                self._executor = Executor(**self._settings)
                atexit.register(self.close)
            return self._executor

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        *,
        test_list: Sequence[Sequence[str]],
        test_imports: Sequence[Any] | None = None,
        test_setup_code: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Score completions.

        Args:
            prompts: Not used.
            completions: Texts or lists of messages.
            test_list: The tests of each completion.
            test_imports: The imports of each, a text or a list of lines.
            test_setup_code: The set-up code of each.
            **columns: Not used.

        Returns:
            One reward in [0, 1] per completion.

        Raises:
            ValueError: If a column has another length than `completions`.
            TypeError: If a completion is neither a text nor a list of messages.
        """
        size = len(completions)
        tests = _column(test_list, size, "test_list")
        imports = _column(test_imports, size, "test_imports")
        setups = _column(test_setup_code, size, "test_setup_code")
        cases = [
            Case(
                index,
                completion_text(completion),
                tuple(tests[index]),
                source(imports[index], "test_imports"),
                source(setups[index], "test_setup_code"),
            )
            for index, completion in enumerate(completions)
        ]
        self.last_results = list(self._pool().map(cases))
        self.last_feedback = [result.feedback for result in self.last_results]
        return [self._reward(result) for result in self.last_results]

    def _reward(self, result: Result) -> float:
        if self.all_or_nothing:
            return float(result.status == "pass")
        return result.passed / result.total if result.total else 0.0

    def close(self) -> None:
        """End its own executor's processes; a later call starts new ones."""
        with self._lock:
            if self._owned and self._executor is not None:
                self._executor.close()
                self._executor = None
                atexit.unregister(self.close)


class FormatReward:
    """Rewards exactly one closed block labelled as Python with 1, any other form with 0.

    After each call `last_feedback` holds one text per completion, empty where the form is right.
    """

    def __init__(self) -> None:
        self.__name__ = "format_reward"
        self.last_feedback: list[str] = []

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        **columns: Any,
    ) -> list[float]:
        """Judge the form of completions.

        Args:
            prompts: Not used.
            completions: Texts or lists of messages.
            **columns: Not used.

        Returns:
            One reward, 0 or 1, per completion.
        """
        self.last_feedback = [_fault(completion_text(c)) for c in completions]
        return [float(not fault) for fault in self.last_feedback]


def _fault(text: str) -> str:
    """Say what is wrong with the form of an answer; nothing if it is right."""
    blocks = fenced_blocks(text)
    python = [block for block in blocks if block.is_python]
    if not blocks:
        return "Put the code into a block that starts with ```python and ends with ```."
    if not python:
        return "Label the code block: start it with ```python."
    if len(python) > 1:
        return f"Give one code block; there are {len(python)}."
    return "" if python[0].closed else "Close the code block with ```."
