"""Draws what a random case consists of, the same for the same family and seed."""

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (torch.bool, torch.uint8, torch.int32, torch.int64, *FLOATS)

Value = TypeVar("Value")


class Chance:
    """Numbers, choices and tensors of one case."""

    def __init__(self, family: str, seed: int) -> None:
        self._random = random.Random(f"{family} {seed}")
        self._tensors = torch.Generator().manual_seed(self._random.getrandbits(32))

    def happens(self, probability: float) -> bool:
        """Whether something of a probability is so."""
        return self._random.random() < probability

    def choice(self, values: Sequence[Value]) -> Value:
        """One of the values; name one several times to make it likelier."""
        return self._random.choice(values)

    def choices(self, values: Sequence[Value], count: int) -> list[Value]:
        """Some of the values, each drawn from all."""
        return self._random.choices(values, k=count)

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def number(self, low: float, high: float) -> float:
        """A number in an interval."""
        return self._random.uniform(low, high)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers in float32."""
        return torch.randn(shape, generator=self._tensors)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) in float32."""
        return torch.rand(shape, generator=self._tensors)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from `low` to `high - 1`, int64."""
        return torch.randint(low, high, shape, generator=self._tensors)

    def mask(self, rows: int, tokens: int) -> Tensor:
        """A `(B, T)` mask of booleans: whole rows, lengths or holes, now and then an empty row."""
        kind = self.choice(["whole", "lengths", "lengths", "holes", "nothing"])
        if kind == "holes":
            mask = self.uniform(rows, tokens) < 0.7
        elif kind == "lengths":
            mask = torch.arange(tokens) < self.integers(0, tokens + 1, rows, 1)
        else:
            mask = torch.full((rows, tokens), kind == "whole")
        if rows > 1 and self.happens(0.2):
            mask[self.between(0, rows - 1)] = False
        return mask
