"""The causal probes: which input is changed alone, and what that must do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.parity.trainers.scenarios.fragments import NO_LUCK
from sdpo.parity.trainers.scenarios.scenario import Scenario

Change = Callable[[Scenario], Scenario]

BASES = {scenario.id: scenario for scenario in SCENARIOS}
OF_FORWARD = ("student_logits", "teacher_logits")


@dataclass(frozen=True)
class Probe:
    """One input that is changed, and what that must do.

    `moves` and `stays` name values of an update: stages, `student_logits`, `teacher_logits`,
    `parameters`; those of the second update end in `@1`. A failure is charged to `stage`. With
    `directed` the loss must also move to the side to which the reference's moves, and about as far.
    """

    id: str
    question: str
    base: str
    change: Change
    stage: str
    moves: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    directed: bool = False


def setting(**changes: Any) -> Change:
    """Other settings of SDPO."""
    return lambda s: replace(s, self_distillation={**s.self_distillation, **changes})


def rewards(*values: float) -> Change:
    """Other rewards of the first generation's rollouts."""

    def changed(scenario: Scenario) -> Scenario:
        first, *rest = scenario.generations
        rollouts = zip(first.rollouts, values, strict=True)
        new = tuple(replace(rollout, reward=value) for rollout, value in rollouts)
        return replace(scenario, generations=(replace(first, rollouts=new), *rest))

    return changed


def rollout(row: int, **changes: Any) -> Change:
    """Another rollout in one row of the first generation."""

    def changed(scenario: Scenario) -> Scenario:
        first, *rest = scenario.generations
        rollouts = list(first.rollouts)
        rollouts[row] = replace(rollouts[row], **changes)
        generation = replace(first, rollouts=tuple(rollouts))
        return replace(scenario, generations=(generation, *rest))

    return changed


def nudged(name: str) -> Change:
    """One value of the trainer moved alone."""
    return lambda s: replace(s, nudge=name)


def same_feedback(scenario: Scenario) -> Scenario:
    """The scenario with the first group's feedback replaced, for trainers with one per prompt."""
    first, *rest = scenario.generations
    size = first.group_size
    rollouts = [
        replace(entry, feedback="try 5") if row < size else entry
        for row, entry in enumerate(first.rollouts)
    ]
    return replace(scenario, generations=(replace(first, rollouts=tuple(rollouts)), *rest))


