"""Rewards in the signature of TRL's trainers."""

import os
from collections.abc import Iterator

import pytest

from sdpo.benchmark.sandbox.cleanup import descendants
from sdpo.benchmark.scoring.reward import FormatReward, MBPPReward, completion_text

_RIGHT = "```python\ndef f(x):\n    return x\n```"
_HALF = "```python\ndef f(x):\n    return 1\n```"
_TESTS = ["assert f(1) == 1", "assert f(2) == 2"]


@pytest.fixture(scope="module")
def reward() -> Iterator[MBPPReward]:
    own = MBPPReward(workers=2)
    yield own
    own.close()


def test_fraction_and_feedback(reward: MBPPReward) -> None:
    rewards = reward(
        prompts=["p"] * 4,
        completions=[_RIGHT, _HALF, "", "import os; os._exit(0)"],
        completion_ids=[[1]] * 4,
        test_list=[_TESTS] * 4,
        trainer_state=None,
    )
    assert rewards == [1.0, 0.5, 0.0, 0.0]
    assert reward.last_feedback[0] == ""
    assert "Expected: 2\nActual: 1" in reward.last_feedback[1]
    assert all(reward.last_feedback[1:])
    assert [r.status for r in reward.last_results] == ["pass", "fail", "error", "error"]


def test_all_or_nothing() -> None:
    reward = MBPPReward(all_or_nothing=True, workers=1)
    try:
        assert reward(completions=[_RIGHT, _HALF], test_list=[_TESTS] * 2) == [1.0, 0.0]
    finally:
        reward.close()


def test_conversations_and_columns(reward: MBPPReward) -> None:
    chat = [{"role": "assistant", "content": "def area(r):\n    return math.pi * r"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": chat[0]["content"]}]}]
    rewards = reward(
        completions=[chat, parts, chat],
        test_list=[["assert area(one) == math.pi"]] * 3,
        test_imports=[["import math"], "import math", None],
        test_setup_code=["one = 1"] * 3,
    )
    assert rewards == [1.0, 1.0, 0.0]


def test_no_tests_give_nothing(reward: MBPPReward) -> None:
    assert reward(completions=[_RIGHT], test_list=[[]]) == [0.0]
    assert reward(completions=[], test_list=[]) == []


def test_pool_is_kept_over_calls_and_ended_by_close() -> None:
    before = set(descendants(os.getpid()))
    reward = MBPPReward(workers=1)
    assert set(descendants(os.getpid())) == before
    reward(completions=[_RIGHT], test_list=[_TESTS])
    running = set(descendants(os.getpid()))
    reward(completions=[_RIGHT], test_list=[_TESTS])
    assert set(descendants(os.getpid())) == running > before
    reward.close()
    assert set(descendants(os.getpid())) == before
    assert reward(completions=[_RIGHT], test_list=[_TESTS]) == [1.0]
    reward.close()


def test_wrong_shapes_are_errors(reward: MBPPReward) -> None:
    with pytest.raises(ValueError, match="test_list has 1 entries for 2 completions"):
        reward(completions=[_RIGHT] * 2, test_list=[_TESTS])
    with pytest.raises(TypeError, match="must be a string or a list of messages"):
        reward(completions=[3], test_list=[_TESTS])  # pyright: ignore[reportArgumentType]


def test_names_for_the_trainers_log() -> None:
    assert MBPPReward().__name__ == "mbpp_reward"
    assert FormatReward().__name__ == "format_reward"


@pytest.mark.parametrize(
    ("completion", "value", "hint"),
    [
        (_RIGHT, 1.0, ""),
        (f"Text\n{_RIGHT}\nText", 1.0, ""),
        ("def f(x):\n    return x", 0.0, "Put the code"),
        ("```\nx\n```", 0.0, "Label"),
        (_RIGHT[:-3], 0.0, "Close"),
        (f"{_RIGHT}\n{_RIGHT}", 0.0, "there are 2"),
        ([{"role": "assistant", "content": _RIGHT}], 1.0, ""),
        ("", 0.0, "Put the code"),
    ],
)
def test_format(completion: object, value: float, hint: str) -> None:
    reward = FormatReward()
    assert reward(completions=[completion], test_list=[_TESTS]) == [value]  # pyright: ignore
    assert hint in reward.last_feedback[0]
    assert bool(reward.last_feedback[0]) == (value == 0.0)


def test_text_of_a_conversation_is_the_assistants() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert completion_text(messages) == ""
