"""Lets the fork's actor run without a process group, on the CPU and with plain torch kernels.

What is replaced: the rank, which it asks for to print; the device, where a GPU would be chosen;
flash-attn's cross entropy, which takes no CPU tensors, by the fork's own one of plain torch; and
flash-attn's functions for packed rows by those that the fork has for another accelerator, which are
plain torch and give the same values.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from sdpo.parity.live_fork.modules import ATTENTION, DP_ACTOR, TORCH_FUNCTIONAL, live_module

FLASH_CROSS_ENTROPY = "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE"
"""The fork's name of its switch, as it is spelt there."""

PackingFunctions = tuple[Callable[..., object], ...]


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Run the fork's functions inside: no process group, no GPU, no flash-attn, nothing printed."""
    actor, functional = live_module(DP_ACTOR), live_module(TORCH_FUNCTIONAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.distributed, "get_rank", _first_rank))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        # a float32 autocast, which is none, is warned of in each forward pass
        warnings.simplefilter("ignore")
        for name in ("get_device_id", "get_device_name"):
            stack.enter_context(mock.patch.object(actor, name, _cpu))
        for name in (FLASH_CROSS_ENTROPY, "NPU_CROSS_ENTROPY_LOSS_AVAILABLE"):
            if hasattr(functional, name):
                stack.enter_context(mock.patch.object(functional, name, False))
        attention = live_module(ATTENTION)
        stack.enter_context(
            mock.patch.object(attention, "_get_attention_functions", _plain_packing)
        )
        yield


def _first_rank() -> int:
    """The rank of the one process."""
    return 0


def _cpu() -> str:
    """The device, by name and as where tensors are moved to."""
    return "cpu"


def _plain_packing() -> PackingFunctions:
    """The fork's functions for packed rows that need no flash-attn, in the order it takes them."""
    plain = live_module("verl.utils.npu_flash_attn_utils")
    return plain.index_first_axis, plain.pad_input, plain.rearrange, plain.unpad_input
