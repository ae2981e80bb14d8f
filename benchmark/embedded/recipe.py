"""Says how the embedded model is made: size, lessons, learning rate.

The packaged one needs a quarter of an hour of one core.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, int]
Architecture = dict[str, float]
"""Fields of `Qwen2Config`."""


def qwen2(hidden: int, intermediate: int, layers: int, heads: int) -> Architecture:
    """Name the fields of `Qwen2Config`."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        # With the usual 0.02 the embeddings of `<` and `>` grow together and stay so.
        "initializer_range": 0.08,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-6,
    }


@dataclass(frozen=True)
class Recipe:
    """Says what is trained, on what, for how long.

    `stages` are lessons of each kind in a batch, each up to a step: first to copy, then the rest.
    """

    architecture: Architecture
    stages: tuple[tuple[int, Counts], ...]
    steps: int
    warm_up: int
    fall: int
    learning_rate: float = 2e-3
    seed: int = 7

    def rate_at(self, step: int) -> float:
        """Compute the learning rate: warm-up, constant, and a linear fall at the end.

        Up to the fall it does not depend on `steps`, so that a saved state serves longer runs too.
        """
        fall = max(0.02, (self.steps - step) / self.fall)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, fall)

    def counts_at(self, step: int) -> Counts:
        """Count the lessons of each kind in the batch of a step."""
        return next((counts for end, counts in self.stages if step < end), self.stages[-1][1])


PACKAGED = Recipe(
    qwen2(128, 448, 4, 4),
    (
        (300, {"echo": 24, "plain": 6, "shown": 6}),
        (2400, {"plain": 10, "shown": 8, "told": 4}),
    ),
    steps=2400,
    warm_up=50,
    fall=400,
)
