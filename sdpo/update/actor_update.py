"""One actor update: stages `accumulate`, `optimizer` and `teacher_update` for a plain torch model.

    for each epoch, each mini-batch:
        for each micro-batch:  scale · loss, gradients add up      accumulate
        clip, step (or skip, if the norm is not finite)            optimizer
    once:  the teacher follows                                     teacher_update

Models are called as `model(input_ids=, attention_mask=, position_ids=, use_cache=False).logits`,
and with `logits_to_keep=` if they take it, so that no prompt is projected on the vocabulary.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sdpo.loss.self_distillation import self_distillation_stages
from sdpo.settings.config import SDPOConfig
from sdpo.update.ema_teacher import check_teacher, teacher_update, trust_region_logits
from sdpo.update.policy_terms import policy_terms
from sdpo.update.shared_prefix import MODEL_INPUTS, forward_parameters, model_inputs

Batch = Mapping[str, Tensor]
Groups = Sequence[Sequence[Sequence[int]]]
MicroBatch = tuple[Sequence[int], float]

OTHERS = ("responses", "response_mask", "old_log_probs", "self_distillation_mask")
REQUIRED = (*MODEL_INPUTS, *(f"teacher_{name}" for name in MODEL_INPUTS), *OTHERS)


@dataclass(frozen=True)
class ForwardSettings:
    """How the models are run, under the reference's names.

    `compute_dtype` below float32 runs them under autocast, and the loss on logits of that dtype.
    `use_remove_padding` gives what the reference's packed rows give: a position that is hidden
    between two others has no answer there, so that the teacher's log-probs of the token behind it
    are 0, as if it were certain. Rows themselves stay padded, which is the same but for rounding.
    """

    compute_dtype: torch.dtype = torch.float32
    use_remove_padding: bool = False


PLAIN_FORWARD = ForwardSettings()


@dataclass
class UpdateReport:
    """What an update did per optimizer step; stage values and gradients only if asked for."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    stepped: list[bool] = field(default_factory=list)
    micro_batches: list[dict[str, Tensor]] = field(default_factory=list, repr=False)
    gradients: list[dict[str, Tensor]] = field(default_factory=list, repr=False)


def actor_update(
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: SDPOConfig,
    *,
    mini_batch_size: int,
    micro_batch_size: int,
    epochs: int = 1,
    groups: Groups | None = None,
    forward: ForwardSettings = PLAIN_FORWARD,
    record: bool = False,
) -> UpdateReport:
    """One update of student, optimizer and teacher, all in place.

    Args:
        student: the policy; put into training mode.
        teacher: for `ema` the averaged copy, for `trust-region` the frozen reference; None lets
            the live student teach, which needs rate 0.
        optimizer: over the student's parameters.
        batch: `input_ids`, `attention_mask`, `position_ids` `(B, P+T)`; the same with the prefix
            `teacher_`, `(B, P'+T)`; `responses`, `response_mask`, `old_log_probs` `(B, T)`;
            `self_distillation_mask` `(B,)`; optionally `rollout_is_weights` `(B, T)`; with
            `use_kl_loss` also `ref_log_prob` `(B, T)`.
        config: loss, policy terms, temperature, clipping and teacher settings.
        mini_batch_size: rows per optimizer step.
        micro_batch_size: rows per forward pass; should divide `mini_batch_size`.
        epochs: passes over the batch.
        groups: the rows of each micro-batch of each optimizer step, in place of equal sizes; for
            all epochs.
        forward: dtype of the forward passes, and whether rows count as packed.
        record: keep the stage values and gradients in the report.

    Raises:
        ValueError: a tensor is missing from the batch, the micro-batch is larger than the
            mini-batch, a student's row that counts as packed hides a position between others, or as
            `check_teacher`; nothing has been changed then.

    Source: `verl/workers/actor/dp_actor.py` 675-921 at 0e6d5106.
    """
    required = (*REQUIRED, "ref_log_prob") if config.use_kl_loss else REQUIRED
    if missing := [name for name in required if name not in batch]:
        raise ValueError(f"the batch lacks {missing}; it must have {required}")
    if forward.use_remove_padding and hidden_between(batch["attention_mask"]):
        raise ValueError(
            "attention_mask hides a position between two others of a row, where the reference's "
            "packed rows have no student to train: use_remove_padding=False"
        )
    parameters = list(student.parameters())
    teacher_parameters = None if teacher is None else list(teacher.parameters())
    names = ("teacher_regularization", "teacher_update_rate")
    settings = {name: getattr(config, name) for name in names}
    check_teacher(teacher_parameters, parameters, **settings)
    steps = plan(len(batch["responses"]), mini_batch_size, micro_batch_size, epochs, groups)
    if len(steps) == 1:
        batch, config = without_ratio(batch, config)
    student.train()
    report = UpdateReport()
    for micro_batches in steps:
        optimizer.zero_grad()
        traces = report.micro_batches if record else None
        report.losses.append(
            accumulate(student, teacher, batch, micro_batches, config, traces, forward)
        )
        if record:
            named = student.named_parameters()
            report.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        norm = optimizer_step(optimizer, parameters, config.grad_clip)
        report.grad_norms.append(norm)
        report.stepped.append(math.isfinite(norm))
    optimizer.zero_grad()
    teacher_update(teacher_parameters, parameters, **settings, stepped=any(report.stepped))
    return report


