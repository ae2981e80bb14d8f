"""Checks of a run's settings before anything is trained."""

import inspect
import os
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sdpo.fused.hidden_states import check_head
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.teacher_weights import evaluating
from sdpo.update.actor_update import response_logits
from sdpo.update.schedule import Schedule


class SDPOWarning(UserWarning):
    """Training goes on, but does not do what was probably meant."""


def effective_config(config: SDPOConfig, args: Any, schedule: Schedule) -> SDPOConfig:
    """The loss settings of a run, with what TRL's settings decide.

    Raises:
        ConfigError: a temperature or gradient limit other than the default contradicts TRL's.
    """
    for name, theirs in (("temperature", "temperature"), ("grad_clip", "max_grad_norm")):
        own, other = getattr(config, name), getattr(args, theirs)
        if own not in (getattr(SDPOConfig, name), other):
            raise ConfigError(
                f"SDPOConfig.{name}={own} contradicts GRPOConfig.{theirs}={other}, which rules: "
                "set both to the same value, or leave the former out"
            )
    _warn_of_idle_terms(config, args)
    # On-policy the ratio is exactly 1, so that a cap of 1 or more never acts.
    idle = schedule.on_policy and config.is_clip is not None and config.is_clip >= 1
    is_clip = None if idle else config.is_clip
    return replace(config, temperature=args.temperature, is_clip=is_clip)


def _warn_of_idle_terms(config: SDPOConfig, args: Any) -> None:
    """Warn of TRL's terms where nothing of TRL's loss, which they are part of, is mixed in."""
    ours = {"beta": "use_kl_loss=True, kl_loss_coef", "entropy_coef": "entropy_coeff"}
    if config.hybrid_lambda:
        return
    for theirs, own in ours.items():
        if value := getattr(args, theirs, 0.0):
            warnings.warn(
                f"GRPOConfig.{theirs}={value} is part of TRL's GRPO loss, of which hybrid_lambda=0 "
                f"takes nothing, and so has no effect: set SDPOConfig({own}={value})",
                SDPOWarning,
                stacklevel=4,
            )


def sharding_asked_for(args: Any) -> dict[str, bool]:
    """Whether the launcher or TRL's settings ask for sharding, known before anything is loaded.

    accelerate passes its configuration file on in the environment. Without a GPU it drops a request
    for FSDP without a word, so that training would go on as plain data parallelism.
    """
    found = {}
    for name in ("fsdp", "deepspeed"):
        launched = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true"
        found[name] = launched or bool(getattr(args, name, None))
    return found


def check_sharding(*, fsdp: bool, deepspeed: bool) -> None:
    """Check that every process holds whole weights.

    Raises:
        ConfigError: FSDP or DeepSpeed is on. The student's parameters would be pieces, the teacher
            whole, so that their average would fail, or mix weights that do not belong together.
    """
    found = [name for name, on in (("FSDP", fsdp), ("DeepSpeed", deepspeed)) if on]
    if found:
        raise ConfigError(
            f"{' and '.join(found)} shards the student, which the teacher does not "
            "support: neither its moving average nor its forward pass. Use data parallelism "
            "(accelerate launch --multi_gpu, without a sharding configuration; "
            "teacher_mode='lora_ema' needs no second model), or enabled=False for plain GRPO"
        )


def check_tokenizer(processing_class: Any) -> None:
    """Check that rows can be padded.

    Raises:
        ConfigError: there is neither a padding nor an end token.

    Warns:
        SDPOWarning: there is no padding token, so that TRL pads with the end token.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None or tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise ConfigError(
            "the tokenizer has no padding token and no end token: set tokenizer.pad_token"
        )
    warnings.warn(
        f"the tokenizer has no padding token; {tokenizer.eos_token!r} pads from here on. Masks "
        "keep padding apart from the real end of a completion",
        SDPOWarning,
        stacklevel=3,
    )


def check_grpo_loss(parent: type, config: SDPOConfig) -> None:
    """Check that a GRPO loss that is to be mixed in is TRL's own.

    Args:
        parent: `trl.GRPOTrainer`, or what Unsloth has put in its place.
        config: the settings.

    Raises:
        ConfigError: a hybrid run on a class whose `compute_loss` does not call `_compute_loss`.
    """
    compute_loss: Any = inspect.unwrap(parent.compute_loss)  # pyright: ignore[reportAttributeAccessIssue]
    if config.hybrid_lambda and "_compute_loss" not in compute_loss.__code__.co_names:
        raise ConfigError(
            f"hybrid_lambda={config.hybrid_lambda} mixes TRL's GRPO loss in, but {parent.__name__} "
            "of this process has another one (importing unsloth replaces it): train without it, "
            "or set hybrid_lambda=0"
        )


def check_model(model: nn.Module, config: SDPOConfig, args: Any) -> None:
    """Check that the model can be computed as the settings ask.

    Raises:
        ConfigError: as `sdpo.fused.hidden_states.check_head` or `check_shared_prompts`, or the
            student is to share prompts with gradient checkpointing.
    """
    if config.loss_implementation == "fused":
        check_head(model)
    switches = [getattr(module, "gradient_checkpointing", False) for module in model.modules()]
    if config.shares_prompts("student") and (args.gradient_checkpointing or any(switches)):
        raise ConfigError(
            "share_prompts='both' keeps a prompt's keys and values for its rows, which gradient "
            "checkpointing drops: set GRPOConfig.gradient_checkpointing=False (TRL's default is "
            "True) and do not enable it on the model, or use share_prompts='teacher'"
        )
    if config.share_prompts != "none":
        check_shared_prompts(model)


@torch.no_grad()
def check_shared_prompts(model: Any) -> None:
    """Check that rows go on from a shared prompt as from their own.

    Two rows of random tokens with one prompt, padded, are computed in both ways, and once more
    without their prompt.

    Raises:
        ConfigError: as `sdpo.update.shared_prefix.model_inputs`, or the logits are others.
    """
    embedding = model.get_input_embeddings()
    random = torch.Generator().manual_seed(0)
    prompt, answers = torch.randint(embedding.num_embeddings, (2, 2, 8), generator=random)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[:, :2] = 0
    batch = {
        "input_ids": torch.cat([prompt[:1].expand(2, -1), answers], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "responses": answers,
    }
    batch = {name: tensor.to(embedding.weight.device) for name, tensor in batch.items()}
    seen = batch["attention_mask"].clone()
    seen[:, :7] = 0
    with evaluating(model):
        whole, shared = (response_logits(model, batch, share_prompts=on) for on in (False, True))
        alone = response_logits(model, {**batch, "attention_mask": seen})
    gap, effect = (float((other.float() - whole.float()).norm()) for other in (shared, alone))
    tolerance = 32 * torch.finfo(whole.dtype).eps * float(whole.float().norm())
    if not (gap <= tolerance and gap < effect / 2):
        raise ConfigError(
            f"{type(model).__name__} answers otherwise if rows go on from a shared prompt: the "
            f"logits move by {gap:.2g}, and by {effect:.2g} if they see no prompt. Use "
            "share_prompts='none'"
        )
