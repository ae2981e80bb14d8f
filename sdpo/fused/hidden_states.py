"""Hidden states of a causal language model, and its head, without computing its logits.

The model is called as ever, so that wrappers (PEFT, data parallelism, autocast) do their part; on
the way a hook at the head keeps the head's input and lets only its last token through.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.fused.lm_head import Head, Projection, logits_of
from sdpo.settings.config import ConfigError
from sdpo.update.shared_prefix import model_inputs

REMEDY = "use loss_implementation='logits'"
LARGEST_PROBED_LOGIT = 100.0


def head_of(model: Any) -> tuple[nn.Linear, Head]:
    """The head's module, and what it computes.

    Raises:
        ConfigError: there is no head, it is adapted by LoRA, quantized or otherwise not a plain
            linear layer, or its weight is distributed.
    """
    module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if module is None:
        raise ConfigError(f"{type(model).__name__} names no output embeddings: {REMEDY}")
    if hasattr(module, "lora_A") or hasattr(module, "modules_to_save"):
        raise ConfigError(
            "the fused loss reads the head's weight, but PEFT adapts it: take the head out of "
            f"target_modules and modules_to_save, or {REMEDY}"
        )
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        found = f"{type(module).__name__} with a {type(module.weight).__name__}"
        raise ConfigError(f"the fused loss needs a plain linear head, not {found}: {REMEDY}")
    settings = model.config.get_text_config()
    scale = getattr(settings, "logit_scale", None) or 1.0
    scale /= getattr(settings, "logits_scaling", None) or 1.0
    softcap = getattr(settings, "final_logit_softcapping", None)
    return module, Head(module.weight, module.bias, scale, softcap)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Check that `head_of` describes all that the model does behind its last hidden state.

    A random hidden state is put in front of the head, large enough that a cap would show.

    Raises:
        ConfigError: as `head_of`, or the logits are others.
    """
    module, head = head_of(model)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, module.in_features, generator=random).to(head.weight)
    hidden *= LARGEST_PROBED_LOGIT / (hidden @ head.weight.T).abs().max()
    token = torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)
    handle = module.register_forward_pre_hook(lambda *_: (hidden.unsqueeze(0),))
    training = model.training
    try:
        actual = model.eval()(input_ids=token, use_cache=False).logits[0].float()
    finally:
        handle.remove()
        model.train(training)
    expected = logits_of(Projection(hidden, head), slice(0, len(head.weight)), 1.0).float()
    tolerance = 16 * torch.finfo(head.weight.dtype).eps * max(1.0, abs(head.scale))
    if (actual - expected).abs().max() > tolerance * LARGEST_PROBED_LOGIT:
        raise ConfigError(
            f"{type(model).__name__} does something behind its head that the fused loss does not "
            f"know (bias, scale and soft cap are): {REMEDY}"
        )


def response_projection(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    prefix: str = "",
    *,
    within: Any = None,
    share_prompts: bool = False,
) -> Projection:
    """Hidden states `(B, T, H)` that predict the response tokens, and the head.

    Args:
        model: called with the inputs.
        batch: as for `sdpo.update.actor_update.response_logits`.
        prefix: of the inputs' names.
        within: the language model inside `model`, if that is wrapped.
        share_prompts: as for `sdpo.update.shared_prefix.model_inputs`.

    Raises:
        ConfigError: as `head_of`, or the model does not call its head.
    """
    inputs = model_inputs(model, batch, prefix, share_prompts=share_prompts)
    module, head = head_of(model if within is None else within)
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        kept.append(inputs[0])
        return (inputs[0][:, -1:],)

    handle = module.register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        handle.remove()
    if len(kept) != 1:
        raise ConfigError(f"the model called its head {len(kept)} times instead of once: {REMEDY}")
    width = batch["responses"].shape[-1]
    return Projection(kept[0][:, -width - 1 : -1], head)
