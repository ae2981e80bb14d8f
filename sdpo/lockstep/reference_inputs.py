"""What the reference derives before an update: teacher prompts, log-probs, rollout weights."""

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
from sdpo.reference.teacher_prompt import build_teacher_batch, set_tokenizer_sides
from sdpo.settings.config import SDPOConfig


def reference_prompts(
    responses: Tensor,
    response_mask: Tensor,
    rewards: Tensor,
    prompts: Sequence[Any],
    feedbacks: Sequence[Any],
    tokenizer: Any,
    config: SDPOConfig,
    *,
    uids: Sequence[int],
    template_kwargs: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The teacher's inputs as the reference builds them, and its stage values.

    `uids` are equal for the rows of a group.
    """
    own = copy.deepcopy(tokenizer)
    settings = {name: getattr(config, name) for name in PROMPT_SETTINGS}
    set_tokenizer_sides(own, settings)
    batch = build_teacher_batch(
        responses,
        response_mask,
        rewards.unsqueeze(-1),
        [[dict(message) for message in prompt] for prompt in prompts],
        uids,
        {"feedback": list(feedbacks)},
        own,
        loss_mode="sdpo",
        self_distillation=settings,
        apply_chat_template_kwargs=template_kwargs,
    )
    assert batch is not None
    return batch.tensors, dict(batch.trace)


@torch.no_grad()
def reference_corrections(
    replica: Replica,
    batch: Mapping[str, Tensor],
    config: SDPOConfig,
    size: int,
    *,
    sampled: Tensor | None,
) -> dict[str, Tensor]:
    """`old_log_probs` `(B, T)` by the reference before an update, and `rollout_is_weights`.

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
    """Log-probs of the responses `(B, T)` by the reference, in evaluation mode.

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
