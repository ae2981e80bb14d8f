"""What scenarios are made of: settings, conversations, rollouts and generations."""

import math
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

ADAMW = {"name": "AdamW", "lr": 1e-2, "weight_decay": 0.01}

LONG_QUESTION = "Add the numbers " + " and ".join(str(n) for n in range(3, 40)) + "."


def asked(question: str) -> Conversation:
    """A conversation of one question."""
    return ({"role": "user", "content": question},)


SUMS = tuple(asked(f"What is {a} + {b}?") for a, b in ((2, 3), (4, 1), (5, 7), (8, 6)))

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
FAILED = (
    Rollout("12 minus something", 0.0),
    Rollout("No idea at all, sorry.", 0.0),
    Rollout("57", 0.0),
    Rollout("Maybe 11 or 13, hard to say", 0.0),
)
QUARTER, THREE_QUARTERS = 0.25, 0.75
PARTIAL = tuple(replace(r, reward=0.3 if r.reward == 0.0 else 1.0) for r in MIXED)
"""Failures that are worth 0.3: a success, were the weights of two reward functions forgotten."""
SPACED = (
    Rollout("  The answer is 5. ", 1.0),
    Rollout("It is 4", 0.0),
    Rollout("5 <|im_start|>it is, I say\n", 1.0),
    Rollout("No number <|endoftext|> at all", 0.0),
)
"""White space at both ends, and special tokens inside."""
NO_LUCK = "No luck at all, sorry."
"""Has as many tokens as the second answer of `FAILED`."""

LAST = (
    Rollout("14 it is", 1.0),
    Rollout("86", 0.0),
    Rollout("8 + 6 = 14, the sum.", 1.0),
    Rollout("15 or so", 0.0),
)
GROUPS = (MIXED, OTHERS, FAILED, LAST)

CONVERSATIONS: tuple[Conversation, ...] = (
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
ENDS_WITH_TOOL: Conversation = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "Let me look."},
    {"role": "tool", "content": "adder: 5"},
)
WITH_FEEDBACK = (
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
SAME_FEEDBACK = tuple(
    tuple(replace(rollout, feedback=f"the sum is not {n}") for rollout in group)
    for n, group in enumerate((FAILED, OTHERS))
)
THINKING = (
    Rollout("So: <think>2 and 3\nis 5</think>  The answer is 5. ", 1.0),
    Rollout("It is 4", 0.0),
    Rollout("<think>a</think><think>b</think>5 it is", 1.0),
    Rollout("<think>never closed, so there is no end of it at all, is there?", 0.0, truncated=True),
)


def nan_for(rollout: Rollout) -> float:
    """NaN for a failure."""
    return rollout.reward or math.nan


def generation(groups: tuple[tuple[Rollout, ...], ...], first: int = 0) -> Generation:
    """A generation of some groups, each of another sum."""
    return Generation(SUMS[first : first + len(groups)], tuple(r for g in groups for r in g))


def distinct(generation: Generation, number: int) -> Generation:
    """The same generation with other completions, so that each row can be told apart."""
    rollouts = (replace(r, completion=f"{r.completion} ({number})") for r in generation.rollouts)
    return replace(generation, rollouts=tuple(rollouts))


ONE_GROUP = generation((MIXED,))
TWO_GROUPS = generation((MIXED, OTHERS))
ONE_SILENT = generation((MIXED, FAILED))
