"""The real functions of a checkout of lasgroup/SDPO, on a CPU and in one process.

The checkout is the folder in `SDPO_VERL_CHECKOUT`; the environment needs what it imports: ray,
tensordict, omegaconf, codetiming, hydra-core, torchdata, datasets, peft, accelerate, orjson, einops
and transformers below 5. No process of ray starts.

Nothing of it is replaced but the rank, which it asks for to print, the groups of a dynamic batch,
which are noted, and flash-attn's packing, in whose place its own plain functions are taken.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

CHECKOUT = os.environ.get("SDPO_VERL_CHECKOUT", "")
needs_checkout = pytest.mark.skipif(
    not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO"
)
CORE, ACTOR = "verl.trainer.ppo.core_algos", "verl.workers.actor.dp_actor"
TRAINER, CONFIG = "verl.trainer.ppo.ray_trainer", "verl.workers.config"
NAMES = {  # of the actor's outputs, as the recording has them
    "topk_indices": "student_topk_indices",
    "entropys": "entropy",
}
GIVEN = (
    *(f"{side}_{kind}" for side in ("student", "teacher") for kind in ("log_probs",)),
    *(f"{side}_{kind}_log_probs" for side in ("student", "teacher") for kind in ("topk", "all")),
)

Tensors = dict[str, Tensor]


@cache
def module(name: str) -> ModuleType:
    """A module of the checkout, or of what it needs."""
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    return importlib.import_module(name)


@contextlib.contextmanager
def one_process(*, packed: bool = False) -> Iterator[None]:
    """No process group is needed, and what the actor prints is not shown."""

    def functions() -> tuple[Callable[..., Any], ...]:
        plain = module("verl.utils.npu_flash_attn_utils")
        return plain.index_first_axis, plain.pad_input, plain.rearrange, plain.unpad_input

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.distributed, "get_rank", return_value=0))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if packed:
            attention = module("verl.utils.attention_utils")
            stack.enter_context(mock.patch.object(attention, "_get_attention_functions", functions))
        yield


def distillation(settings: Mapping[str, Any]) -> Any:
    """The checkout's settings of the distillation."""
    return module(CONFIG).SelfDistillationConfig(**settings)


def actor(
    settings: Mapping[str, Any],
    of_distillation: Mapping[str, Any],
    student: nn.Module,
    optimizer: Any = None,
) -> Any:
    """The checkout's actor; `settings` as in the recording, with `compute_dtype`."""
    own, config = dict(settings), module(CONFIG)
    dtype = own.pop("compute_dtype", "float32")
    made = config.FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_torch_compile=False,
        policy_loss=config.PolicyLossConfig(loss_mode="sdpo"),
        self_distillation=distillation(of_distillation),
        fsdp_config=config.FSDPEngineConfig(dtype=dtype),
        **own,
    )
    return module(ACTOR).DataParallelPPOActor(made, student, optimizer)


