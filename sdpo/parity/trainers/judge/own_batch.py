"""Logits of a trainer beside those of the reference on inputs that the reference laid out itself.

A forward pass repeated on the trainer's own tensors tells other weights from the right ones, and
nothing of the tensors: padding before a response, or other positions, would go into both. Here the
same model is asked with the reference's tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_measured
from sdpo.parity.trainers.judge.prompt_stages import Shown, expectations, teacher_tensors
from sdpo.parity.trainers.judge.reference_run import whole_batch
from sdpo.parity.trainers.judge.weight_stages import (
    MODEL_INPUTS,
    Twins,
    compare_forward,
    logits_of,
)
from sdpo.parity.trainers.recording.token_layout import widened
from sdpo.parity.trainers.scenarios.scenario import Generation, Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, Tensors

STARTS = {"student": "", "teacher": "teacher_"}


def asked_batch(
    scenario: Scenario, generation: Generation, shown: Shown, tokenizer: Any
) -> tuple[Tensors, dict[str, Any]]:
    """The reference's inputs of a generation, the teacher's of the prompts that a trainer shows.

    Of a trainer that shows no prompts: of those that follow from what it shows. Beside them the
    trace of the reference's own prompts.
    """
    batch, natural = whole_batch(scenario, generation, tokenizer)
    found = expectations(scenario, generation, shown, natural, batch, tokenizer)
    spoken = list(shown.get("teacher_prompt", found["teacher_prompt"]))
    return batch | teacher_tensors(spoken, scenario, batch, tokenizer), natural


def teacher_tokens_apart(found: Sequence[Comparison]) -> str:
    """The stage `teacher_tokens` if it diverges in some comparisons, else nothing."""
    apart = [c.stage for c in found if c.status == Status.DIVERGENT and c.stage == "teacher_tokens"]
    return apart[0] if apart else ""


def compare_answers(
    scenario: Scenario,
    side: str,
    twins: Twins,
    micro_batch: MicroBatch,
    mask: Tensor,
    batch: Mapping[str, Tensor],
    inherits: str = "",
) -> list[Comparison]:
    """A side's logits beside those on the trainer's inputs and on the reference's own.

    Args:
        scenario: the settings.
        side: `student` or `teacher`.
        twins: the reference model with the side's weights.
        micro_batch: what the trainer's models were given and gave.
        mask: `(B, T)`, the tokens that count.
        batch: the reference's inputs of all rows.
        inherits: the stage by which the trainer's tokens are known to be others, if they are.

    Returns:
        The second one only if weights and mode are right and the inputs are not the same.
    """
    found = compare_forward(scenario, side, twins, micro_batch, mask)
    own = _own_micro_batch(side, micro_batch.rows, batch)
    if found.status == Status.DIVERGENT or _same_inputs(side, micro_batch, own):
        return [found]
    width = micro_batch.inputs["responses"].size(1)
    counts = mask != 0
    with torch.no_grad():
        low = getattr(torch, scenario.dtype)
        expected = logits_of(twins.single, own, side, low)[:, :width].float()[counts]
        truth = logits_of(twins.double, own, side, torch.float32)[:, :width][counts]
    actual = micro_batch.logits[side].float()[counts]
    compared = compare_measured("log_probs", scenario.id, expected, truth, actual)
    if compared.status == Status.DIVERGENT:
        note = f"{side}'s answer beside that to the reference's own tokens: {compared.note}"
        compared = replace(compared, note=note, inherits=inherits)
    return [found, compared]


def _own_micro_batch(side: str, rows: Sequence[int], batch: Mapping[str, Tensor]) -> MicroBatch:
    """Some rows of the reference's batch, as one side's inputs."""
    names = [STARTS[side] + name for name in MODEL_INPUTS] + ["responses"]
    return MicroBatch(list(rows), {name: batch[name][list(rows)] for name in names})


def _same_inputs(side: str, ours: MicroBatch, theirs: MicroBatch) -> bool:
    """Whether both hold the same tokens and positions at the same places before the end.

    Padding in front of all rows may be of any width, and so may that behind all responses.
    """
    names = [STARTS[side] + name for name in MODEL_INPUTS]
    if not all(name in ours.inputs for name in names):
        return False
    sides = []
    behind = max(m.inputs["responses"].size(1) for m in (ours, theirs))
    for micro_batch in (ours, theirs):
        missing = behind - micro_batch.inputs["responses"].size(1)
        values = [micro_batch.inputs[name].long() for name in names]
        sides.append([torch.nn.functional.pad(value, (0, missing)) for value in values])
    length = max(values[0].size(1) for values in sides)
    (ids, mask, places), (own_ids, own_mask, own_places) = (
        widened(dict(zip(MODEL_INPUTS, values, strict=True)), length).values() for values in sides
    )
    return (
        torch.equal(mask, own_mask)
        and torch.equal(ids * mask, own_ids * mask)
        and torch.equal(places * mask, own_places * mask)
    )
