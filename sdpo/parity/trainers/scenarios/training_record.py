"""What a trainer did in a scenario, in one form for every trainer and for the reference.

Values are per row of the micro-batch and right-padded: `(B, T)` or `(B, T, …)` over the response
tokens. A value that a trainer does not show is absent, and its stage is not covered.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass
class MicroBatch:
    """One forward and backward pass.

    `rows` are those of the generation, in the order of the micro-batch. `inputs` are what the
    models were given: `input_ids`, `attention_mask`, `position_ids` (absent if the trainer passes
    none), the same with `teacher_` in front, `responses`, `response_mask`, `old_log_probs`.
    `logits` are the models' raw outputs that predict the response tokens, `(B, T, V)`: `student`,
    `teacher`, and `gradient`, that of everything backpropagated by the student's logits (whatever
    scale the trainer puts on the micro-batch included). `values` are stage values under the
    names of the loss stages: `log_probs.student`, `log_probs.teacher`, `support.indices`,
    `support.student`, `support.teacher`, `tail.student`, `tail.teacher`, `divergence`,
    `importance`, and `aggregate` `()`, the loss before any scale for accumulation.
    """

    rows: list[int]
    inputs: Tensors = field(default_factory=dict)
    logits: Tensors = field(default_factory=dict)
    values: Tensors = field(default_factory=dict)


@dataclass
class OptimizerStep:
    """The micro-batches of one optimizer step and what came of them.

    `gradient` is that of the parameters before clipping; `grad_norm` the norm that the trainer
    reports; `parameters` the trainable weights after the step; `logged` what was logged of it.
    """

    micro_batches: list[MicroBatch] = field(default_factory=list)
    gradient: Tensors = field(default_factory=dict)
    grad_norm: float | None = None
    parameters: Tensors = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)


@dataclass
class Update:
    """Everything learnt from one generation.

    `prompt` has the prompt stages that the trainer shows, one entry per row of the generation:
    `feedback` text or None, `demonstration` (row, text) or text alone or None, `teacher_prompt`
    messages, `teacher_tokens` a dict of lists `input_ids` and `position_ids` of the tokens that the
    teacher attends to, with `padding_inside`, the number of columns of padding among them,
    `distillation_mask` float. `teacher` are the teacher's weights afterwards
    (of a LoRA teacher the effective weights of the adapted layers).
    """

    prompt: dict[str, list[Any]] = field(default_factory=dict)
    steps: list[OptimizerStep] = field(default_factory=list)
    teacher: Tensors = field(default_factory=dict)


@dataclass
class TrainerRun:
    """A whole scenario.

    `settings` are the effective ones under verl's names, for those that the trainer has;
    `initial` and `initial_teacher` are the weights before the first update. Of several processes
    the first one's run has the micro-batches of all, and the other ones' runs in `ranks`.
    `given` has fingerprints of what the trainer was handed, by name (`fingerprints.py`): by them a
    relation or probe knows that its change reached the trainer. `teacher_gradient` is the largest
    gradient found on weights that are the teacher's alone, None if there are none such.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    initial: Tensors = field(default_factory=dict)
    initial_teacher: Tensors = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    teacher_gradient: float | None = None
    ranks: list["TrainerRun"] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
