"""Prompt stages of a trainer: each against the reference at the trainer's own stage before.

So a stage is charged only with what it introduced; what it inherited shows at the stage before.
Teacher prompts of rows without teacher signal do not enter the loss and are not compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import Status
from sdpo.parity.trainers.recording.token_layout import padding_inside
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.reference import teacher_prompt as reference

Shown = Mapping[str, Sequence[Any]]
PADDING = "padding_inside"


def compare_prompts(
    scenario: Scenario,
    generation: Generation,
    shown: Shown,
    natural: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> list[Comparison]:
    """One comparison for each prompt stage that the trainer shows.

    Args:
        scenario: the script.
        generation: the rollouts.
        shown: the trainer's values by stage, one per row.
        natural: the reference's own values by stage.
        batch: the reference's responses and masks.
        tokenizer: of the model; its sides are set as the reference sets them.
    """
    rows = range(len(generation.rollouts))
    expected = expectations(scenario, generation, shown, natural, batch, tokenizer)
    signal = [bool(expected["distillation_mask"][row]) for row in rows]
    found = []
    for stage in PROMPT_STAGES:
        if stage not in shown:
            continue
        if len(shown[stage]) != len(rows):
            note = f"{len(shown[stage])} rows, expected {len(rows)}"
            found.append(Comparison(stage, Status.ERROR, scenario.id, note=note))
            continue
        about_teacher = stage in ("teacher_prompt", "teacher_tokens")
        judged = [row for row in rows if signal[row] or not about_teacher]
        found.append(_first_difference(stage, scenario.id, shown[stage], expected[stage], judged))
    return found


def expectations(
    scenario: Scenario,
    generation: Generation,
    shown: Shown,
    natural: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    tokenizer: Any,
) -> dict[str, list[Any]]:
    """The reference's value of each stage, from the trainer's values of the stages before."""
    settings, rows = scenario.self_distillation, range(len(generation.rollouts))
    feedback = list(shown.get("feedback", natural["feedback"]))
    chosen = list(shown.get("demonstration", natural["demonstration"]))
    demonstrations = [_as_demonstration(entry) for entry in chosen]
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
    spoken = list(shown.get("teacher_prompt", messages))
    return {
        "feedback": list(natural["feedback"]),
        "demonstration": [
            _as_shown(d, c) for d, c in zip(natural["demonstration"], chosen, strict=False)
        ],
        "teacher_prompt": messages,
        "teacher_tokens": _encoded(spoken, scenario, batch, tokenizer),
        "distillation_mask": [float(demonstrations[row] is not None or used[row]) for row in rows],
    }


def _as_demonstration(entry: Any) -> reference.Demonstration | None:
    """A trainer's demonstration, of which only the text may be known."""
    if entry is None:
        return None
    return (
        reference.Demonstration(-1, entry)
        if isinstance(entry, str)
        else (reference.Demonstration(*entry))
    )


def _as_shown(expected: Any, shown: Any) -> Any:
    """The reference's demonstration in the form in which the trainer shows its own."""
    if expected is None:
        return None
    return expected.text if isinstance(shown, str) else tuple(expected)


def _encoded(
    messages: Sequence[Any], scenario: Scenario, batch: Mapping[str, Tensor], tokenizer: Any
) -> list[dict[str, list[int]]]:
    """Ids and relative positions of the tokens that the teacher attends to, per row."""
    tensors = teacher_tensors(messages, scenario, batch, tokenizer)
    return attended(tensors["teacher_input_ids"], tensors["teacher_attention_mask"])


def teacher_tensors(
    messages: Sequence[Any], scenario: Scenario, batch: Mapping[str, Tensor], tokenizer: Any
) -> dict[str, Tensor]:
    """The reference's teacher inputs for some prompts, `(B, L)` int64, by name."""
    reference.set_tokenizer_sides(tokenizer, scenario.self_distillation)
    prompt = reference.encode_prompts(messages, tokenizer, scenario.self_distillation, None)
    return dict(reference.append_responses(*prompt, batch["responses"], batch["response_mask"]))


def attended(
    ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> list[dict[str, list[int]]]:
    """Per row the attended ids, their positions relative to the first, and padding among them.

    Without `position_ids` `(B, L)` the positions count the attended tokens.
    """
    if position_ids is None:
        position_ids = torch.clamp(torch.cumsum(attention_mask, dim=1) - 1, min=0)
    found = []
    for row in range(len(ids)):
        kept = attention_mask[row] != 0
        positions = position_ids[row][kept]
        relative = (positions - positions[:1]).tolist()
        found.append(
            {
                "input_ids": ids[row][kept].tolist(),
                "position_ids": relative,
                PADDING: padding_inside(kept),
            }
        )
    return found


def _first_difference(
    stage: str, case: str, actual: Sequence[Any], expected: Sequence[Any], rows: Sequence[int]
) -> Comparison:
    """Compare the judged rows exactly and name the first that differs."""
    for row in rows:
        ours, theirs = comparable(actual[row], expected[row])
        if ours != theirs:
            return compare_exact(stage, case, f"row {row}", *_where_they_part(ours, theirs))
    return compare_exact(stage, case, stage, True, True)


def comparable(actual: Any, expected: Any) -> tuple[Any, Any]:
    """Both plain; padding among tokens is left out where an adapter does not show it."""
    ours, theirs = plain(actual), plain(expected)
    if isinstance(ours, dict) and isinstance(theirs, dict) and PADDING not in ours:
        theirs.pop(PADDING, None)
    return ours, theirs


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, so that equal values compare equal."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()} | relative(value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def relative(tokens: Mapping[str, Any]) -> dict[str, list[int]]:
    """Positions from the first token on: rotary models see differences only."""
    positions = tokens.get("position_ids")
    if not positions:
        return {}
    return {"position_ids": [int(position) - int(positions[0]) for position in positions]}


def _where_they_part(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Two different values, of mappings only the entries that differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in theirs if ours.get(key) != theirs[key]]
        return {k: ours.get(k) for k in keys}, {k: theirs[k] for k in keys}
    return ours, theirs
