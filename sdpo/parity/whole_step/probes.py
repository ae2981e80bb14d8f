"""Causal probes: change one input alone, and see what moves in a trainer and what does not.

What must matter has to move the named values; what must not matter has to leave them bit-equal.
So a part that is computed but has no effect shows, and an effect that nobody declared. How far a
value moves, and where to, is compared with the reference in the scenarios.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.adapters.base import CandidateError, NotCoveredError, same_bits
from sdpo.parity.adapters.trainers.run import quiet
from sdpo.parity.compare import DIVERGENT, ERROR, MATCH, Comparison
from sdpo.parity.verdict import CaseResult
from sdpo.parity.whole_step.record import TrainerRun, Update
from sdpo.parity.whole_step.scenario import Scenario
from sdpo.parity.whole_step.scenarios import NO_LUCK, SCENARIOS

Change = Callable[[Scenario], Scenario]

BASES = {scenario.id: scenario for scenario in SCENARIOS}
OF_FORWARD = ("student_logits", "teacher_logits")


@dataclass(frozen=True)
class Probe:
    """One input that is changed, and what that must do.

    `moves` and `stays` name values of an update: stages, `student_logits`, `teacher_logits`,
    `parameters`; those of the second update end in `@1`. A failure is charged to `stage`.
    """

    id: str
    question: str
    base: str
    change: Change
    stage: str
    moves: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()


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
)


def all_probes() -> list[Scenario]:
    """The changed scenarios of all probes."""
    return [probe.change(BASES[probe.base]) for probe in PROBES]


def run_probes(candidate: Any, runs: dict[str, TrainerRun]) -> list[CaseResult]:
    """All probes on a trainer; a base that is not among the `runs` is run once and added."""
    return [run_probe(candidate, probe, runs) for probe in PROBES]


def run_probe(candidate: Any, probe: Probe, runs: dict[str, TrainerRun]) -> CaseResult:
    """One probe: the base and the changed scenario, and what differs between them."""
    base = BASES[probe.base]
    result = CaseResult(probe.id, "probe", (*base.tags, "probe"))
    try:
        if probe.base not in runs:
            runs[probe.base] = train(candidate, base)
        changed = train(candidate, probe.change(base))
    except NotCoveredError as error:
        result.note = f"not covered: {probe.question} {error}"
        return result
    except CandidateError as error:
        result.comparisons.append(Comparison(error.stage, ERROR, probe.id, note=str(error)))
        return result
    result.comparisons.extend(judged(probe, runs[probe.base], changed))
    return result


def train(candidate: Any, scenario: Scenario) -> TrainerRun:
    """One run of a trainer.

    Raises:
        NotCoveredError: the trainer cannot express the scenario.
        CandidateError: the trainer failed.
    """
    torch.manual_seed(0)
    with quiet(), TemporaryDirectory(prefix="sdpo-probe-") as folder:
        return candidate.run(scenario, Path(folder))


def judged(probe: Probe, before: TrainerRun, after: TrainerRun) -> Iterator[Comparison]:
    """One comparison per probe: whether everything moved and stayed as it must."""
    wrong, compared = [], 0
    for names, must_move in ((probe.moves, True), (probe.stays, False)):
        for name in names:
            ours, theirs = value_of(before, name), value_of(after, name)
            if ours is None or theirs is None:
                continue
            compared += 1
            if equal(ours, theirs) == must_move:
                wrong.append(f"{name} {'does not move' if must_move else 'moves'}")
    if not compared:
        return
    if wrong:
        note = f"{probe.question} {', '.join(wrong)}"
        worst = {"value": probe.question, "actual": ", ".join(wrong), "expected": "the opposite"}
        yield Comparison(
            probe.stage, DIVERGENT, probe.id, compared, worst=worst, note=note, effect="value"
        )
    else:
        yield Comparison(probe.stage, MATCH, probe.id, compared)


def value_of(run: TrainerRun, name: str) -> Any:
    """A named value of an update, None if the trainer does not show it."""
    name, _, number = name.partition("@")
    update = run.updates[int(number or 0)]
    if name in update.prompt:
        return update.prompt[name]
    return of_weights(update, name) if name in WEIGHTS else of_micro_batches(update, name)


WEIGHTS = ("accumulate", "parameters", "teacher_update")


def of_weights(update: Update, name: str) -> Any:
    """The first gradient, the last weights, or the teacher of an update."""
    if name == "accumulate":
        return update.steps[0].gradient
    return update.steps[-1].parameters if name == "parameters" else update.teacher or None


def of_micro_batches(update: Update, name: str) -> list[Tensor] | None:
    """A value of all micro-batches of an update, at the tokens of the responses."""
    found = []
    for step in update.steps:
        for micro_batch in step.micro_batches:
            if name.endswith("_logits"):
                mask = micro_batch.inputs["response_mask"] != 0
                value = micro_batch.logits.get(name.removesuffix("_logits"))
                value = None if value is None else value[mask]
            else:
                value = micro_batch.values.get(name)
            if value is None:
                return None
            found.append(value)
    return found


def equal(before: Any, after: Any) -> bool:
    """Whether two values are the same to the bit."""
    if isinstance(before, dict) and before and isinstance(next(iter(before.values())), Tensor):
        return before.keys() == after.keys() and all(
            same_bits(before[key], after[key]) for key in before
        )
    if isinstance(before, list) and before and isinstance(before[0], Tensor):
        return len(before) == len(after) and all(map(same_bits, before, after))
    return before == after
