"""Stand-in: the actor, for plain batches of a fixed size."""

import torch
from torch import nn

from sdpo.reference import update as reference
from sdpo.reference.forward import MODEL_INPUTS, forward_micro_batch, logit_outputs
from verl.trainer.ppo.core_algos import compute_self_distillation_loss
from verl.utils.torch_functional import logprobs_from_logits

FORWARD_NAMES = {"topk_log_probs": "topk_logps", "all_log_probs": "all_logps"}


class TrustRegionTeacher(reference.TrustRegionTeacher):
    """Under the fork's name of its reference module."""

    @property
    def ref_module(self):
        return self.reference


def get_device_id():
    return "cpu"


def get_device_name():
    return "cpu"


def prepare_dynamic_batch(batch, max_token_len):
    raise NotImplementedError


def log_probs_and_support(logits, labels, **options):
    found = logit_outputs(logits, labels, **options)
    return found | {"log_probs": logprobs_from_logits(logits, labels)}


class DataParallelPPOActor:
    """An actor with the fork's methods."""

    def __init__(self, config, actor_module, actor_optimizer=None):
        self.config, self.actor_module = config, actor_module
        self.actor_optimizer, self.teacher_module = actor_optimizer, None
        print("rank", torch.distributed.get_rank())

    def _forward_micro_batch(
        self, micro_batch, temperature, calculate_entropy=False, return_all_logps=False,
        distill_topk=None, topk_indices=None, module=None,
    ):  # fmt: skip
        outputs = forward_micro_batch(
            module or self.actor_module,
            micro_batch,
            temperature,
            outputs=log_probs_and_support,
            topk=distill_topk,
            topk_indices=topk_indices,
            all_log_probs=return_all_logps,
        )
        return {FORWARD_NAMES.get(name, name): value for name, value in outputs.items()}

    def _micro_batch_loss(self, part, temperature, on_policy):
        config = self.config.self_distillation
        full, topk = config.full_logit_distillation, config.distillation_topk
        options = {
            "return_all_logps": full and topk is None,
            "distill_topk": topk if full else None,
        }
        student = self._forward_micro_batch(part, temperature, **options)
        inputs = {name: part[f"teacher_{name}"] for name in MODEL_INPUTS}
        with torch.no_grad():
            teacher = self._forward_micro_batch(
                inputs | {"responses": part["responses"]},
                temperature,
                **options,
                topk_indices=student.get("topk_indices"),
                module=self.teacher_module,
            )
        log_probs = student["log_probs"]
        given = {
            f"{side}_{ours}": outputs.get(theirs)
            for side, outputs in (("student", student), ("teacher", teacher))
            for ours, theirs in FORWARD_NAMES.items()
        }
        return compute_self_distillation_loss(
            student_log_probs=log_probs,
            teacher_log_probs=teacher["log_probs"],
            response_mask=part["response_mask"],
            self_distillation_config=config,
            old_log_probs=log_probs.detach() if on_policy else part["old_log_probs"],
            self_distillation_mask=part["self_distillation_mask"],
            loss_agg_mode=self.config.loss_agg_mode,
            rollout_is_weights=part.get("rollout_is_weights"),
            **given,
        )

    def update_policy(self, data):
        self.actor_module.train()
        size, small = self.config.ppo_mini_batch_size, self.config.ppo_micro_batch_size_per_gpu
        rows, norms, total = len(data.batch["responses"]), [], 0.0
        on_policy = rows <= size and self.config.ppo_epochs == 1
        starts = [*range(0, rows, size)] * self.config.ppo_epochs
        for start in starts:
            self.actor_optimizer.zero_grad()
            for first in range(start, min(start + size, rows), small):
                last = min(first + small, start + size)
                part = {name: tensor[first:last] for name, tensor in data.batch.items()}
                loss, _ = self._micro_batch_loss(part, data.meta_info["temperature"], on_policy)
                (loss * (1 / (size // small))).backward()
                total += loss.item() * (1 / (size // small))
            norms.append(self._optimizer_step().item())
        self.actor_optimizer.zero_grad()
        self._update_teacher()
        return {"actor/pg_loss": total, "actor/grad_norm": norms}

    def _optimizer_step(self):
        norm = nn.utils.clip_grad_norm_(self.actor_module.parameters(), self.config.grad_clip)
        self.actor_optimizer.step()
        return norm

    def _update_teacher(self):
        config = self.config.self_distillation
        if config.teacher_regularization == "ema" and config.teacher_update_rate:
            rate = config.teacher_update_rate
            reference.ema_update(self.teacher_module, self.actor_module, rate)
