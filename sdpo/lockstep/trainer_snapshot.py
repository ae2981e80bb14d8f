"""What the audit takes from a running `SDPOTrainer`: state, settings, and what surrounds the loss.

Each function reads the trainer and leaves it as it was.
"""

import copy
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.trainer.utils import add_fused_lm_head

from sdpo.lockstep.reference_inputs import (
    log_probs_of,
    reference_corrections,
    reference_prompts,
)
from sdpo.lockstep.reference_update import RandomState, replayed
from sdpo.lockstep.replica import Replica, State, Weights, weights_of
from sdpo.lockstep.rollout_source import TEACHER_KEYS, Taken
from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.settings.config import SDPOConfig


@dataclass
class StepInputs:
    """What an optimizer step of the candidate was computed from, micro-batch by micro-batch.

    `random` are the generators' states before the SDPO loss of each micro-batch and behind it, None
    where nothing draws.
    """

    inputs: list[Any] = field(default_factory=list)
    random: list[tuple[RandomState | None, RandomState | None]] = field(default_factory=list)


def teacher_weights(trainer: Any) -> dict[str, Tensor]:
    """The teacher's weights under the student's names; the tensors themselves."""
    return trainer.teacher.named_parameters()


def _optimizer_of(trainer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, not accelerate's wrapper."""
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def state_of(trainer: Any, into: State | None = None) -> State:
    """A copy of the training's present state, in the memory of an older one."""
    return State.of(trainer.model, teacher_weights(trainer), _optimizer_of(trainer), into=into)


def replica_of(trainer: Any, *, exact: bool = False) -> Replica:
    """A replica that computes as the trainer does, or in float64."""
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

    optimizer = _optimizer_of(trainer)
    return Replica.like(
        trainer.model,
        optimizer,
        exact=exact,
        autocast=autocast,
        prepare=prepare,
        effective=trainer.sdpo_config.lora_average == "effective",
    )


def reference_config(trainer: Any) -> SDPOConfig:
    """The settings of a run as the reference needs them: TRL's where TRL's rule."""
    limit = trainer.args.max_grad_norm or sys.float_info.max
    config, temperature = trainer.sdpo_config, trainer.args.temperature
    return replace(config, temperature=temperature, grad_clip=limit)


def micro_batches_per_update(trainer: Any) -> int:
    """How many micro-batches are processed between two generations."""
    return trainer.args.steps_per_generation * trainer.args.num_iterations


def sizes(trainer: Any) -> dict[str, Any]:
    """The reference's batch settings; with `exact` a mini-batch is not split."""
    micro = trainer.args.per_device_train_batch_size
    mini = micro * trainer.args.gradient_accumulation_steps
    exact = trainer.sdpo_config.micro_batch_semantics == "exact"
    padded = trainer.sdpo_config.loss_agg_mode == "seq-mean-token-sum-norm"
    return {
        "mini_batch_size": mini,
        "micro_batch_size": mini if exact else micro,
        "epochs": trainer.args.num_iterations,
        "width": trainer.max_completion_length if padded else None,
    }


# --- teacher prompts ------------------------------------------------------------------------


def _template_arguments(trainer: Any) -> dict[str, Any]:
    """Chat-template arguments by TRL's own attributes, those for the teacher added."""
    own = {"tools": trainer.tools or None, "chat_template": trainer.chat_template}
    given = {name: value for name, value in own.items() if value is not None}
    return given | trainer.chat_template_kwargs | trainer.sdpo_config.apply_chat_template_kwargs


def expected_prompts(trainer: Any, taken: Taken) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The reference's stage values and teacher inputs of this process's rows.

    Where the reference cannot render prompts as the trainer does (plain text, or template arguments
    that it does not have) both lack the tokens.
    """
    arguments, rollouts = _template_arguments(trainer), taken.rollouts
    plain = isinstance(rollouts.prompts[0], str)
    rendered = not plain and not arguments.keys() - {"enable_thinking"}
    everyone = _everyones_rows(trainer, rollouts)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    tensors, trace = reference_prompts(
        everyone["responses"],
        everyone["response_mask"],
        rollouts.rewards,
        [_messages_of(prompt) for prompt in everyone["prompts"]],
        everyone["feedbacks"],
        tokenizer if rendered else _Unrendered(tokenizer),
        trainer.sdpo_config,
        uids=taken.uids,
        template_kwargs=arguments,
    )
    if not rendered:
        tensors = {"self_distillation_mask": tensors["self_distillation_mask"]}
        del trace["teacher_tokens"]
    if trainer.accelerator.num_processes == 1:
        return comparable(trace), tensors
    rows, width = rollouts.responses.shape
    first = trainer.accelerator.process_index * rows
    own = {name: tensor[first : first + rows] for name, tensor in tensors.items()}
    names = [name for name in PROMPT_STAGES if name in trace and name != "teacher_tokens"]
    trace = {name: trace[name][first : first + rows] for name in names}
    if rendered:
        own |= _without_padding(own, everyone["responses"].shape[1], width)
        trace["teacher_tokens"] = own
    return comparable(trace), own


def _messages_of(prompt: Any) -> list[dict[str, Any]]:
    """A prompt as the messages that the reference takes, whose content is text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{**message, "content": _text_of(message.get("content"))} for message in prompt]


