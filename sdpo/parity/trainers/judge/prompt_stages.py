"""Prompt stages of a trainer, each compared with what the reference makes of the stage before.

The stage before is the trainer's own, so that a stage is charged only with what it introduces.
Teacher prompts of rows without teacher signal do not enter the loss and are not compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.judge.reference_run import reference_batch
from sdpo.parity.trainers.recording.token_layout import MODEL_INPUTS, Tokens, attended_tokens
from sdpo.parity.trainers.scenarios.scenario import Generation, Message, Scenario
from sdpo.parity.trainers.scenarios.training_record import Tensors
from sdpo.reference import teacher_prompt as reference

ShownPrompts = Mapping[str, Sequence[Any]]
"""A trainer's prompt stages by name, one value per row of the generation."""
PADDING = "padding_inside"


def compare_prompts(
    scenario: Scenario,
    generation: Generation,
    shown: ShownPrompts,
    natural: reference.PromptTrace,
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> list[Comparison]:
    """Compare each prompt stage that the trainer shows.

    Args:
        scenario: the script.
        generation: the rollouts.
        shown: the trainer's values by stage, one per row.
        natural: the reference's own values by stage.
        batch: the reference's responses and masks.
        tokenizer: of the model; its sides are set as the reference sets them.
    """
    rows = range(len(generation.rollouts))
    expected = expected_prompts(scenario, generation, shown, natural, batch, tokenizer)
    signal = [bool(expected["distillation_mask"][row]) for row in rows]
    comparisons = []
    for stage in PROMPT_STAGES:
        if stage not in shown:
            continue
        if len(shown[stage]) != len(rows):
            note = f"{len(shown[stage])} rows, expected {len(rows)}"
            comparisons.append(Comparison(stage, Status.ERROR, scenario.id, note=note))
            continue
        about_teacher = stage in ("teacher_prompt", "teacher_tokens")
        judged = [row for row in rows if signal[row] or not about_teacher]
        comparisons.append(
            _first_difference(stage, scenario.id, shown[stage], expected[stage], judged)
        )
    return comparisons


def expected_prompts(
    scenario: Scenario,
    generation: Generation,
    shown: ShownPrompts,
    natural: reference.PromptTrace,
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> dict[str, list[Any]]:
    """Compute the reference's value of each stage from the trainer's values of the stages before.

    Args:
        scenario: the script.
        generation: the rollouts.
        shown: the trainer's values by stage; for those that it lacks the reference's are taken.
        natural: the reference's own values by stage.
        batch: the reference's responses and masks.
        tokenizer: of the model; its sides are set as the reference sets them.
    """
    settings, rows = scenario.self_distillation, range(len(generation.rollouts))
    feedback = list(shown.get("feedback", natural["feedback"]))
    shown_demonstrations = list(shown.get("demonstration", natural["demonstration"]))
    demonstrations = [_as_demonstration(entry) for entry in shown_demonstrations]
    used = [reference.uses_feedback(feedback[row], demonstrations[row], settings) for row in rows]
    messages = [
        reference.build_messages(
            list(generation.conversation_of(row)),
            demonstrations[row],
            feedback[row] if used[row] else None,
            settings,
        )
        for row in rows
    ]
    asked = list(shown.get("teacher_prompt", messages))
    return {
        "feedback": list(natural["feedback"]),
        "demonstration": [
            _as_shown(*pair)
            for pair in zip(natural["demonstration"], shown_demonstrations, strict=False)
        ],
        "teacher_prompt": messages,
        "teacher_tokens": _encoded(asked, scenario, batch, tokenizer),
        "distillation_mask": [float(demonstrations[row] is not None or used[row]) for row in rows],
    }


def reference_inputs(
    scenario: Scenario, generation: Generation, shown: ShownPrompts, tokenizer: Any
) -> tuple[Tensors, reference.PromptTrace]:
    """Lay out a generation as the reference does, the teacher asked what the trainer's was asked.

    Of a trainer that shows no prompts the teacher is asked what follows from the stages that it
    shows.

    Returns:
        The inputs, and the trace of the reference's own prompts.
    """
    batch, natural = reference_batch(scenario, generation, tokenizer)
    expected = expected_prompts(scenario, generation, shown, natural, batch, tokenizer)
    asked = list(shown.get("teacher_prompt", expected["teacher_prompt"]))
    return batch | _teacher_tensors(asked, scenario, batch, tokenizer), natural


def _as_demonstration(entry: Any) -> reference.Demonstration | None:
    """Read a trainer's demonstration, of which only the text may be known."""
    if entry is None:
        return None
    if isinstance(entry, str):
        return reference.Demonstration(-1, entry)
    return reference.Demonstration(*entry)


def _as_shown(expected: Any, shown: Any) -> Any:
    """Give the reference's demonstration the form in which the trainer shows its own."""
    if expected is None:
        return None
    return expected.text if isinstance(shown, str) else tuple(expected)


def _encoded(
    messages: Sequence[Sequence[Message]],
    scenario: Scenario,
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> list[Tokens]:
    """Encode prompts, and read what the teacher attends to in each row."""
    tensors = _teacher_tensors(messages, scenario, batch, tokenizer)
    return attended_tokens(*(tensors[f"teacher_{name}"] for name in MODEL_INPUTS))


def _teacher_tensors(
    messages: Sequence[Sequence[Message]],
    scenario: Scenario,
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> Tensors:
    """Encode prompts and append the responses, `(B, L)` int64, as the reference does."""
    reference.set_tokenizer_sides(tokenizer, scenario.self_distillation)
    prompt = reference.encode_prompts(messages, tokenizer, scenario.self_distillation, None)
    return dict(reference.append_responses(*prompt, batch["responses"], batch["response_mask"]))


def _first_difference(
    stage: str, case: str, actual: Sequence[Any], expected: Sequence[Any], rows: Sequence[int]
) -> Comparison:
    """Compare the judged rows exactly and name the first that differs."""
    for row in rows:
        ours, theirs = comparable(actual[row], expected[row])
        if ours != theirs:
            return compare_exact(stage, case, f"row {row}", *_differing_entries(ours, theirs))
    return compare_exact(stage, case, stage, True, True)


def comparable(actual: Any, expected: Any) -> tuple[Any, Any]:
    """Make both plain; padding among tokens is left out where an adapter does not show it."""
    ours, theirs = plain(actual), plain(expected)
    if isinstance(ours, dict) and isinstance(theirs, dict) and PADDING not in ours:
        theirs.pop(PADDING, None)
    return ours, theirs


def plain(value: Any) -> Any:
    """Replace tuples by lists and mappings by dicts, so that equal values compare equal.

    Positions count from the first token on, as rotary models see differences only.
    """
    if isinstance(value, Mapping):
        entries = {key: plain(entry) for key, entry in value.items()}
        if positions := entries.get("position_ids"):
            entries["position_ids"] = [int(n) - int(positions[0]) for n in positions]
        return entries
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def _differing_entries(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Keep of two different mappings the entries that differ; other values stay whole."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in theirs if ours.get(key) != theirs[key]]
        return {k: ours.get(k) for k in keys}, {k: theirs[k] for k in keys}
    return ours, theirs
