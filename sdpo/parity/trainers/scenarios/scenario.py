"""A scripted piece of training: conversations, completions, rewards, feedback and settings.

Every side of an audit learns from the same script, so that whatever differs was computed
differently. Nothing here knows a trainer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpo.settings.stage_settings import POLICY_TERMS

EXTRA_PADDING = 5
"""Columns of padding behind the responses under the disguise of that name."""

NUDGES = {
    "": "none",
    "student": "a weight of the student, once the trainer is built",
    "teacher": "the same weight of the teacher",
    "old_log_probs": "log-probs at the weights that generated, lower by a quarter",
    "distillation_mask": "the first row of each micro-batch loses its teacher signal",
    "rollout_is_weights": "every token weighs a half, as of another sampler",
    "response_mask": "the second token of every response is a tool's and not the model's",
}

_DISGUISES = {
    "": "none",
    "left padding": "the tokenizer is handed over as one that pads on the left, not on the right",
    "extra padding": "the sampler returns five further columns of padding",
    "shifted head": "all logits of a token are moved by one number",
    "exchanged head": "two entries of the vocabulary, of no text, exchange places in the head",
}

Message = dict[str, str]
Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Rollout:
    """What the sampler, the reward and the environment say of one row.

    `completion` is text; it ends with the tokenizer's end token unless `truncated`.
    """

    completion: str
    reward: float
    feedback: str | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Generation:
    """One generation: a conversation per group, and `group_size` rollouts for each, in order."""

    conversations: tuple[Conversation, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def group_size(self) -> int:
        """Count the rollouts of one conversation."""
        return len(self.rollouts) // len(self.conversations)

    def conversation_of(self, row: int) -> Conversation:
        """Return the conversation that a row answers."""
        return self.conversations[row // self.group_size]


@dataclass(frozen=True)
class Scenario:
    """Some updates under one group of settings.

    Sizes are per process, in rows and micro-batches: of a generation each of the `processes` has
    `micro_batch_size * steps_per_generation` rows, in order, of an optimizer step
    `micro_batch_size * accumulation`, and every generation is learnt from `num_iterations` times.
    `self_distillation` has verl's names; `optimizer` is a class of `torch.optim` with its
    arguments. `dtype` is that of the forward passes: with `bfloat16` under autocast, weights stay
    float32.
    """

    id: str
    description: str
    generations: tuple[Generation, ...]
    self_distillation: Mapping[str, Any]
    micro_batch_size: int
    accumulation: int = 1
    steps_per_generation: int = 1
    num_iterations: int = 1
    temperature: float = 1.0
    loss_agg_mode: str = "token-mean"
    grad_clip: float = 1.0
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "SGD", "lr": 0.5})
    processes: int = 1
    dtype: str = "float32"
    lora: bool = False
    dropout: float = 0.0
    """Of the attention, or with LoRA of the adapters: the student's passes then draw at random."""
    moved: bool = False
    """Whether the student's weights are no longer those of the checkpoint that its path names."""
    reward_weights: tuple[float, ...] = ()
    """Weights of several reward functions of which each gives the whole reward; none for one."""
    poisoned_token: str | None = None
    """Text of a token whose input embedding is NaN, in the prompt of a row without signal."""
    nudge: str = ""
    """One value of the trainer that is moved alone, by name: see `NUDGES`."""
    disguise: str = ""
    """A change of the world that must not show, by name: see `_DISGUISES`."""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("disguise", _DISGUISES), ("nudge", NUDGES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"scenario {self.id}: {name}={value!r}; valid are {list(known)}")
        rows = self.micro_batch_size * self.steps_per_generation * self.processes
        wrong = [n for n, g in enumerate(self.generations) if len(g.rollouts) != rows]
        if wrong:
            raise ValueError(
                f"scenario {self.id}: generations {wrong} do not have micro_batch_size * "
                f"steps_per_generation * processes = {rows} rows"
            )

    @property
    def policy_terms(self) -> dict[str, Any]:
        """The settings of an entropy bonus or a KL anchor; none in most scenarios."""
        settings = self.self_distillation
        return {name: settings[name] for name in POLICY_TERMS if name in settings}

    @property
    def on_policy(self) -> bool:
        """Tell whether the one gradient of an update is taken at the weights that generated."""
        return self.steps_per_generation == self.accumulation and self.num_iterations == 1
