"""Training on top of a model whose weights are quantized to 4 bits."""

from torch import nn

PACKS = "support_avx512bf16_for_cpu"


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit layers on a CPU for inference.

    Where a CPU has bfloat16 in AVX-512, bitsandbytes 0.50 packs a layer as soon as it is used
    without gradients, as in generation. The product with packed weights has no derivative: torch
    warns, and nothing in front of the layer would be trained. Elsewhere nothing changes.
    """
    for module in model.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)
