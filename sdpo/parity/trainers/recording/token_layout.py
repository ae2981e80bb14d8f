"""Find the responses in the tokens of a forward pass, and move them to its end.

The reference lays a row out as `[padding][prompt][response][padding]`, the response in the last `T`
columns. Whatever lies elsewhere is moved there as it is, padding inside included: what the model
saw stays what it saw.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from sdpo.parity.trainers.scenarios.training_record import Tensors

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class Tokens(TypedDict):
    """What one row attends to; `padding_inside` counts the columns of padding among it."""

    input_ids: list[int]
    position_ids: list[int]
    padding_inside: int


Columns = list[list[int]]


def mask_of(model_inputs: Tensors) -> Tensor:
    """Return which columns are attended to, `(rows, L)` bool; all where no mask was passed."""
    ids = model_inputs["input_ids"]
    return model_inputs.get("attention_mask", torch.ones_like(ids)).bool()


def tokens_of(model_inputs: Tensors, positions: Tensor) -> list[Tokens]:
    """Read what each row of a forward pass attends to, at the positions in effect."""
    ids = model_inputs["input_ids"]
    return attended_tokens(ids, mask_of(model_inputs), positions.expand_as(ids))


def attended_tokens(
    input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
) -> list[Tokens]:
    """Read what each row attends to: ids and positions of the tokens, and padding among them.

    All arguments are `(rows, L)`.
    """
    mask = attention_mask.bool()
    return [
        {
            "input_ids": ids[attended].tolist(),
            "position_ids": positions[attended].tolist(),
            "padding_inside": padding_inside(attended),
        }
        for ids, positions, attended in zip(input_ids, position_ids, mask, strict=True)
    ]


def padding_inside(mask: Tensor) -> int:
    """Count the columns between the first and the last attended one that are not attended to.

    A model does not see them, but the column before a response predicts its first token: where
    that is padding, padding answers.
    """
    attended = mask.nonzero().flatten()
    if not len(attended):
        return 0
    return int(attended[-1] - attended[0]) + 1 - len(attended)


def columns_of(
    model_inputs: Tensors, completions: Sequence[Sequence[int]], width: int
) -> Columns | None:
    """Find the columns of each row's response; None where they are the last `width` as usual.

    A row whose tokens do not end with its completion counts as usual.
    """
    ids, mask = model_inputs["input_ids"], mask_of(model_inputs)
    usual = list(range(ids.shape[1] - width, ids.shape[1]))
    response_columns = []
    for row, completion in enumerate(completions):
        columns = mask[row].nonzero().flatten()[-len(completion) :]
        known = ids[row, columns].tolist() == list(completion)
        response_columns.append(columns.tolist() if known else usual[: len(completion)])
    as_usual = all(columns == usual[: len(columns)] for columns in response_columns)
    return None if as_usual else response_columns


def at_responses(values: Tensor, columns: Columns | None, cut: int, width: int) -> Tensor:
    """Take the values that predict the tokens of the responses, `(rows, T, V)`.

    Args:
        values: `(rows, L - cut, V)`, those of the last columns.
        columns: of the responses, as `columns_of` gives them.
        cut: columns at the beginning that have no values.
        width: `T`.
    """
    if columns is None:
        return values[:, -width - 1 : -1].clone()
    moved = values.new_zeros(len(values), width, values.shape[-1])
    for row, places in enumerate(columns):
        moved[row, : len(places)] = values[row, torch.tensor(places) - 1 - cut]
    return moved


def at_the_end(
    model_inputs: Tensors, positions: Tensor, columns: Columns | None, width: int
) -> Tensors:
    """Move the responses into the last `width` columns of ids, mask and positions in effect."""
    ids, mask = model_inputs["input_ids"], mask_of(model_inputs)
    values = dict(zip(MODEL_INPUTS, (ids, mask, positions.expand_as(ids)), strict=True))
    if columns is None:
        return {name: value.detach().to(ids.dtype, copy=True) for name, value in values.items()}
    starts = [row[0] for row in columns]
    before = max(starts)
    moved = {name: ids.new_zeros(len(ids), before + width) for name in MODEL_INPUTS}
    for row, start in enumerate(starts):
        end = min(ids.shape[1], start + width)
        target = slice(before - start, before - start + end)
        for name, value in values.items():
            moved[name][row, target] = value[row, :end].to(ids.dtype)
    return moved


def joined(parts: Sequence[tuple[Sequence[int], Tensor]], count: int) -> Tensor:
    """Put values of some rows each at their places among `count` rows.

    Later values overwrite earlier ones; the other rows are zero.
    """
    if len(parts) == 1 and list(parts[0][0]) == list(range(count)):
        return parts[0][1]
    joined_rows = parts[0][1].new_zeros(count, *parts[0][1].shape[1:])
    for places, values in parts:
        joined_rows[list(places)] = values
    return joined_rows


def widened(inputs: Tensors, length: int) -> Tensors:
    """Pad inputs in front to a length."""
    return {
        name: torch.nn.functional.pad(value, (length - value.shape[1], 0))
        for name, value in inputs.items()
    }
