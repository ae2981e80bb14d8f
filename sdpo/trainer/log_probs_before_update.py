"""Log-probs of the rollouts that an update needs, computed once before it.

| tensor | policy | needed for |
|---|---|---|
| `old_log_probs` | the student before the update | the ratio, off-policy; rollout weights |
| `ref_log_prob` | the reference policy: the student before training | the KL anchor |
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdpo.fused.hidden_states import response_projection
from sdpo.fused.token_log_probs import token_log_probs
from sdpo.loss.importance import rollout_is_weights
from sdpo.loss.support import log_probs
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.teacher_weights import AdapterWeights, CopyWeights, TeacherWeights, evaluating
from sdpo.update.actor_update import Batch, response_logits
from sdpo.update.rollouts import TRLBatch, update_batch

REFERENCE_ADAPTER = "sdpo_reference"
Forward = Callable[[nn.Module, Batch], Tensor]


class ReferencePolicy:
    """The student as training begins: a second model, or of a PEFT model a second adapter."""

    def __init__(self, model: nn.Module):
        adapters = hasattr(model, "peft_config")
        self.weights: TeacherWeights = (
            AdapterWeights(model, REFERENCE_ADAPTER) if adapters else CopyWeights(model)
        )

    def named_parameters(self) -> dict[str, Tensor]:
        """Return the weights that the student trains by name, as they were."""
        return dict(zip(self.weights.names, self.weights.parameters(), strict=True))

    def answer(self, student: nn.Module, batch: Batch, forward: Forward) -> Tensor:
        """Run a forward pass on the student's own prompts."""
        return self.weights.answer(student, batch, lambda module, rows, _: forward(module, rows))

    def digest(self) -> str:
        """Return what tells these weights from others, bit by bit."""
        found = hashlib.sha256()
        for name, tensor in self.named_parameters().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class LogProbsBeforeUpdate:
    """Computes the tensors of one generation in parts of `rows` rows.

    `config` has TRL's temperature; `on_policy` says that no gradient needs old log-probs.
    """

    config: SDPOConfig
    accelerator: Accelerator
    on_policy: bool
    rows: int
    reference_policy: ReferencePolicy | None

    @torch.no_grad()
    def __call__(self, model: nn.Module, rollouts: TRLBatch) -> dict[str, Tensor]:
        """Compute what the settings need, `(B, T)` each: log-probs, and weights of rollouts."""
        found = self._corrections(model, rollouts)
        if self.reference_policy is not None:
            student = self.accelerator.unwrap_model(model)
            found["ref_log_prob"] = self._in_parts(
                update_batch(rollouts), lambda part: self._of_reference(student, part)
            )
        return found

    def _corrections(self, model: nn.Module, rollouts: TRLBatch) -> dict[str, Tensor]:
        """Old log-probs where a ratio needs them, and weights where the sampler's are known."""
        sampled = rollouts.get("sampling_per_token_logps")
        limit = None if sampled is None else self.config.rollout_is_threshold
        capped = self.config.is_clip is not None and not self.on_policy
        if not capped and limit is None:
            return {}
        batch = update_batch(rollouts)
        old = self.old_log_probs(model, batch)
        found = {"old_log_probs": old}
        if sampled is not None and limit is not None and batch["response_mask"].any():
            # A token that the sampler could not score gets the weight 1.
            sampled = torch.where(sampled.isnan(), old, sampled)
            mask = batch["response_mask"]
            weights = rollout_is_weights(old, sampled, mask, rollout_is_threshold=limit)
            found["rollout_is_weights"] = weights
        return found

    def old_log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute log-probs `(B, T)` under the student before the update, in evaluation mode."""
        with evaluating(model):
            return self._in_parts(batch, lambda part: self._of_student(model, part))

    def _in_parts(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """Compute a few rows at a time."""
        starts = range(0, len(batch["responses"]), self.rows)
        parts = [{n: t[start : start + self.rows] for n, t in batch.items()} for start in starts]
        return torch.cat([compute(part) for part in parts])

    def _of_student(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute log-probs of the responses under the model."""
        temperature, responses = self.config.temperature, batch["responses"]
        fused = self.config.loss_implementation == "fused"
        of_model: Any = response_projection if fused else response_logits
        with self.accelerator.autocast():
            share = self.config.shares_prompts("student")
            answer = of_model(model, batch, share_prompts=share)
        if fused:
            return token_log_probs(answer, responses, temperature)
        return log_probs(answer.float(), responses, temperature=temperature)

    def _of_reference(self, student: nn.Module, batch: Batch) -> Tensor:
        """Compute log-probs of the responses under the reference policy."""
        assert self.reference_policy is not None
        with self.accelerator.autocast():
            logits = self.reference_policy.answer(student, batch, response_logits)
        return log_probs(logits.float(), batch["responses"], temperature=self.config.temperature)