def without_ratio(batch: Batch, config: SDPOConfig) -> tuple[Batch, SDPOConfig]:
    """Batch and settings for an on-policy loss, whose ratio is 1, or its cap where that is below.

    The old log-probs would be the current ones; the cap becomes a rollout weight.
    """
    if config.is_clip is not None and config.is_clip < 1:
        ones = torch.ones_like(batch["response_mask"], dtype=torch.float32)
        weights = batch.get("rollout_is_weights", ones) * config.is_clip
        batch = {**batch, "rollout_is_weights": weights}
    return batch, replace(config, is_clip=None)


def rows_with_signal(batch: Batch) -> Batch:
    """The rows that have a teacher prompt: the others add nothing to the loss, in any mode.

    The first row stands in if there is none, so that every process takes part.
    """
    rows = batch["self_distillation_mask"].nonzero().squeeze(-1)
    rows = rows if len(rows) else rows.new_zeros(1)
    return {name: tensor[rows] for name, tensor in batch.items()}


def plan(
    rows: int, mini_size: int, micro_size: int, epochs: int = 1, groups: Groups | None = None
) -> list[list[MicroBatch]]:
    """Rows and scale of every micro-batch, for each optimizer step.

    The scale is verl's: with equal sizes 1 ÷ (mini-batch size // micro-batch size), also where the
    last mini-batch is short; with given groups their rows ÷ mini-batch size.

    Raises:
        ValueError: micro-batch larger than mini-batch.
    """
    if groups is not None:
        return [[(part, len(part) / mini_size) for part in step] for step in groups]
    if not 0 < micro_size <= mini_size:
        raise ValueError(
            f"the micro-batch size must lie in [1, mini-batch size {mini_size}], not {micro_size}"
        )
    scale, minis = 1 / (mini_size // micro_size), split(range(rows), mini_size)
    return [[(part, scale) for part in split(mini, micro_size)] for mini in minis * epochs]


def split(rows: range, size: int) -> list[range]:
    """Consecutive parts of `size` rows; the last may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def accumulate(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: Batch,
    micro_batches: Iterable[MicroBatch],
    config: SDPOConfig,
    traces: list[dict[str, Tensor]] | None = None,
    forward: ForwardSettings = PLAIN_FORWARD,
) -> float:
    """Stage `accumulate`: add the gradients of all micro-batches to the student's.

    Each loss is normalised by its own micro-batch's tokens or rows, then multiplied by its scale,
    so the result depends on the split. Returns the sum of the scaled losses, without policy terms.
    """
    total, dtype = 0.0, forward.compute_dtype
    for rows, scale in micro_batches:
        part = {name: tensor[list(rows)] for name, tensor in batch.items()}
        tokens = part["responses"], part["response_mask"]
        device = tokens[0].device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            logits = response_logits(student, part)
            of_teacher = teacher_logits(student, teacher, part, config)
        stages = self_distillation_stages(
            logits,
            of_teacher,
            *tokens,
            old_log_probs=part["old_log_probs"],
            self_distillation_mask=part["self_distillation_mask"],
            rollout_is_weights=part.get("rollout_is_weights"),
            teacher_absent=_hidden(part) if forward.use_remove_padding else None,
            config=config,
        )
        terms = policy_terms(logits, *tokens, ref_log_prob=part.get("ref_log_prob"), config=config)
        (terms.added_to(stages.aggregate, config) * scale).backward()
        total += stages.aggregate.item() * scale
        if traces is not None:
            traces.append({name: value.detach() for name, value in stages.named().items()})
    return total


def hidden_between(attention_mask: Tensor) -> bool:
    """Whether a row `(B, L)` attends to positions on both sides of one that it does not."""
    starts = attention_mask.diff(dim=-1, prepend=torch.zeros_like(attention_mask[:, :1])) > 0
    return bool((starts.sum(-1) > 1).any())


def _hidden(batch: Batch) -> Tensor:
    """Find the response tokens `(B, T)` before which the teacher's row hides a position."""
    width = batch["responses"].shape[-1]
    return batch["teacher_attention_mask"][:, -width - 1 : -1] == 0


def response_logits(
    model: nn.Module, batch: Batch, prefix: str = "", *, share_prompts: bool = False
) -> Tensor:
    """Logits `(B, T, V)` before temperature; row `t` predicts response token `t`.

    The arguments are those of `sdpo.update.shared_prefix.model_inputs`.
    """
    inputs = model_inputs(model, batch, prefix, share_prompts=share_prompts)
    width = batch["responses"].shape[-1]
    if "logits_to_keep" in forward_parameters(model):
        inputs["logits_to_keep"] = width + 1
    return model(**inputs).logits[:, -width - 1 : -1]


@torch.no_grad()
def teacher_logits(
    student: nn.Module, teacher: nn.Module | None, batch: Batch, config: SDPOConfig
) -> Tensor:
    """The teacher's logits `(B, T, V)` on its own prompts, before temperature, without gradient."""
    logits = response_logits(student if teacher is None else teacher, batch, "teacher_")
    if config.teacher_regularization == "trust-region":
        live = response_logits(student, batch, "teacher_")
        return trust_region_logits(logits, live, config.teacher_update_rate)
    return logits


def optimizer_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grad_clip: float
) -> float:
    """Stage `optimizer`: clip and step; drop the gradients instead if their norm is not finite.

    Returns the 2-norm of all gradients before clipping.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm=grad_clip).item()
    if math.isfinite(norm):
        optimizer.step()
    else:
        optimizer.zero_grad()
    return norm
