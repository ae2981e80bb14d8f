"""Forward passes of a trainer beside those of the reference: tokens, logits, old log-probs.

The models' arithmetic is outside the oracle: a budget is a few times the distance between the
reference's float32 and its float64 run on the same inputs, relative to the tensor's scale.

A forward pass that is repeated on the trainer's own tensors tells wrong weights from right ones,
but nothing about the tensors: padding before a response, or other positions, would go into both. So
the same model is also asked with the tensors that the reference lays out itself.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.measured_budgets import compare_measured
from sdpo.parity.trainers.judge.prompt_stages import comparable
from sdpo.parity.trainers.recording.token_layout import MODEL_INPUTS, attended_tokens, widened
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, Tensors

_PREFIXES = {"student": "", "teacher": "teacher_"}
"""What stands before the names of a side's inputs."""


class OldLogProbs(NamedTuple):
    """The reference's old log-probs, `(B, T)`, in the scenario's precision and in float64."""

    value: Tensor
    truth: Tensor

    def of(self, rows: list[int], width: int) -> "OldLogProbs":
        """Take some rows, cut to a width."""
        return OldLogProbs(self.value[rows][:, :width], self.truth[rows][:, :width])


@dataclass
class TwoPrecisions:
    """One model in float32 and in float64."""

    single: nn.Module
    double: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> "TwoPrecisions":
        """Copy a model twice, in evaluation mode.

        Numerics: eager attention takes its softmax in float32 whatever the dtype, and masks with a
        number that float32 does not have; in float64 another implementation is used.
        """
        double = copy.deepcopy(model).double().eval()
        double.set_attn_implementation("sdpa")  # type: ignore[operator]
        return cls(copy.deepcopy(model).float().eval(), double)

    def load(self, weights: Tensors) -> None:
        """Take over weights by name, in both precisions; the others stay."""
        with torch.no_grad():
            for module in (self.single, self.double):
                for name, parameter in module.named_parameters():
                    if name in weights:
                        parameter.copy_(weights[name])


def logits_of(
    module: nn.Module, micro_batch: MicroBatch, side: str, autocast: torch.dtype
) -> Tensor:
    """Compute a module's logits of the response tokens on a micro-batch's inputs, `(B, T, V)`."""
    prefix = _PREFIXES[side]
    inputs = {
        name: micro_batch.inputs[prefix + name]
        for name in MODEL_INPUTS
        if prefix + name in micro_batch.inputs
    }
    width = micro_batch.inputs["responses"].size(1)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast == torch.bfloat16):
        return module(**inputs, use_cache=False).logits[:, -width - 1 : -1]


def compare_student_tokens(
    scenario: Scenario, micro_batch: MicroBatch, batch: Mapping[str, Tensor]
) -> list[Comparison]:
    """Compare the student's tokens, positions and response mask with the reference's."""
    rows, inputs = micro_batch.rows, micro_batch.inputs
    ids, attended = inputs["input_ids"], inputs["attention_mask"]
    counted = torch.clamp(torch.cumsum(attended, dim=1) - 1, min=0)
    ours = attended_tokens(ids, attended, inputs.get("position_ids", counted))
    theirs = attended_tokens(*(batch[name][rows] for name in MODEL_INPUTS))
    compared = []
    for row, pair in enumerate(zip(ours, theirs, strict=True)):
        actual, expected = comparable(*pair)
        if actual["input_ids"] and actual != expected:  # rows that are not asked show no tokens
            name = f"tokens of the student, row {rows[row]}"
            compared = [compare_exact("log_probs", scenario.id, name, actual, expected)]
            break
    mask, width = inputs["response_mask"].long(), batch["response_mask"].size(1)
    mask = torch.nn.functional.pad(mask, (0, width - mask.size(1)))
    masks = mask.tolist(), batch["response_mask"][rows].tolist()
    compared.append(compare_exact("distillation_mask", scenario.id, "response mask", *masks))
    return compared


def compare_old_log_probs(
    scenario: Scenario, expected: OldLogProbs, actual: Tensor, mask: Tensor
) -> Comparison:
    """Compare log-probs at the weights that generated, `(B, T)`, at the tokens that count."""
    compared = _compare(scenario, expected.value, expected.truth, actual, mask)
    return replace(compared, note=f"old log-probs: {compared.note}" if compared.note else "")


