"""The reference's actor update: mini-batches, optimizer step, teacher update.

A transcription of the verl fork's actor, written from its specification and checked against
recorded updates. It keeps the order of operations, the dtypes and the quirks of the original, also
where they look wrong. Models are called as in `forward.py`.

Out of scope: several ranks, fused kernels, gradient scaling for float16, other loss modes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.reference.forward import MODEL_INPUTS, Batch, forward_micro_batch, logit_outputs
from sdpo.reference.hooks import Hooks
from sdpo.reference.loss import (
    LOSS_AGG_MODES,
    agg_loss,
    compute_self_distillation_loss,
    masked_sum,
)

Groups = Sequence[Sequence[int]]
Metrics = dict[str, float | list[float]]

OTHERS = ("responses", "response_mask", "old_log_probs", "advantages")
LOSS_SETTINGS = ("distillation_topk", "distillation_add_tail", "alpha", "is_clip", "loss_agg_mode")
TEACHER = (*(f"teacher_{name}" for name in MODEL_INPUTS), "self_distillation_mask")
REQUIRED = (*MODEL_INPUTS, *OTHERS, *TEACHER)


@dataclass(frozen=True)
class UpdateSettings:
    """Settings under the reference's names; ValueError for a value that the reference rejects."""

    ppo_mini_batch_size: int
    ppo_micro_batch_size_per_gpu: int
    ppo_epochs: int = 1
    loss_agg_mode: str = "token-mean"
    grad_clip: float | None = 1.0  # None is refused only at the first step
    entropy_coeff: float = 0.0
    calculate_entropy: bool = False
    use_kl_loss: bool = False
    kl_loss_coef: float = 0.001
    kl_loss_type: str = "low_var_kl"
    use_dynamic_bsz: bool = False
    ppo_max_token_len_per_gpu: int = 16384  # unused: the groups are an input
    compute_dtype: str = "float32"
    use_remove_padding: bool = False
    use_fused_kernels: bool = False
    full_logit_distillation: bool = True
    alpha: float = 0.0
    distillation_topk: int | None = None
    distillation_add_tail: bool = True
    is_clip: float | None = None
    teacher_regularization: str = "ema"
    teacher_update_rate: float = 0.05

    def __post_init__(self):
        accepted = {
            "alpha": 0.0 <= self.alpha <= 1.0,
            "teacher_regularization": self.teacher_regularization in ("ema", "trust-region"),
            "teacher_update_rate": 0.0 <= self.teacher_update_rate <= 1.0,
            "distillation_topk": self.distillation_topk is None or self.distillation_topk > 0,
            "is_clip": self.is_clip is None or not self.is_clip <= 0,
            "loss_agg_mode": self.loss_agg_mode in LOSS_AGG_MODES,
            # the only ones transcribed: float16 scales its gradients
            "kl_loss_type": self.kl_loss_type == "low_var_kl",
            "compute_dtype": self.compute_dtype in ("float32", "bfloat16"),
        }
        if wrong := {name: getattr(self, name) for name, fine in accepted.items() if not fine}:
            raise ValueError(f"settings outside the accepted range: {wrong}")


