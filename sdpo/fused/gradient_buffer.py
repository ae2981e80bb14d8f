"""One buffer for the head's gradient, which holds logits before the gradient is written.

    logits     S columns, a row for each vocabulary entry    ├ 0 ┤├ 1 ┤├ 2 ┤├ 3 ┤
    gradient   H columns, S or fewer                         ├0 ┤├1 ┤├2 ┤├3 ┤ tail

A block of the gradient is written once the logits of its rows have been read: over those logits, or
over those of earlier rows. The tail behind the gradient holds the logits of further chunks; its
pages are returned to the operating system when the loss has been computed.
"""

import mmap
from collections.abc import Sequence

import torch

CAN_RELEASE_PAGES = hasattr(mmap, "MADV_DONTNEED")


class GradientBuffer:
    """An uninitialised gradient `(V, H)`, and `logit_columns` `(V, S)` in the same memory.

    Args:
        shape: of the gradient, `(V, H)`.
        columns: S. More than H only on a CPU, and where `CAN_RELEASE_PAGES`.
        dtype: of both.
        device: of both.
    """

    def __init__(
        self, shape: Sequence[int], columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        height, width = shape
        self._pages: mmap.mmap | None = None
        if columns > width:
            size = height * columns * dtype.itemsize
            self._pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory = torch.frombuffer(self._pages, dtype=dtype)
        else:
            memory = torch.empty(height * width, dtype=dtype, device=device)
        self.logit_columns = memory.view(height, -1)
        self.gradient = memory[: height * width].view(height, width)
        self.tail = memory[height * width :]

    def release_tail(self) -> None:
        """Return the tail's pages to the operating system; its values are lost."""
        if self._pages is None:
            return
        used = self.gradient.nbytes
        start = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(self._pages):
            self._pages.madvise(mmap.MADV_DONTNEED, start, len(self._pages) - start)


def gradient_ends_before_logits(part: slice, hidden_size: int, logits_stride: int) -> bool:
    """Whether the gradient of a part of the vocabulary ends before the part's logits begin.

    Args:
        part: entries of the vocabulary.
        hidden_size: columns of the gradient.
        logits_stride: numbers from one entry's logits to the next entry's.
    """
    return part.stop * hidden_size <= part.start * logits_stride