def compare_forward(
    scenario: Scenario, side: str, model: TwoPrecisions, micro_batch: MicroBatch, mask: Tensor
) -> Comparison:
    """Compare a side's logits with the reference model's on the same inputs.

    This sees dropout, another mode, other weights, and inputs that are not what the model used.

    Args:
        scenario: the settings.
        side: `student` or `teacher`.
        model: the reference model with the side's weights.
        micro_batch: what the trainer's models were given and gave.
        mask: `(B, T)`, the tokens that count.
    """
    low = getattr(torch, scenario.dtype)
    with torch.no_grad():
        expected = logits_of(model.single, micro_batch, side, low)
        truth = logits_of(model.double, micro_batch, side, torch.float32)
    compared = _compare(scenario, expected, truth, micro_batch.logits[side], mask)
    note = f"{side}'s forward pass: {compared.note}" if compared.note else ""
    return replace(compared, note=note)


def compare_side(
    scenario: Scenario,
    side: str,
    model: TwoPrecisions,
    micro_batch: MicroBatch,
    mask: Tensor,
    batch: Mapping[str, Tensor],
    inherits: str = "",
) -> list[Comparison]:
    """Compare a side's logits with those on the trainer's inputs, and on the reference's own.

    Args:
        scenario: the settings.
        side: `student` or `teacher`.
        model: the reference model with the side's weights.
        micro_batch: what the trainer's models were given and gave.
        mask: `(B, T)`, the tokens that count.
        batch: the reference's inputs of all rows.
        inherits: the stage by which the trainer's tokens are known to be others, if they are.

    Returns:
        The second one only if weights and mode are right and the inputs are not the same.
    """
    on_same_inputs = compare_forward(scenario, side, model, micro_batch, mask)
    reference_inputs = _inputs_of_side(side, micro_batch.rows, batch)
    if on_same_inputs.status == Status.DIVERGENT or _same_inputs(
        side, micro_batch, reference_inputs
    ):
        return [on_same_inputs]
    width, low = micro_batch.inputs["responses"].size(1), getattr(torch, scenario.dtype)
    with torch.no_grad():
        expected = logits_of(model.single, reference_inputs, side, low)[:, :width]
        truth = logits_of(model.double, reference_inputs, side, torch.float32)[:, :width]
    compared = _compare(scenario, expected, truth, micro_batch.logits[side], mask)
    if compared.status == Status.DIVERGENT:
        note = f"{side}'s answer beside that to the reference's own tokens: {compared.note}"
        compared = replace(compared, note=note, inherits=inherits)
    return [on_same_inputs, compared]


def _compare(
    scenario: Scenario, expected: Tensor, truth: Tensor, actual: Tensor, mask: Tensor
) -> Comparison:
    """Compare values of the tokens that count, `(B, T, …)`, of which `truth` is in float64."""
    counts = mask != 0
    sides = expected.float()[counts], truth[counts], actual.float()[counts]
    return compare_measured("log_probs", scenario.id, *sides)


def _inputs_of_side(side: str, rows: Sequence[int], batch: Mapping[str, Tensor]) -> MicroBatch:
    """Take some rows of the reference's batch, as one side's inputs."""
    names = [_PREFIXES[side] + name for name in MODEL_INPUTS] + ["responses"]
    return MicroBatch(list(rows), {name: batch[name][list(rows)] for name in names})


def _same_inputs(side: str, ours: MicroBatch, theirs: MicroBatch) -> bool:
    """Tell whether both hold the same tokens and positions at the same places before the end.

    Padding in front of all rows may be of any width, and so may that behind all responses.
    """
    names = [_PREFIXES[side] + name for name in MODEL_INPUTS]
    if not all(name in ours.inputs for name in names):
        return False
    sides = []
    longest = max(m.inputs["responses"].size(1) for m in (ours, theirs))
    for micro_batch in (ours, theirs):
        missing = longest - micro_batch.inputs["responses"].size(1)
        values = [micro_batch.inputs[name].long() for name in names]
        sides.append([torch.nn.functional.pad(value, (0, missing)) for value in values])
    length = max(values[0].size(1) for values in sides)
    (ids, mask, positions), (their_ids, their_mask, their_positions) = (
        widened(dict(zip(MODEL_INPUTS, values, strict=True)), length).values() for values in sides
    )
    return (
        torch.equal(mask, their_mask)
        and torch.equal(ids * mask, their_ids * mask)
        and torch.equal(positions * mask, their_positions * mask)
    )
