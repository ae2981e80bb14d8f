"""Where the responses stand in the tokens of a forward pass, and the same with them at the end.

The reference lays a row out as `[padding][prompt][response][padding]`, the response in the last `T`
columns. Whatever lies elsewhere is moved there as it is, padding inside included: what the model
saw stays what it saw.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")

Tokens = dict[str, Any]
Columns = list[list[int]]


def mask_of(given: dict[str, Tensor]) -> Tensor:
    """`(rows, L)` bool: the columns that are attended to; all where no mask was passed."""
    ids = given["input_ids"]
    return given.get("attention_mask", torch.ones_like(ids)).bool()


def tokens_of(given: dict[str, Tensor], positions: Tensor) -> list[Tokens]:
    """Ids, positions in effect and padding inside, of the tokens that each row attends to."""
    ids, mask = given["input_ids"], mask_of(given)
    places = positions.expand_as(ids)
    return [
        {
            "input_ids": i[m].tolist(),
            "position_ids": p[m].tolist(),
            "padding_inside": padding_inside(m),
        }
        for i, p, m in zip(ids, places, mask, strict=True)
    ]


def padding_inside(mask: Tensor) -> int:
    """How many columns between the first and the last attended one are not attended to.

    A model does not see them, but the column before a response predicts its first token: where
    that is padding, padding answers.
    """
    attended = mask.nonzero().flatten()
    if not len(attended):
        return 0
    return int(attended[-1] - attended[0]) + 1 - len(attended)


def columns_of(
    given: dict[str, Tensor], completions: Sequence[Sequence[int]], width: int
) -> Columns | None:
    """The columns of each row's response, None where they are the last `width` as usual.

    A row whose tokens do not end with its completion counts as usual.
    """
    ids, mask = given["input_ids"], mask_of(given)
    usual = list(range(ids.shape[1] - width, ids.shape[1]))
    found = []
    for row, completion in enumerate(completions):
        columns = mask[row].nonzero().flatten()[-len(completion) :]
        known = ids[row, columns].tolist() == list(completion)
        found.append(columns.tolist() if known else usual[: len(completion)])
    as_usual = all(columns == usual[: len(columns)] for columns in found)
    return None if as_usual else found


def at_responses(values: Tensor, columns: Columns | None, cut: int, width: int) -> Tensor:
    """`(rows, T, V)`: the values that predict the tokens of the responses.

    Args:
        values: `(rows, L - cut, V)`, those of the last columns.
        columns: of the responses, as `columns_of` gives them.
        cut: columns at the beginning that have no values.
        width: `T`.
    """
    if columns is None:
        return values[:, -width - 1 : -1].clone()
    found = values.new_zeros(len(values), width, values.shape[-1])
    for row, places in enumerate(columns):
        found[row, : len(places)] = values[row, torch.tensor(places) - 1 - cut]
    return found


def at_the_end(
    given: dict[str, Tensor], positions: Tensor, columns: Columns | None, width: int
) -> dict[str, Tensor]:
    """Ids, mask and positions in effect, with the responses in the last `width` columns."""
    ids, mask = given["input_ids"], mask_of(given)
    values = dict(zip(MODEL_INPUTS, (ids, mask, positions.expand_as(ids)), strict=True))
    if columns is None:
        return {name: value.detach().to(ids.dtype, copy=True) for name, value in values.items()}
    starts = [row[0] for row in columns]
    before = max(starts)
    found = {name: ids.new_zeros(len(ids), before + width) for name in MODEL_INPUTS}
    for row, start in enumerate(starts):
        end = min(ids.shape[1], start + width)
        target = slice(before - start, before - start + end)
        for name, value in values.items():
            found[name][row, target] = value[row, :end].to(ids.dtype)
    return found


def joined(parts: Sequence[tuple[Sequence[int], Tensor]], count: int) -> Tensor:
    """Values of some rows each, at their places among `count`, later ones over earlier ones.

    Zeros at the other rows.
    """
    if len(parts) == 1 and list(parts[0][0]) == list(range(count)):
        return parts[0][1]
    whole = parts[0][1].new_zeros(count, *parts[0][1].shape[1:])
    for places, values in parts:
        whole[list(places)] = values
    return whole


def widened(inputs: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Inputs with columns of padding in front, to a length."""
    return {
        name: torch.nn.functional.pad(value, (length - value.shape[1], 0))
        for name, value in inputs.items()
    }