class Watched:
    """Notes what passes through the checkout's actor, under the names of the recording."""

    def __init__(self, made: Any) -> None:
        self.actor, self.tensors, self.groups = made, {}, []
        self.forward, self.step = made._forward_micro_batch, made._optimizer_step
        made._forward_micro_batch, made._optimizer_step = self._forward, self._step
        self.outputs: list[Any] = []
        self.micro = self.mini = self.update = 0
        self.rows = 0
        self.real_groups: Any = None

    def put(self, label: str, name: str, value: Tensor | None) -> None:
        if value is not None:
            self.tensors[f"u{self.update}.{label}.{name}"] = value.detach().clone()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self.outputs.append(self.forward(*args, **kwargs))
        return self.outputs[-1]

    def _loss(self, **kwargs: Any) -> Any:
        seen: list[tuple[Tensor, Tensor]] = []
        core, real = module(CORE), module(CORE).agg_loss

        def noted(loss_mat: Tensor, loss_mask: Tensor, *args: Any, **more: Any) -> Tensor:
            seen.append((loss_mat, loss_mask))
            return real(loss_mat, loss_mask, *args, **more)

        with mock.patch.object(core, "agg_loss", noted):
            loss, metrics = core.compute_self_distillation_loss(**kwargs)
        label = f"mb{self.micro}"
        self.micro += 1
        for name in GIVEN:
            self.put(label, name, kwargs.get(name))
        ((loss_mat, loss_mask),) = seen
        self.put(label, "old_log_probs_used", kwargs["old_log_probs"])
        self.put(label, "per_token_loss", loss_mat)
        self.put(label, "loss_mask", loss_mask)
        self.put(label, "loss", loss)
        for name, ours in NAMES.items():
            self.put(label, ours, self.outputs[-2].get(name))
        return loss, metrics

    def _step(self) -> Tensor:
        for name, parameter in self.actor.actor_module.named_parameters():
            self.put(f"mini{self.mini}", f"grad.{name}", parameter.grad)
        self.mini += 1
        return self.step()

    def _prepared(self, *args: Any, **kwargs: Any) -> Any:
        parts, rows = self.real_groups(*args, **kwargs)
        # of a mini-batch; the transcription takes rows of the batch
        size = self.actor.config.ppo_mini_batch_size
        first = len(self.groups) % -(-self.rows // size) * size
        self.groups.append([[first + row for row in group] for group in rows])
        return parts, rows

    def update_policy(self, batch: Tensors, temperature: float) -> dict[str, Any]:
        """One update; its tensors, and per optimizer step the rows of its micro-batches."""
        code = module(ACTOR)
        self.real_groups, self.rows = code.prepare_dynamic_batch, len(next(iter(batch.values())))
        self.micro, self.mini, self.groups = 0, 0, []
        data = module("verl").DataProto.from_dict(
            tensors={name: tensor.clone() for name, tensor in batch.items()},
            meta_info={"temperature": temperature},
        )
        with (
            mock.patch.object(code, "compute_self_distillation_loss", self._loss),
            mock.patch.object(code, "prepare_dynamic_batch", self._prepared),
        ):
            metrics = self.actor.update_policy(data)
        teacher = self.actor.teacher_module
        modules = {"actor": self.actor.actor_module, "teacher": teacher}
        modules["teacher"] = getattr(teacher, "ref_module", teacher)
        for label, weights in modules.items():
            for name, value in ({} if weights is None else weights.state_dict()).items():
                self.put(label, name, value)
        self.update += 1
        return metrics


class Answers(nn.Module):
    """A model whose answer is given: `(B, T, V)` logits, then one position that is not used."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: Any) -> SimpleNamespace:
        more = torch.zeros_like(self.logits[:, :1])
        return SimpleNamespace(logits=torch.cat([self.logits, more], 1))


def teacher_batch(
    batch: Mapping[str, Any], settings: Mapping[str, Any], tokenizer: Any, template: Any
) -> Any:
    """The checkout's teacher batch and its metrics; None without one.

    Its trainer's own `__init__` is called: it sets the tokenizer's sides and then refuses to go on
    without workers.
    """
    import numpy as np

    def objects(rows: list[Any]) -> Any:
        made = np.empty(len(rows), dtype=object)
        for row, value in enumerate(rows):
            made[row] = value
        return made

    own = {"policy_loss": {"loss_mode": "sdpo"}, "self_distillation": dict(settings)}
    config = module("omegaconf").OmegaConf.create(
        {
            "actor_rollout_ref": {"hybrid_engine": False, "actor": own},
            "data": {"apply_chat_template_kwargs": template},
        }
    )
    kind = module(TRAINER).RayPPOTrainer
    trainer = kind.__new__(kind)
    with contextlib.suppress(AssertionError):
        trainer.__init__(config, tokenizer, {}, None)
    responses = batch["responses"].clone()
    data = module("verl").DataProto.from_dict(
        tensors={
            "responses": responses,
            "input_ids": responses.clone(),
            "response_mask": batch["response_mask"].clone(),
        },
        non_tensors={"uid": objects(batch["uids"]), "raw_prompt": objects(batch["raw_prompt"])},
    )
    return trainer._maybe_build_self_distillation_batch(
        data, batch["token_level_rewards"].clone(), batch["reward_extra_infos"]
    )
