"""How TRL's batch settings map to the reference's mini-batches, epochs and micro-batches.

| reference, per rank | TRL |
|---|---|
| rows of an actor update | `per_device_train_batch_size * steps_per_generation` |
| `ppo_micro_batch_size_per_gpu` | `per_device_train_batch_size` |
| `ppo_mini_batch_size` | `per_device_train_batch_size * gradient_accumulation_steps` |
| `ppo_epochs` | `num_iterations` |

An *update* is everything that is learnt from one generation batch; the teacher follows once, at its
end. Steps are counted in micro-batches, from 0, as TRL counts them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.settings.config import ConfigError, SDPOConfig


@dataclass(frozen=True)
class Schedule:
    """Numbers of micro-batches per optimizer step and per generation, and of passes over them.

    Raises:
        ConfigError: optimizer steps would mix rollouts of two generations in part.
    """

    gradient_accumulation_steps: int
    steps_per_generation: int
    num_iterations: int = 1

    def __post_init__(self) -> None:
        accumulated, reused = self.gradient_accumulation_steps, self.steps_per_update
        if reused % accumulated and accumulated % reused:
            raise ConfigError(
                f"steps_per_generation * num_iterations is {reused} and "
                f"gradient_accumulation_steps {accumulated}: neither divides the other, so an "
                "optimizer step would mix parts of two generations; make one a multiple of the "
                "other"
            )

    @property
    def steps_per_update(self) -> int:
        """Micro-batches processed between two generations."""
        return self.steps_per_generation * self.num_iterations

    @property
    def on_policy(self) -> bool:
        """Whether the rollouts come from exactly the weights that each gradient is taken at."""
        return self.gradient_accumulation_steps % self.steps_per_update == 0

    def ends_update(self, steps_done: int) -> bool:
        """Whether an optimizer step after this many micro-batches is the update's last."""
        return steps_done % self.steps_per_update == 0

    def check_exact(self) -> None:
        """Check that every mini-batch is known before its first micro-batch is processed.

        Raises:
            ConfigError: a mini-batch spans several generations, or is not a whole part of one.
        """
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"micro_batch_semantics='exact' needs steps_per_generation "
                f"({self.steps_per_generation}) to be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}), so that the tokens of a whole mini-batch "
                "are known in advance"
            )


def aggregation_weight(loss_mask: Tensor, loss_agg_mode: str) -> Tensor:
    """What a micro-batch weighs in its mini-batch: its tokens, or its rows with tokens.

    Args:
        loss_mask: `(B, T)`, 0 or 1.
        loss_agg_mode: one of the four modes; `seq-mean-token-sum-norm` does not divide by rows or
            tokens, so that its micro-batches simply add up.

    Returns:
        A float32 scalar.
    """
    if loss_agg_mode == "token-mean":
        return loss_mask.sum().float()
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return loss_mask.new_ones((), dtype=torch.float32)
    return (loss_mask.sum(-1) > 0).sum().float()


def mini_batch_weights(weights: Tensor, steps: int, loss_agg_mode: str) -> Tensor:
    """For each micro-batch the weight of its whole mini-batch.

    Args:
        weights: `(M,)` from `aggregation_weight`, summed over ranks, in order of processing.
        steps: micro-batches per mini-batch; divides M.
        loss_agg_mode: as for `aggregation_weight`.

    Returns:
        `(M,)`, at least 1.
    """
    if loss_agg_mode == "seq-mean-token-sum-norm":
        return torch.ones_like(weights)
    return weights.view(-1, steps).sum(-1).clamp(min=1).repeat_interleave(steps)


def micro_batch_scale(
    config: SDPOConfig,
    schedule: Schedule,
    *,
    weight: Tensor | float = 1.0,
    mini_batch_weight: Tensor | float = 1.0,
    ranks: int = 1,
) -> Tensor | float:
    """Factor of a micro-batch's loss before gradients are added up.

    Args:
        config: `micro_batch_semantics`. `verl`: one over the number of micro-batches, whatever is
            in them. `exact`: the share of the micro-batch in its mini-batch over all ranks.
        schedule: number of micro-batches.
        weight: of this micro-batch.
        mini_batch_weight: of its mini-batch over all ranks.
        ranks: number of processes, whose gradients are averaged afterwards.

    Source: `verl/workers/actor/dp_actor.py` 769-772 at 0e6d5106 for `verl`.
    """
    if config.micro_batch_semantics == "verl":
        return 1 / schedule.gradient_accumulation_steps
    return ranks * weight / mini_batch_weight