def _text_of(content: Any) -> Any:
    """The text of a message's content, if it is text or a list of texts; else the content."""
    if not isinstance(content, list) or any(part.get("type") != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


class _Unrendered:
    """A tokenizer that decodes, and renders nothing: for the stages before the tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def decode(self, ids: Any, **options: Any) -> str:
        """Text of some ids."""
        return self.tokenizer.decode(ids, **options)

    def apply_chat_template(self, conversations: Any, **options: Any) -> dict[str, Tensor]:
        """A token of no meaning for each prompt."""
        blank = torch.zeros(len(conversations), 1, dtype=torch.long)
        return {"input_ids": blank, "attention_mask": blank}


def trained_on(trainer: Any, steps: Sequence[StepInputs]) -> dict[str, Tensor]:
    """The rows that the trainer's own micro-batches of one pass held, in their order."""
    parts = [inputs for step in steps for inputs in step.inputs]
    return joined_rows(parts[: trainer.args.steps_per_generation])


def joined_rows(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a whole update from its micro-batches, which have one width."""
    names = [name for name, value in parts[0].items() if isinstance(value, Tensor) and value.dim()]
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def _everyones_rows(trainer: Any, rollouts: Any) -> dict[str, Any]:
    """Rows of all processes, in their order, with responses padded to the longest."""
    if trainer.accelerator.num_processes == 1:
        return rollouts._asdict()
    width = max(gather_object([rollouts.responses.shape[1]]))
    more = (0, width - rollouts.responses.shape[1])
    pad = getattr(trainer.processing_class, "tokenizer", trainer.processing_class).pad_token_id
    responses = F.pad(rollouts.responses, more, value=pad)
    mask = F.pad(rollouts.response_mask, more)
    return {
        "responses": trainer.accelerator.gather(responses),
        "response_mask": trainer.accelerator.gather(mask),
        "prompts": gather_object(list(rollouts.prompts)),
        "feedbacks": gather_object(list(rollouts.feedbacks)),
    }


def _without_padding(own: Mapping[str, Tensor], common: int, width: int) -> dict[str, Tensor]:
    """Teacher inputs without the columns that only rows of other processes need."""
    end = own["teacher_input_ids"].shape[1] - (common - width)
    attended = own["teacher_attention_mask"][:, : end - width].any(0)
    begin = int(attended.int().argmax())
    return {name: own[name][:, begin:end] for name in TEACHER_KEYS}


def comparable(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Stage values of the teacher prompt as plain values, under the stages' names."""
    found = {name: trace[name] for name in PROMPT_STAGES if name in trace}
    tokens = found.get("teacher_tokens")
    if isinstance(tokens, dict):
        found["teacher_tokens"] = [tokens[name] for name in TEACHER_KEYS]
    return found


# --- around the loss ------------------------------------------------------------------------


def step_weights(trainer: Any, batch: Mapping[str, Tensor]) -> list[float]:
    """Factor of this process's loss at each optimizer step of `exact` over several processes.

    A mean over all processes' tokens, or rows, is the mean of the processes' means weighted by
    their numbers of tokens or rows. Empty where every factor is 1.
    """
    ranks, config = trainer.accelerator.num_processes, trainer.sdpo_config
    if config.micro_batch_semantics != "exact" or ranks == 1:
        return []
    mask = batch["response_mask"] * batch["self_distillation_mask"].unsqueeze(-1)
    tokens = mask.sum(-1)
    per_row = tokens if config.loss_agg_mode == "token-mean" else tokens > 0
    own = torch.stack([p.float().sum() for p in per_row.split(sizes(trainer)["mini_batch_size"])])
    if config.loss_agg_mode == "seq-mean-token-sum-norm":  # sums add up, nothing is shared out
        return [float(ranks)] * len(own) * trainer.args.num_iterations
    total: Any = trainer.accelerator.reduce(own.clone(), reduction="sum")
    shares = ranks * own / total.clamp(min=1)
    return shares.tolist() * trainer.args.num_iterations


def anchor_of(trainer: Any) -> Weights | None:
    """The reference policy's weights, if the loss has a KL term to one: a copy of the student's.

    Called when the trainer has just been built, before any training or resuming.
    """
    return weights_of(trainer.model) if trainer.sdpo_config.use_kl_loss else None


def before_update(
    trainer: Any,
    replica: Replica,
    batch: Mapping[str, Tensor],
    sampled: Tensor | None,
    anchor: Weights | None,
) -> dict[str, Tensor]:
    """What the reference itself computes before an update, where the settings need it.

    Args:
        trainer: is read.
        replica: at the state before the update.
        batch: rows of the whole update under the reference's names.
        sampled: the sampler's log-probs `(B, T)`, if they are known.
        anchor: weights of the reference policy, if there is one.
    """
    found = _corrections(trainer, replica, batch, sampled)
    if anchor is not None:
        size = trainer.args.per_device_train_batch_size
        config = reference_config(trainer)
        found["ref_log_prob"] = log_probs_of(replica, batch, config, size, anchor)
    return found


def _corrections(
    trainer: Any, replica: Replica, batch: Mapping[str, Tensor], sampled: Tensor | None
) -> dict[str, Tensor]:
    """Old log-probs and rollout weights, where the settings need them."""
    config = reference_config(trainer)
    weighted = sampled is not None and config.rollout_is_threshold is not None
    # one optimizer step, or several updates' worth of one, sees the weights that generated
    steps_apart = trainer.args.gradient_accumulation_steps % micro_batches_per_update(trainer)
    off_policy = config.is_clip is not None and steps_apart != 0
    if not off_policy and not weighted:
        return {}
    size = trainer.args.per_device_train_batch_size
    return reference_corrections(replica, batch, config, size, sampled=sampled)


def add_grpo(trainer: Any, model: nn.Module, step: StepInputs) -> None:
    """Add the gradient of TRL's own GRPO loss, for all micro-batches of an optimizer step."""
    shadow = copy.copy(trainer)
    shadow._metrics = {mode: defaultdict(list) for mode in trainer._metrics}
    for inputs, (_, random) in zip(step.inputs, step.random, strict=True):
        with replayed(random):
            loss = GRPOTrainer._compute_loss(shadow, model, inputs)
        (trainer.sdpo_config.hybrid_lambda * loss).backward()


def average_gradients(trainer: Any, model: nn.Module) -> None:
    """Replace every gradient by its mean over all processes."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= trainer.accelerator.num_processes
