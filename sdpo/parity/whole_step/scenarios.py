"""The scenarios that every trainer is audited with: one plain one, the others with one change.

A deviation that shows in a single scenario is so tied to the setting that brings it out.
"""

import math
from dataclasses import replace
from typing import Any

from sdpo.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from sdpo.parity.whole_step.scenario import Conversation, Generation, Rollout, Scenario

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

PLAIN = Scenario(
    id="T01",
    description="one group, one micro-batch, one update by SGD",
    generations=(ONE_GROUP,),
    self_distillation=SETTINGS,
    micro_batch_size=4,
)


def plain(id_: str, description: str, tags: tuple[str, ...] = (), **changes: Any) -> Scenario:
    """The plain scenario with one change."""
    return replace(PLAIN, id=id_, description=description, tags=tags, **changes)


def settings(**changes: Any) -> dict[str, Any]:
    """The settings of the plain scenario with some changed."""
    return SETTINGS | changes


SCENARIOS = (
    PLAIN,
    plain("T02", "temperature 0.7", ("temperature",), temperature=0.7),
    plain(
        "T03",
        "four micro-batches of two rows accumulated",
        ("accumulation",),
        generations=(TWO_GROUPS,),
        micro_batch_size=2,
        accumulation=4,
        steps_per_generation=4,
    ),
    plain(
        "T04",
        "two micro-batches of four rows accumulated",
        ("accumulation",),
        generations=(TWO_GROUPS,),
        accumulation=2,
        steps_per_generation=2,
    ),
    plain(
        "T05",
        "off-policy: two optimizer steps of two micro-batches each from one generation",
        ("off_policy",),
        generations=(TWO_GROUPS,),
        micro_batch_size=2,
        accumulation=2,
        steps_per_generation=4,
        optimizer=ADAMW | {"lr": 0.05},
    ),
    plain(
        "T06",
        "off-policy: two passes over one generation, temperature 0.7",
        ("off_policy", "temperature"),
        num_iterations=2,
        temperature=0.7,
        optimizer=ADAMW | {"lr": 0.05},
    ),
    plain(
        "T07",
        "three updates by AdamW",
        ("consecutive",),
        generations=tuple(distinct(ONE_GROUP, n) for n in range(3)),
        optimizer=ADAMW,
    ),
    plain(
        "T08",
        "system and multi-turn prompts, feedback of each rollout, rewards between 0 and 1",
        ("conversation", "feedback"),
        generations=(Generation(CONVERSATIONS, WITH_FEEDBACK[0] + WITH_FEEDBACK[1]),),
        micro_batch_size=8,
    ),
    plain(
        "T09",
        "thinking spans, a truncated answer",
        ("thinking", "truncated"),
        generations=(generation((THINKING,)),),
    ),
    plain(
        "T10",
        "half of the rows without teacher signal",
        ("masked_rows",),
        generations=(ONE_SILENT,),
        micro_batch_size=8,
    ),
    plain(
        "T11",
        "no row with teacher signal, AdamW",
        ("masked_rows", "all_masked"),
        generations=(generation((FAILED,), 2),),
        optimizer=ADAMW,
    ),
    plain(
        "T12",
        "rows without signal spread over two micro-batches of two rows",
        ("masked_rows", "accumulation"),
        generations=(Generation(SUMS[:2], FAILED[:2] + MIXED[:2]),),
        micro_batch_size=2,
        accumulation=2,
        steps_per_generation=2,
    ),
    plain(
        "T13",
        "KL(teacher‖student), renormalised support",
        ("alpha",),
        self_distillation=settings(alpha=0.0, distillation_add_tail=False),
    ),
    plain(
        "T14",
        "KL(student‖teacher)",
        ("alpha",),
        self_distillation=settings(alpha=1.0),
    ),
    plain(
        "T15",
        "full vocabulary",
        ("full_vocabulary",),
        self_distillation=settings(distillation_topk=None),
    ),
    plain(
        "T16",
        "sampled tokens",
        ("sampled",),
        self_distillation=settings(full_logit_distillation=False, alpha=1.0),
    ),
    plain(
        "T17",
        "LoRA adapters, three updates by AdamW",
        ("lora", "consecutive"),
        generations=tuple(distinct(ONE_GROUP, n) for n in range(3)),
        optimizer=ADAMW,
        lora=True,
    ),
    plain("T18", "bfloat16 autocast", ("bfloat16",), dtype="bfloat16"),
    plain(
        "T19",
        "a row without signal whose prompt has a NaN embedding",
        ("masked_rows", "non_finite"),
        generations=(Generation((SUMS[0], asked("What is ~ + 7?")), MIXED + FAILED),),
        micro_batch_size=8,
        poisoned_token="~",
    ),
    plain(
        "T20",
        "teacher prompts longer than the limit",
        ("truncation",),
        generations=(Generation((asked(LONG_QUESTION),), MIXED),),
        self_distillation=settings(max_reprompt_len=96),
    ),
    plain(
        "T21",
        "the same feedback for a group, beside demonstrations",
        ("feedback", "shared_feedback"),
        generations=(generation(SAME_FEEDBACK),),
        micro_batch_size=8,
        self_distillation=settings(environment_feedback_only_without_solution=False),
    ),
    plain(
        "T22",
        "own success as demonstration, thinking kept, threshold 1",
        ("thinking",),
        generations=(generation((THINKING,)),),
        self_distillation=settings(
            dont_reprompt_on_self_success=False,
            remove_thinking_from_demonstration=False,
            success_reward_threshold=1.0,
        ),
    ),
    plain("T23", "gradient clipped to 0.01", ("clipping",), grad_clip=0.01),
    plain(
        "T24",
        "mean over rows of their means",
        ("aggregation",),
        generations=(ONE_SILENT,),
        micro_batch_size=8,
        loss_agg_mode="seq-mean-token-mean",
    ),
    plain(
        "T25",
        "teacher of mixed logits",
        ("trust_region",),
        generations=tuple(distinct(ONE_GROUP, n) for n in range(2)),
        self_distillation=settings(teacher_regularization="trust-region", teacher_update_rate=0.3),
    ),
    plain(
        "T26",
        "a cap of the ratio below 1, on-policy",
        ("cap_below_one",),
        self_distillation=settings(is_clip=0.5),
    ),
    plain(
        "T27",
        "a reward equal to a threshold that float32 rounds up",
        ("threshold",),
        generations=(generation((tuple(replace(r, reward=0.7 * r.reward) for r in MIXED),)),),
        self_distillation=settings(success_reward_threshold=0.7),
    ),
    plain(
        "T28",
        "a conversation that ends with a tool's answer",
        ("conversation",),
        generations=(Generation((ENDS_WITH_TOOL,), MIXED),),
    ),
    plain(
        "T29",
        "bfloat16 autocast, off-policy: two optimizer steps from one generation",
        ("bfloat16", "off_policy"),
        generations=(TWO_GROUPS,),
        micro_batch_size=2,
        accumulation=2,
        steps_per_generation=4,
        optimizer=ADAMW | {"lr": 0.05},
        dtype="bfloat16",
    ),
    plain(
        "T30",
        "bfloat16 autocast, three updates by AdamW",
        ("bfloat16", "consecutive"),
        generations=tuple(distinct(ONE_GROUP, n) for n in range(3)),
        optimizer=ADAMW,
        dtype="bfloat16",
    ),
    plain(
        "T31",
        "two processes, a group's rollouts spread over both",
        ("processes",),
        micro_batch_size=2,
        processes=2,
    ),
    plain(
        "T32",
        "two processes with a group each, two micro-batches accumulated, two updates by AdamW",
        ("processes", "accumulation", "consecutive"),
        generations=tuple(distinct(TWO_GROUPS, n) for n in range(2)),
        micro_batch_size=2,
        accumulation=2,
        steps_per_generation=2,
        processes=2,
        optimizer=ADAMW,
    ),
    plain(
        "T43",
        "two processes with a group each, the second's without teacher signal",
        ("processes", "masked_rows"),
        generations=(ONE_SILENT,),
        processes=2,
    ),
    plain(
        "T44",
        "two processes with a group each, LoRA adapters",
        ("processes", "lora"),
        generations=(TWO_GROUPS,),
        processes=2,
        lora=True,
    ),
    plain(
        "T33",
        "system and multi-turn prompts",
        ("conversation",),
        generations=(Generation(CONVERSATIONS, MIXED + OTHERS),),
        micro_batch_size=8,
    ),
    plain(
        "T34",
        "the same feedback for a group, where there is no demonstration",
        ("feedback", "shared_feedback"),
        generations=(generation(SAME_FEEDBACK),),
        micro_batch_size=8,
    ),
    plain(
        "T35",
        "feedback that is left out by the settings",
        ("feedback", "shared_feedback"),
        generations=(generation(SAME_FEEDBACK),),
        micro_batch_size=8,
        self_distillation=settings(include_environment_feedback=False),
    ),
    plain(
        "T36",
        "teacher prompts longer than the limit, cut on the left",
        ("truncation",),
        generations=(Generation((asked(LONG_QUESTION),), MIXED),),
        self_distillation=settings(max_reprompt_len=96, reprompt_truncation="left"),
    ),
    plain(
        "T37",
        "answers with white space at the ends and special tokens inside",
        ("special_tokens",),
        generations=(generation((SPACED,)),),
    ),
    plain(
        "T38",
        "two reward functions with weights",
        ("reward_weights",),
        generations=(generation((PARTIAL,)),),
        reward_weights=(QUARTER, THREE_QUARTERS),
    ),
    plain(
        "T39",
        "a reward that is not a number, threshold 0",
        ("nan_reward",),
        generations=(generation((tuple(replace(r, reward=nan_for(r)) for r in MIXED),)),),
        self_distillation=settings(success_reward_threshold=0.0),
    ),
    plain("T40", "dropout of the attention", ("dropout",), dropout=0.3),
    plain(
        "T41",
        "LoRA adapters with dropout, two updates by AdamW",
        ("dropout", "lora"),
        generations=tuple(distinct(ONE_GROUP, n) for n in range(2)),
        optimizer=ADAMW,
        lora=True,
        dropout=0.3,
    ),
    plain("T42", "a student that has left its checkpoint", ("moved",), moved=True),
)