class TrustRegionTeacher(nn.Module):
    """A teacher whose logits lie between a frozen reference and the live student."""

    def __init__(self, reference: nn.Module, student: nn.Module, mix: float):
        super().__init__()
        self.reference = reference
        self.student = student
        self.mix = mix

    def forward(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        """Both forwards on the same inputs, mixed before any temperature."""
        reference = self.reference(*args, **kwargs).logits
        student = self.student(*args, **kwargs).logits
        return SimpleNamespace(logits=torch.lerp(reference, student, self.mix))


def low_var_kl(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Low-variance estimate of the KL to the reference policy, per token."""
    log_ratio = torch.clamp(ref_log_probs - log_probs, min=-20.0, max=20.0)
    return torch.clamp(torch.exp(log_ratio) - log_ratio - 1, min=-10.0, max=10.0)


def masked_mean(values: Tensor, mask: Tensor, axis: int | None = None) -> Tensor:
    """Mean over the places where the mask is 1, with 1e-8 added to the count."""
    return masked_sum(values, mask, axis) / (mask.sum(axis) + 1e-8)


def rollout_metrics(log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the trained policy is from the sampler on the unmasked tokens of `(B, T)`.

    Raises:
        AssertionError: the mask is all zero.
    """
    assert mask.any(), "the metrics of the rollout need at least one unmasked token"
    training = masked_mean(log_probs, mask, axis=-1)
    rollout = masked_mean(rollout_log_probs, mask, axis=-1)
    log_ratio = log_probs - rollout_log_probs
    difference = rollout - training
    token_ratio = torch.clamp(log_ratio, min=-20.0, max=20.0).exp()
    row_log_ratio = torch.clamp(masked_sum(log_ratio, mask, -1), min=-20.0, max=20.0)
    metrics = {
        "training_ppl": torch.exp(-training).mean(),
        "training_log_ppl": (-training).mean(),
        "kl": masked_mean(rollout_log_probs - log_probs, mask),
        "k3_kl": masked_mean(torch.exp(log_ratio) - log_ratio - 1, mask),
        "rollout_ppl": torch.exp(-rollout).mean(),
        "rollout_log_ppl": (-rollout).mean(),
        "log_ppl_diff": difference.mean(),
        "log_ppl_abs_diff": difference.abs().mean(),
        "log_ppl_diff_max": difference.max(),
        "log_ppl_diff_min": difference.min(),
        "ppl_ratio": torch.exp(difference).mean(),
        "chi2_token": masked_mean(token_ratio.square(), mask) - 1.0,
        "chi2_seq": torch.exp(2.0 * row_log_ratio).mean() - 1.0,
    }
    return {f"rollout_corr/{name}": value.item() for name, value in metrics.items()}


@dataclass
class Actor:
    """Actor, optimizer and teacher between updates; `update_policy` is one update.

    Without a `teacher_module` the live actor is the teacher. `outputs` is for `logit_outputs`.
    """

    actor_module: nn.Module
    actor_optimizer: torch.optim.Optimizer
    settings: UpdateSettings
    teacher_module: nn.Module | None = None
    hooks: Hooks = field(default_factory=Hooks, repr=False)
    outputs: Callable[..., dict[str, Tensor]] = logit_outputs
    sums: dict[str, float] = field(default_factory=dict, init=False)
    logged: dict[str, list[float]] = field(default_factory=dict, init=False)

    @property
    def metrics(self) -> Metrics:
        """Metrics of the last update: sums over its micro-batches, and lists of values."""
        return {**self.sums, **self.logged}

    def update_policy(
        self, batch: Batch, temperature: float, dynamic_groups: Sequence[Groups] | None = None
    ) -> Metrics:
        """All epochs and mini-batches, then the teacher; changes actor, optimizer and teacher.

        `batch` holds the tensors named in `REQUIRED`, optionally `rollout_is_weights`,
        `rollout_log_probs` and `ref_log_prob`. `dynamic_groups`, for dynamic batches only, gives
        per optimizer step the rows of its micro-batches. Returns the reference's metrics.

        Raises:
            AssertionError: a tensor of the teacher's is missing; sampled-token mode with alpha not
                1; `rollout_log_probs` with a micro-batch that has no response token; no grad_clip.
            KeyError: another tensor is missing.
            ValueError: trust region without a teacher of its own, or with fused kernels; these with
                top-k or full support; EMA without a teacher of its own (quirk: only after the
                optimizer has stepped).
            ZeroDivisionError: micro-batch larger than mini-batch.
        """
        self.actor_module.train()
        self._check(batch)
        all_rows, size = range(batch["responses"].size(0)), self.settings.ppo_mini_batch_size
        mini_batches = [all_rows[start : start + size] for start in all_rows[::size]]
        on_policy = len(mini_batches) == 1 and self.settings.ppo_epochs == 1
        self.sums, self.logged = {"actor/pg_loss": 0.0, "actor/kl_loss": 0.0}, {}
        grad_norms: list[float] = []
        for mini_batch in mini_batches * self.settings.ppo_epochs:
            step = len(grad_norms)
            dynamic = dynamic_groups[step] if dynamic_groups else None
            self.actor_optimizer.zero_grad()
            for number, (rows, scale) in enumerate(self._groups(mini_batch, dynamic)):
                part = {name: tensor[list(rows)] for name, tensor in batch.items()}
                with self.hooks.micro_batch(step, number):
                    self._micro_batch(part, temperature, on_policy, scale, (step, number))
            grad_norms.append(self._optimizer_step(step))
        self.logged["actor/grad_norm"] = grad_norms
        self.actor_optimizer.zero_grad()
        if any(math.isfinite(norm) for norm in grad_norms):
            self._update_teacher()
        teacher = getattr(self.teacher_module, "reference", self.teacher_module)
        self.hooks.after_update(self.actor_module, teacher)
        return self.metrics

    def _check(self, batch: Batch) -> None:
        for name in TEACHER:
            assert name in batch, f"the batch lacks {name}"
        further = ["ref_log_prob"] if self.settings.use_kl_loss else []
        if missing := [name for name in (*REQUIRED, *further) if name not in batch]:
            raise KeyError(f"the batch lacks {missing}")

    def _check_teacher(self) -> None:
        settings, teacher = self.settings, self.teacher_module
        trust_region = settings.teacher_regularization == "trust-region"
        if trust_region and settings.use_fused_kernels:
            raise ValueError("a trust-region teacher mixes logits: switch use_fused_kernels off")
        if settings.full_logit_distillation and settings.use_fused_kernels:
            raise ValueError("use_fused_kernels gives no top-k or full log-probs: switch it off")
        if trust_region and (teacher is None or teacher is self.actor_module):
            raise ValueError("trust-region needs a teacher module of its own")

    def _groups(self, rows: range, dynamic: Groups | None) -> list[tuple[Sequence[int], float]]:
        """Rows and scale of each micro-batch of a mini-batch."""
        mini, size = self.settings.ppo_mini_batch_size, self.settings.ppo_micro_batch_size_per_gpu
        if self.settings.use_dynamic_bsz:
            assert dynamic is not None, "use_dynamic_bsz needs dynamic_groups"
            return [(group, len(group) / mini) for group in dynamic]
        # Quirk: a short last mini-batch, or one that does not divide, keeps this scale.
        scale = 1 / (mini // size)
        return [(rows[i : i + size], scale) for i in range(0, len(rows), size)]

    def _forward(self, batch: Batch, temperature: float) -> tuple[dict[str, Tensor], ...]:
        """Outputs of student and teacher, the teacher's on the student's top-k indices."""
        self._check_teacher()
        settings, module = self.settings, self.actor_module
        full, topk = settings.full_logit_distillation, settings.distillation_topk
        options: dict[str, Any] = {
            "topk": topk if full else None,
            "all_log_probs": full and topk is None,
            "remove_padding": settings.use_remove_padding,
            "compute_dtype": getattr(torch, settings.compute_dtype),
            "outputs": self.outputs,
        }
        entropy = settings.calculate_entropy or settings.entropy_coeff != 0
        student = forward_micro_batch(module, batch, temperature, entropy=entropy, **options)
        options["topk_indices"] = student.get("topk_indices")
        inputs = {name: batch[f"teacher_{name}"] for name in MODEL_INPUTS}
        inputs["responses"] = batch["responses"]
        module = module if self.teacher_module is None else self.teacher_module
        with torch.no_grad():
            return student, forward_micro_batch(module, inputs, temperature, **options)

    def _micro_batch(
        self,
        batch: Batch,
        temperature: float,
        on_policy: bool,
        scale: float,
        place: tuple[int, int],
    ) -> None:
        """Loss, metrics and backward of one micro-batch; gradients add up."""
        student, teacher = self._forward(batch, temperature)
        log_probs = student["log_probs"]
        old_log_probs = log_probs.detach() if on_policy else batch["old_log_probs"]
        kinds = ("log_probs", "topk_log_probs", "all_log_probs")
        values = {f"student_{kind}": student[kind] for kind in kinds if kind in student}
        values |= {f"teacher_{kind}": teacher[kind] for kind in kinds if kind in teacher}
        loss_trace: dict[str, Tensor] = {"old_log_probs_used": old_log_probs}
        pg_loss = compute_self_distillation_loss(
            **values,
            **{name: getattr(self.settings, name) for name in LOSS_SETTINGS},
            full_logit_distillation=self.settings.full_logit_distillation,
            response_mask=batch["response_mask"],
            old_log_probs=old_log_probs,
            self_distillation_mask=batch["self_distillation_mask"],
            rollout_is_weights=batch.get("rollout_is_weights"),
            trace=loss_trace,
        )
        others = {"entropy": "entropy", "student_topk_indices": "topk_indices"}
        further = {name: student[kind] for name, kind in others.items() if kind in student}
        self.hooks.values(*place, {**values, **loss_trace, **further})
        empty = batch["self_distillation_mask"].sum().item() == 0
        self._log({"self_distillation/empty_target_batch": empty})
        if "rollout_log_probs" in batch:
            sampler = batch["rollout_log_probs"]
            self._log(rollout_metrics(log_probs, sampler, batch["response_mask"]))
        policy_loss = self._with_entropy_and_kl(pg_loss, student, batch, scale)
        policy_loss = self.hooks.loss(place[0], policy_loss)
        (policy_loss * scale).backward()
        self.sums["actor/pg_loss"] += pg_loss.detach().item() * scale

    def _with_entropy_and_kl(
        self, pg_loss: Tensor, student: dict[str, Tensor], batch: Batch, scale: float
    ) -> Tensor:
        """The loss with the optional terms, which use the plain response mask."""
        settings, mask, policy_loss = self.settings, batch["response_mask"], pg_loss
        if "entropy" in student:
            entropy = agg_loss(student["entropy"], mask, settings.loss_agg_mode)
            self._log({"actor/entropy": entropy.item()})
            if settings.entropy_coeff != 0:
                # Quirk: in place, so the logged pg_loss includes the entropy term.
                policy_loss -= entropy * settings.entropy_coeff
        if settings.use_kl_loss:
            kl = low_var_kl(student["log_probs"], batch["ref_log_prob"])
            kl_loss = agg_loss(kl, mask, settings.loss_agg_mode)
            policy_loss = policy_loss + kl_loss * settings.kl_loss_coef
            self.sums["actor/kl_loss"] += kl_loss.item() * scale
            self._log({"actor/kl_coef": settings.kl_loss_coef})
        return policy_loss

    def _optimizer_step(self, step: int) -> float:
        """Clip and step; drop the gradients instead if their norm is not finite."""
        parameters = dict(self.actor_module.named_parameters()).values()
        assert self.settings.grad_clip is not None, "the gradient must be clipped: give grad_clip"
        self.hooks.before_step(step, self.actor_module)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm=self.settings.grad_clip).item()
        if math.isfinite(norm):
            self.actor_optimizer.step()
        else:
            self.actor_optimizer.zero_grad()
        self.hooks.after_step(step, self.actor_module, norm)
        return norm

    def _update_teacher(self) -> None:
        settings, teacher = self.settings, self.teacher_module
        if settings.teacher_regularization != "ema" or settings.teacher_update_rate == 0.0:
            return
        if teacher is None or teacher is self.actor_module:
            raise ValueError("EMA needs a teacher module of its own")
        ema_update(*self.hooks.averaged(teacher, self.actor_module), settings.teacher_update_rate)

    def _log(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)


def ema_update(teacher: nn.Module, student: nn.Module, rate: float) -> None:
    """Move every teacher parameter to `(1 - rate) * teacher + rate * student`, in place.

    Quirks: buffers stay; rounds twice in the teacher's dtype, so a low-precision teacher stalls.
    """
    with torch.no_grad():
        for target, source in zip(teacher.parameters(), student.parameters(), strict=False):
            target.data.mul_(1.0 - rate).add_(source.data.to(target.device), alpha=rate)
