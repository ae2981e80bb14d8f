"""What the reference begins an update with: its rows, teacher prompts, log-probs, weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sdpo.lockstep.chunked_logit_outputs import outputs_by_piece
from sdpo.lockstep.replica import Replica, Weights
from sdpo.parity.cases.value_names import PROMPT_SETTINGS
from sdpo.reference.forward import MODEL_INPUTS, forward_micro_batch
from sdpo.reference.loss import rollout_is_weights
from sdpo.reference.teacher_prompt import (
    Message,
    TeacherBatch,
    Tokenizer,
    build_teacher_batch,
    set_tokenizer_sides,
)
from sdpo.settings.config import SDPOConfig

TEACHER_KEYS = ("teacher_input_ids", "teacher_attention_mask", "teacher_position_ids")
_FURTHER_KEYS = (*TEACHER_KEYS, "self_distillation_mask", "rollout_is_weights", "old_log_probs")


def student_rows(
    prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor, tools: Tensor | None
) -> dict[str, Tensor]:
    """Put prompts `(B, P)`, completions `(B, T)` and their masks under the reference's names.

    Positions count the attended tokens from 0; `tools` is 0 where a tool wrote a token.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1)
    return {
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "responses": responses,
        "response_mask": mask if tools is None else mask * tools,
    }


def update_rows(buffered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put TRL's buffered rows of a generation under the reference's names."""
    rows = student_rows(
        buffered["prompt_ids"],
        buffered["prompt_mask"],
        buffered["completion_ids"],
        buffered["completion_mask"],
        buffered.get("tool_mask"),
    )
    return rows | {name: buffered[name] for name in _FURTHER_KEYS if name in buffered}


def padded(
    rows: Sequence[Sequence[float]], value: float, multiple: int, *, left: bool = False
) -> Tensor:
    """Put rows of numbers into one tensor `(B, width)`, filled with `value` to a multiple."""
    width = max(len(row) for row in rows)
    width = -(-width // multiple) * multiple
    fills = [[value] * (width - len(row)) for row in rows]
    pairs = zip(rows, fills, strict=True)
    return torch.tensor([fill + list(row) if left else list(row) + fill for row, fill in pairs])


def reference_prompts(
    responses: Tensor,
    response_mask: Tensor,
    rewards: Tensor,
    prompts: Sequence[Sequence[Message]],
    feedbacks: Sequence[object],
    tokenizer: Tokenizer,
    config: SDPOConfig,
    *,
    uids: Sequence[int],
    template_kwargs: Mapping[str, object],
) -> TeacherBatch:
    """Build the teacher's inputs as the reference does, with its stage values.

    Args:
        responses: `(B, R)` int64, right-padded.
        response_mask: `(B, R)`.
        rewards: `(B,)`.
        prompts: the messages of each row.
        feedbacks: what the environment said of each row, usually text or None.
        tokenizer: left as it is; a copy is used.
        config: settings of the teacher prompt.
        uids: equal for the rows of a group.
        template_kwargs: arguments of the chat template.
    """
    tokenizer = copy.deepcopy(tokenizer)
    settings = {name: getattr(config, name) for name in PROMPT_SETTINGS}
    set_tokenizer_sides(tokenizer, settings)
    batch = build_teacher_batch(
        responses,
        response_mask,
        rewards.unsqueeze(-1),
        [[dict(message) for message in prompt] for prompt in prompts],
        uids,
        {"feedback": list(feedbacks)},
        tokenizer,
        loss_mode="sdpo",
        self_distillation=settings,
        apply_chat_template_kwargs=template_kwargs,
    )
    assert batch is not None
    return batch


@torch.no_grad()
def reference_corrections(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    size: int,
    *,
    sampled: Tensor | None,
) -> dict[str, Tensor]:
    """Compute the reference's `old_log_probs` `(B, T)` before an update, and `rollout_is_weights`.

    Args:
        replica: at the state before the update.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included.
        size: rows per forward pass.
        sampled: the sampler's log-probs `(B, T)`; None for no weights. A token that it could not
            score, NaN, gets the weight 1, which the reference has no rule for.
    """
    old = log_probs_of(replica, batch, config, size)
    corrected = {"old_log_probs": old}
    limit = config.rollout_is_threshold
    if sampled is not None and limit is not None and batch["response_mask"].any():
        known = torch.where(sampled.isnan(), old, sampled.to(old.dtype))
        weights = rollout_is_weights(old, known, batch["response_mask"], limit)
        corrected["rollout_is_weights"] = weights
    return corrected


@torch.no_grad()
def log_probs_of(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    size: int,
    weights: Weights | None = None,
) -> Tensor:
    """Compute the log-probs of the responses `(B, T)` by the reference, in evaluation mode.

    Args:
        replica: whose student answers.
        batch: rows of the whole update under the reference's names.
        config: settings; `temperature` included.
        size: rows per forward pass.
        weights: with which the student answers, by name; None for its own, and its own for others.
    """
    student, names = replica.student, (*MODEL_INPUTS, "responses")
    training, own = student.training, dict(student.named_parameters())
    chosen = {name: tensor.to(own[name].dtype) for name, tensor in (weights or {}).items()}

    def answer(**inputs: Any) -> Any:
        return functional_call(student, chosen, (), inputs)

    module: Any = answer if chosen else student
    replica.answers(batch["responses"].shape[1])
    student.eval()
    parts = zip(*(batch[name].split(size) for name in names), strict=True)
    found = [
        forward_micro_batch(
            module,
            dict(zip(names, part, strict=True)),
            config.temperature,
            outputs=outputs_by_piece,
        )["log_probs"]
        for part in parts
    ]
    student.train(training)
    return torch.cat(found)