PROBES = (
    Probe(
        "C01",
        "does the temperature reach the loss?",
        "T01",
        lambda s: replace(s, temperature=0.7),
        "log_probs",
        moves=("aggregate", "accumulate"),
        stays=(*OF_FORWARD, "teacher_tokens", "distillation_mask"),
    ),
    Probe(
        "C02",
        "does the demonstration reach the teacher?",
        "T01",
        rewards(0.0, 0.0, 1.0, 1.0),
        "teacher_tokens",
        moves=("teacher_tokens", "teacher_logits", "aggregate", "accumulate"),
        stays=("student_logits",),
    ),
    Probe(
        "C03",
        "does feedback reach the teacher?",
        "T21",
        same_feedback,
        "teacher_tokens",
        moves=("teacher_tokens", "teacher_logits", "aggregate"),
        stays=("student_logits",),
    ),
    Probe(
        "C04",
        "do rows without a success lose their signal?",
        "T01",
        setting(success_reward_threshold=2.0),
        "distillation_mask",
        moves=("distillation_mask", "accumulate", "parameters"),
        stays=("student_logits",),
    ),
    Probe(
        "C05",
        "does the rate move the teacher, and nothing else in the first update?",
        "T01",
        setting(teacher_update_rate=0.2),
        "teacher_update",
        moves=("teacher_update",),
        stays=(*OF_FORWARD, "aggregate", "accumulate", "parameters"),
    ),
    Probe(
        "C06",
        "does the averaged teacher answer in the second update?",
        "T07",
        setting(teacher_update_rate=0.5),
        "log_probs",
        moves=("teacher_logits@1", "aggregate@1", "accumulate@1"),
        stays=("student_logits@1",),
    ),
    Probe(
        "C07",
        "does α reach the divergence?",
        "T01",
        setting(alpha=0.25),
        "divergence",
        moves=("aggregate", "accumulate"),
        stays=OF_FORWARD,
    ),
    Probe(
        "C08",
        "does K reach the support?",
        "T01",
        setting(distillation_topk=4),
        "support",
        moves=("aggregate", "accumulate"),
        stays=OF_FORWARD,
    ),
    Probe(
        "C09",
        "does the tail reach the divergence?",
        "T01",
        setting(distillation_add_tail=False),
        "tail",
        moves=("aggregate", "accumulate"),
        stays=OF_FORWARD,
    ),
    Probe(
        "C10",
        "does the cap of the ratio act off-policy?",
        "T05",
        setting(is_clip=0.9),
        "importance",
        moves=("aggregate", "accumulate"),
        stays=("teacher_tokens", "distillation_mask"),
    ),
    Probe(
        "C11",
        "does the size of a reward above the threshold matter? It must not",
        "T01",
        rewards(0.9, 0.1, 0.8, 0.3),
        "demonstration",
        stays=("teacher_tokens", "distillation_mask", "aggregate", "accumulate", "parameters"),
    ),
    Probe(
        "C12",
        "does the answer of a row without signal matter to the loss? It must not",
        "T10",
        rollout(5, completion=NO_LUCK),
        "distillation_mask",
        stays=("distillation_mask", "aggregate"),
    ),
    Probe(
        "C13",
        "does a higher limit on prompts that fit matter? It must not",
        "T01",
        setting(max_reprompt_len=1024),
        "teacher_tokens",
        stays=("teacher_tokens", "teacher_logits", "aggregate", "accumulate", "parameters"),
    ),
    Probe(
        "C14",
        "do the teacher's weights reach the teacher's answer, and nothing else before the loss?",
        "T01",
        nudged("teacher"),
        "log_probs",
        moves=("teacher_logits", "aggregate", "accumulate"),
        stays=("student_logits", "teacher_tokens", "distillation_mask"),
        directed=True,
    ),
    Probe(
        "C15",
        "do the student's weights reach the student's answer, and not the teacher's?",
        "T01",
        nudged("student"),
        "log_probs",
        moves=("student_logits", "aggregate", "accumulate"),
        stays=("teacher_logits", "teacher_tokens", "distillation_mask"),
        directed=True,
    ),
    Probe(
        "C16",
        "do old log-probs reach the ratio?",
        "T06",
        nudged("old_log_probs"),
        "importance",
        moves=("aggregate", "accumulate"),
        stays=("teacher_tokens", "distillation_mask"),
        directed=True,
    ),
    Probe(
        "C17",
        "does a row without teacher signal leave the loss?",
        "T01",
        nudged("distillation_mask"),
        "distillation_mask",
        moves=("aggregate", "accumulate"),
        stays=("student_logits",),
        directed=True,
    ),
    Probe(
        "C18",
        "does the limit on teacher prompts cut them?",
        "T01",
        setting(max_reprompt_len=40),
        "teacher_tokens",
        moves=("teacher_tokens", "teacher_logits", "aggregate"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C19",
        "does the side of the cut matter?",
        "T20",
        setting(max_reprompt_len=96, reprompt_truncation="left"),
        "teacher_tokens",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C20",
        "does the template of the teacher's prompt reach it?",
        "T01",
        setting(reprompt_template="{prompt}{solution}{feedback}\n\nTry again.\n"),
        "teacher_prompt",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C21",
        "does the template of the demonstration reach the teacher's prompt?",
        "T01",
        setting(solution_template="\nSomebody wrote: {successful_previous_attempt}\n"),
        "teacher_prompt",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C22",
        "does the template of feedback reach the teacher's prompt?",
        "T21",
        setting(
            environment_feedback_only_without_solution=False,
            feedback_template="\nYou were told: {feedback_raw}\n",
        ),
        "teacher_prompt",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C23",
        "is feedback left out if the settings say so?",
        "T34",
        setting(include_environment_feedback=False),
        "feedback",
        moves=("teacher_tokens", "distillation_mask"),
        stays=("student_logits",),
    ),
    Probe(
        "C24",
        "does feedback beside a demonstration wait for the setting?",
        "T34",
        setting(environment_feedback_only_without_solution=False),
        "feedback",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C25",
        "may a row's own success be its demonstration?",
        "T01",
        setting(dont_reprompt_on_self_success=False),
        "demonstration",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits",),
    ),
    Probe(
        "C26",
        "does thinking leave the demonstration?",
        "T09",
        setting(remove_thinking_from_demonstration=False),
        "demonstration",
        moves=("teacher_tokens", "teacher_logits"),
        stays=("student_logits", "distillation_mask"),
    ),
    Probe(
        "C27",
        "does full_logit_distillation=False change the loss?",
        "T14",
        setting(full_logit_distillation=False, alpha=1.0),
        "divergence",
        moves=("aggregate", "accumulate"),
        stays=OF_FORWARD,
    ),
    Probe(
        "C28",
        "does the way of averaging matter?",
        "T01",
        lambda s: replace(s, loss_agg_mode="seq-mean-token-mean"),
        "aggregate",
        moves=("aggregate", "accumulate"),
        stays=OF_FORWARD,
    ),
    Probe(
        "C29",
        "does clipping act on the step, and not on the gradient before it?",
        "T01",
        lambda s: replace(s, grad_clip=0.01),
        "optimizer",
        moves=("parameters", "teacher_update"),
        stays=(*OF_FORWARD, "aggregate", "accumulate"),
    ),
    Probe(
        "C30",
        "does the teacher's rate zero freeze it?",
        "T07",
        setting(teacher_update_rate=0.0),
        "teacher_update",
        moves=("teacher_update",),
        stays=(*OF_FORWARD, "aggregate", "accumulate", "parameters"),
    ),
    Probe(
        "C34",
        "do the weights of another sampler's rollouts reach the loss?",
        "T01",
        nudged("rollout_is_weights"),
        "importance",
        moves=("aggregate", "accumulate"),
        stays=(*OF_FORWARD, "teacher_tokens", "distillation_mask"),
    ),
    Probe(
        "C35",
        "do tokens of tools leave the loss, and stay in the context?",
        "T01",
        nudged("response_mask"),
        "aggregate",
        moves=("aggregate", "accumulate"),
        stays=(*OF_FORWARD, "teacher_tokens", "distillation_mask"),
    ),
)
