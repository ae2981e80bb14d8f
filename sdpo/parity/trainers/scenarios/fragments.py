"""What scenarios are made of: settings, conversations, rollouts and generations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sdpo.parity.trainers.scenarios.scenario import Conversation, Generation, Rollout
from sdpo.settings.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE

SETTINGS: dict[str, Any] = {
    "full_logit_distillation": True,
    "alpha": 0.5,
    "distillation_topk": 8,
    "distillation_add_tail": True,
    "is_clip": 2.0,
    "teacher_regularization": "ema",
    "teacher_update_rate": 0.05,
    "success_reward_threshold": 0.5,
    "dont_reprompt_on_self_success": True,
    "remove_thinking_from_demonstration": True,
    "include_environment_feedback": True,
    "environment_feedback_only_without_solution": True,
    "max_reprompt_len": 512,
    "reprompt_truncation": "right",
    "reprompt_template": REPROMPT_TEMPLATE,
    "solution_template": SOLUTION_TEMPLATE,
    "feedback_template": FEEDBACK_TEMPLATE,
}

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "SGD": {"name": "SGD", "lr": 0.5},
    "AdamW": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.01},
    "AdamW, fast": {"name": "AdamW", "lr": 0.05, "weight_decay": 0.01},
}

_LONG_QUESTION = "Add the numbers " + " and ".join(str(n) for n in range(3, 40)) + "."


def _asked(question: str) -> Conversation:
    """Make a conversation of one question."""
    return ({"role": "user", "content": question},)


SUMS = tuple(_asked(f"What is {a} + {b}?") for a, b in ((2, 3), (4, 1), (5, 7), (8, 6)))

MIXED = (
    Rollout("The answer is 5.", 1.0),
    Rollout("It is 4", 0.0),
    Rollout("Two and three make five, so 5 is right.", 1.0),
    Rollout("I do not know.", 0.0),
)
OTHERS = (
    Rollout("Six?", 0.0),
    Rollout("Four and one is 5", 1.0),
    Rollout("Perhaps 41, as one writes them side by side.", 0.0),
    Rollout("It must be 3.", 0.0),
)
_FAILED = (
    Rollout("12 minus something", 0.0),
    Rollout("No idea at all, sorry.", 0.0),
    Rollout("57", 0.0),
    Rollout("Maybe 11 or 13, hard to say", 0.0),
)
_SPACED = (
    Rollout("  The answer is 5. ", 1.0),
    Rollout("It is 4", 0.0),
    Rollout("5 <|im_start|>it is, I say\n", 1.0),
    Rollout("No number <|endoftext|> at all", 0.0),
)
"""White space at both ends, and special tokens inside."""
_CONVERSATIONS: tuple[Conversation, ...] = (
    (
        {"role": "system", "content": "You are terse. {braces} stay."},
        {"role": "user", "content": "What is 2 + 3?"},
    ),
    (
        {"role": "system", "content": "Answer with one number."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 4 + 1?"},
    ),
)
_ENDS_WITH_TOOL: Conversation = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "Let me look."},
    {"role": "tool", "content": "adder: 5"},
)
_WITH_FEEDBACK = (
    (
        Rollout("The answer is 5.", 0.6, "all tests passed"),
        Rollout("It is 4", 0.4, "expected 5, got 4"),
        Rollout("Five, I think.", 0.5, None),
        Rollout("I do not know.", 0.0, "no number found in {answer}"),
    ),
    (
        Rollout("Six?", 0.0, "expected 5, got 6"),
        Rollout("Four and one is 4", 0.3, None),
        Rollout("Perhaps 41.", 0.0, "expected 5, got 41"),
        Rollout("It must be 3.", 0.49, "   "),
    ),
)
_SAME_FEEDBACK = tuple(
    tuple(replace(rollout, feedback=f"the sum is not {n}") for rollout in group)
    for n, group in enumerate((_FAILED, OTHERS))
)
_THINKING = (
    Rollout("So: <think>2 and 3\nis 5</think>  The answer is 5. ", 1.0),
    Rollout("It is 4", 0.0),
    Rollout("<think>a</think><think>b</think>5 it is", 1.0),
    Rollout("<think>never closed, so there is no end of it at all, is there?", 0.0, truncated=True),
)


def _with_rewards(change: Callable[[float], float]) -> tuple[Rollout, ...]:
    """Change the rewards of `MIXED`, which are 1 for successes and 0 for failures."""
    return tuple(replace(rollout, reward=change(rollout.reward)) for rollout in MIXED)


def generation(groups: tuple[tuple[Rollout, ...], ...], first: int = 0) -> Generation:
    """Make a generation of some groups, each of another sum."""
    return Generation(SUMS[first : first + len(groups)], tuple(r for g in groups for r in g))


def _distinct(generation: Generation, number: int) -> Generation:
    """Number the completions of a generation, so that each row can be told apart."""
    rollouts = (replace(r, completion=f"{r.completion} ({number})") for r in generation.rollouts)
    return replace(generation, rollouts=tuple(rollouts))


def times(generation: Generation, count: int) -> tuple[Generation, ...]:
    """Repeat a generation with other completions each time."""
    return tuple(_distinct(generation, number) for number in range(count))


_ONE_GROUP = generation((MIXED,))
TWO_GROUPS = generation((MIXED, OTHERS))

GENERATIONS: Mapping[str, tuple[Generation, ...]] = {
    "one group": (_ONE_GROUP,),
    "one group, twice": times(_ONE_GROUP, 2),
    "one group, three times": times(_ONE_GROUP, 3),
    "two groups": (TWO_GROUPS,),
    "two groups, twice": times(TWO_GROUPS, 2),
    "second group failed": (generation((MIXED, _FAILED)),),
    "all failed": (generation((_FAILED,), 2),),
    "failed, then mixed": (Generation(SUMS[:2], _FAILED[:2] + MIXED[:2]),),
    "conversations": (Generation(_CONVERSATIONS, MIXED + OTHERS),),
    "conversations with feedback": (Generation(_CONVERSATIONS, sum(_WITH_FEEDBACK, ())),),
    "ends with a tool": (Generation((_ENDS_WITH_TOOL,), MIXED),),
    "feedback of groups": (generation(_SAME_FEEDBACK),),
    "thinking": (generation((_THINKING,)),),
    "special tokens": (generation((_SPACED,)),),
    "long question": (Generation((_asked(_LONG_QUESTION),), MIXED),),
    "poisoned prompt": (Generation((SUMS[0], _asked("What is ~ + 7?")), MIXED + _FAILED),),
    "partial rewards": (generation((_with_rewards(lambda reward: reward or 0.3),)),),
    "rewards of 0.7": (generation((_with_rewards(lambda reward: 0.7 * reward),)),),
    "rewards of NaN": (generation((_with_rewards(lambda reward: reward or math.nan),)),),
}
"""What scenarios learn from, by the names of `catalogue.toml`.

Failures that are worth 0.3 would be successes, were the weights of two reward functions forgotten.
"""
