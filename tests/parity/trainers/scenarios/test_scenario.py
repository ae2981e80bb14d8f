"""Scripts: rows and groups, and what is refused."""

from dataclasses import replace

import pytest

from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout


def test_four_rows_of_two_conversations_are_two_groups_of_two():
    conversations = tuple(({"role": "user", "content": name},) for name in "ab")
    generation = Generation(conversations, (Rollout("x", 1.0),) * 4)
    assert generation.group_size == 2
    asked = [generation.conversation_of(row)[0]["content"] for row in range(4)]
    assert asked == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("scenario", "on_policy"), [("T01", True), ("T03", True), ("T05", False), ("T06", False)]
)
def test_one_gradient_at_the_weights_that_generated_is_on_policy(scenario, on_policy):
    """T05 takes two steps from a generation, T06 goes through it twice."""
    assert BY_ID[scenario].on_policy == on_policy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": 2}, r"generations \[0\] do not have .* = 2 rows"),
        ({"nudge": "everything"}, "nudge='everything'; valid are"),
        ({"disguise": "hat"}, "disguise='hat'; valid are"),
    ],
)
def test_a_scenario_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **changes)
