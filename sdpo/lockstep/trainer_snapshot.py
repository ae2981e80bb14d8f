"""What the audit takes from a running `SDPOTrainer`: state, settings, and what surrounds the loss.

Each function reads the trainer and leaves it as it was.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from sdpo.lockstep.reference_inputs import (
    TEACHER_KEYS,
    reference_prompts,
)
from sdpo.lockstep.reference_update import BatchSizes, RandomState
from sdpo.lockstep.replica import Replica, State, Weights, weights_of
from sdpo.lockstep.rollout_source import Rollouts, Taken, tokenizer_of
from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.reference.teacher_prompt import Message, Tokenizer
from sdpo.settings.config import SDPOConfig

if TYPE_CHECKING:
    from sdpo.prompt.teacher_batch import PromptTrace
    from sdpo.trainer.sdpo_trainer import SDPOTrainer
    from sdpo.update.rollouts import TRLBatch


_SAMPLES = 64
"""Entries of a weight in the teacher's fingerprint."""


@dataclass
class StepInputs:
    """What an optimizer step of the candidate was computed from, micro-batch by micro-batch.

    `random` are the generators' states before the SDPO loss of each micro-batch and behind it, None
    where nothing draws.
    """

    inputs: "list[TRLBatch]" = field(default_factory=list)
    random: list[tuple[RandomState | None, RandomState | None]] = field(default_factory=list)


def teacher_weights(trainer: "SDPOTrainer") -> dict[str, Tensor]:
    """Return the teacher's weights under the student's names; the tensors themselves."""
    return trainer.teacher.named_parameters()


def optimizer_of(trainer: "SDPOTrainer") -> torch.optim.Optimizer:
    """Return the optimizer itself, not accelerate's wrapper."""
    optimizer: Any = trainer.optimizer
    return getattr(optimizer, "optimizer", optimizer)


def teacher_fingerprint(trainer: "SDPOTrainer") -> Tensor:
    """Take some entries of every weight of the teacher, which tell whether it was moved."""
    rows = [weight.detach().flatten() for weight in teacher_weights(trainer).values()]
    return torch.cat([row[:: max(1, len(row) // _SAMPLES)].float() for row in rows])


def state_of(trainer: "SDPOTrainer", into: State | None = None) -> State:
    """Copy the training's present state, into the memory of an older copy."""
    return State.of(trainer.model, teacher_weights(trainer), optimizer_of(trainer), into=into)


def replica_of(trainer: "SDPOTrainer", *, exact: bool = False) -> Replica:
    """Build a replica that computes as the trainer does, or in float64."""
    autocast = torch.bfloat16 if trainer.args.bf16 else None

    def prepare(student: Any) -> None:
        if trainer.sdpo_config.hybrid_lambda:
            # TRL's GRPO loss asks a head for it that TRL adds to the live model.
            base = student.get_base_model() if hasattr(student, "peft_config") else student
            add_fused_lm_head(
                base,
                temperature=trainer.temperature,
                cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32,
                outputs=("log_probs", "entropy"),
            )

    optimizer = optimizer_of(trainer)
    return Replica.like(
        trainer.model,
        optimizer,
        exact=exact,
        autocast=autocast,
        prepare=prepare,
        effective=trainer.sdpo_config.lora_average == "effective",
    )


def reference_config(trainer: "SDPOTrainer") -> SDPOConfig:
    """Return the settings of a run as the reference needs them: TRL's where TRL's rule."""
    limit = trainer.args.max_grad_norm or sys.float_info.max
    config, temperature = trainer.sdpo_config, trainer.args.temperature
    return replace(config, temperature=temperature, grad_clip=limit)


def micro_batches_per_update(trainer: "SDPOTrainer") -> int:
    """Count the micro-batches that are processed between two generations."""
    return trainer.args.steps_per_generation * trainer.args.num_iterations


def sizes(trainer: "SDPOTrainer") -> BatchSizes:
    """Return how the reference goes through a batch; with `exact` a mini-batch is not split."""
    micro = trainer.args.per_device_train_batch_size
    mini = micro * trainer.args.gradient_accumulation_steps
    exact = trainer.sdpo_config.micro_batch_semantics == "exact"
    padded = trainer.sdpo_config.loss_agg_mode == "seq-mean-token-sum-norm"
    return BatchSizes(
        mini_batch_size=mini,
        micro_batch_size=mini if exact else micro,
        epochs=trainer.args.num_iterations,
        width=trainer.max_completion_length if padded else None,
    )


# --- teacher prompts ------------------------------------------------------------------------


def _template_arguments(trainer: "SDPOTrainer") -> dict[str, object]:
    """Collect the chat template's arguments from TRL's attributes, those for the teacher added."""
    of_trl = {"tools": trainer.tools or None, "chat_template": trainer.chat_template}
    return {
        **{name: value for name, value in of_trl.items() if value is not None},
        **trainer.chat_template_kwargs,
        **trainer.sdpo_config.apply_chat_template_kwargs,
    }


class ExpectedPrompts(NamedTuple):
    """What the reference makes of the rows of this process.

    `stages` are its values by stage, to be compared for equality; `tensors` the teacher's inputs
    and the mask of the rows with a signal.
    """

    stages: Mapping[str, object]
    tensors: dict[str, Tensor]


def expected_prompts(trainer: "SDPOTrainer", taken: Taken) -> ExpectedPrompts:
    """Build the teacher prompts of this process's rows by the reference.

    Where the reference cannot render prompts as the trainer does (plain text, or template arguments
    that it does not have) both lack the tokens.
    """
    arguments, rollouts = _template_arguments(trainer), taken.rollouts
    plain = isinstance(rollouts.prompts[0], str)
    rendered = not plain and not arguments.keys() - {"enable_thinking"}
    everyone = _everyones_rows(trainer, rollouts)
    tokenizer = tokenizer_of(trainer)
    batch = reference_prompts(
        everyone.responses,
        everyone.response_mask,
        rollouts.rewards,
        [_messages_of(prompt) for prompt in everyone.prompts],
        everyone.feedbacks,
        tokenizer if rendered else _Unrendered(tokenizer),
        trainer.sdpo_config,
        uids=taken.uids,
        template_kwargs=arguments,
    )
    tensors, trace = batch.tensors, dict[str, Any](batch.trace)
    if not rendered:
        tensors = {"self_distillation_mask": tensors["self_distillation_mask"]}
        del trace["teacher_tokens"]
    if trainer.accelerator.num_processes == 1:
        return ExpectedPrompts(comparable(trace), tensors)
    rows, width = rollouts.responses.shape
    first = trainer.accelerator.process_index * rows
    here = {name: tensor[first : first + rows] for name, tensor in tensors.items()}
    names = [name for name in PROMPT_STAGES if name in trace and name != "teacher_tokens"]
    trace = {name: trace[name][first : first + rows] for name in names}
    if rendered:
        here |= _without_padding(here, everyone.responses.shape[1], width)
        trace["teacher_tokens"] = here
    return ExpectedPrompts(comparable(trace), here)


def _messages_of(prompt: str | Sequence[Message]) -> list[Message]:
    """Turn a prompt into the messages that the reference takes, whose content is text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{**message, "content": _text_of(message.get("content"))} for message in prompt]


def _text_of(content: object) -> object:
    """Return the text of a content that is text or a list of texts, else the content."""
    if not isinstance(content, list) or any(part.get("type") != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


class _Unrendered:
    """A tokenizer that decodes, and renders nothing: for the stages before the tokens."""

    padding_side = truncation_side = "left"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids: Tensor, /, *, skip_special_tokens: bool) -> str:
        """Decode some ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, conversations: Sequence[Sequence[Message]], /, **options: object
    ) -> dict[str, Tensor]:
        """Return a token of no meaning for each prompt."""
        blank = torch.zeros(len(conversations), 1, dtype=torch.long)
        return {"input_ids": blank, "attention_mask": blank}


def trained_on(trainer: "SDPOTrainer", steps: Sequence[StepInputs]) -> dict[str, Tensor]:
    """Join the rows that the trainer's own micro-batches of one pass held, in their order."""
    micro_batches = [inputs for step in steps for inputs in step.inputs]
    return joined_rows(micro_batches[: trainer.args.steps_per_generation])


def joined_rows(micro_batches: "Sequence[TRLBatch]") -> dict[str, Tensor]:
    """Join the rows of a whole update from its micro-batches, which have one width."""
    first = micro_batches[0]
    names = [name for name, value in first.items() if isinstance(value, Tensor) and value.dim()]
    return {name: torch.cat([inputs[name] for inputs in micro_batches]) for name in names}


def _everyones_rows(trainer: "SDPOTrainer", rollouts: Rollouts) -> Rollouts:
    """Collect the rows of all processes, in their order, responses padded to the longest."""
    if trainer.accelerator.num_processes == 1:
        return rollouts
    width = max(gather_object([rollouts.responses.shape[1]]))
    more = (0, width - rollouts.responses.shape[1])
    responses = F.pad(rollouts.responses, more, value=tokenizer_of(trainer).pad_token_id)
    mask, gather = F.pad(rollouts.response_mask, more), trainer.accelerator.gather
    return rollouts._replace(
        responses=gather(responses),
        response_mask=gather(mask),
        prompts=gather_object(list(rollouts.prompts)),
        feedbacks=gather_object(list(rollouts.feedbacks)),
    )


def _without_padding(rows: Mapping[str, Tensor], common: int, width: int) -> dict[str, Tensor]:
    """Cut teacher inputs to the columns that not only rows of other processes need."""
    end = rows["teacher_input_ids"].shape[1] - (common - width)
    attended = rows["teacher_attention_mask"][:, : end - width].any(0)
    begin = int(attended.int().argmax())
    return {name: rows[name][:, begin:end] for name in TEACHER_KEYS}


def comparable(trace: "Mapping[str, object] | PromptTrace") -> dict[str, object]:
    """Put the stage values of the teacher prompt under the stages' names, as plain values."""
    values: dict[str, object] = {name: trace[name] for name in PROMPT_STAGES if name in trace}
    tokens = values.get("teacher_tokens")
    if isinstance(tokens, dict):
        values["teacher_tokens"] = [tokens[name] for name in TEACHER_KEYS]
    return values


# --- around the loss ------------------------------------------------------------------------


def step_weights(trainer: "SDPOTrainer", batch: Mapping[str, Tensor]) -> list[float]:
    """Weigh this process's loss at each optimizer step of `exact` over several processes.

    A mean over all processes' tokens, or rows, is the mean of the processes' means weighted by
    their numbers of tokens or rows. Empty where every factor is 1.
    """
    ranks, config = trainer.accelerator.num_processes, trainer.sdpo_config
    if config.micro_batch_semantics != "exact" or ranks == 1:
        return []
    mask = batch["response_mask"] * batch["self_distillation_mask"].unsqueeze(-1)
    tokens = mask.sum(-1)
    per_row = tokens if config.loss_agg_mode == "token-mean" else tokens > 0
    minis = per_row.split(sizes(trainer).mini_batch_size)
    local = torch.stack([mini.float().sum() for mini in minis])
    if config.loss_agg_mode == "seq-mean-token-sum-norm":  # sums add up, nothing is shared out
        return [float(ranks)] * len(local) * trainer.args.num_iterations
    total: Any = trainer.accelerator.reduce(local.clone(), reduction="sum")
    shares = ranks * local / total.clamp(min=1)
    return shares.tolist() * trainer.args.num_iterations


def anchor_of(trainer: "SDPOTrainer") -> Weights | None:
    """Copy the student's weights as the reference policy's, if the loss has a KL term to one.

    Called when the trainer has just been built, before any training or resuming.
    """
    return weights_of(trainer.model) if trainer.sdpo_config.use_kl_loss else None
