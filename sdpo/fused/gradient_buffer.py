"""Memory of the head's gradient, in which logits lie before it is written.

    logits     S columns, a row for each entry of the vocabulary    ├ 0 ┤├ 1 ┤├ 2 ┤├ 3 ┤
    gradient   H columns, S or fewer                                ├0 ┤├1 ┤├2 ┤├3 ┤ beyond

A block of the gradient is written when the logits of its rows have been read: over them, or over
those of rows before. What lies beyond it serves further logits, and is then given back.
"""

import mmap
from collections.abc import Sequence

import torch

CAN_GIVE_BACK = hasattr(mmap, "MADV_DONTNEED")


class GradientMemory:
    """An empty gradient `(V, H)` and `columns` `(V, S)` of the same memory.

    Args:
        shape: of the gradient.
        columns: S. More than H only on a CPU, and where `CAN_GIVE_BACK`.
        dtype: of both.
        device: of both.
    """

    def __init__(
        self, shape: Sequence[int], columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        height, width = shape
        self._map: mmap.mmap | None = None
        if columns > width:
            size = height * columns * dtype.itemsize
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            whole = torch.frombuffer(self._map, dtype=dtype)
        else:
            whole = torch.empty(height * width, dtype=dtype, device=device)
        self.columns = whole.view(height, -1)
        self.gradient = whole[: height * width].view(height, width)
        self.beyond = whole[height * width :]

    def give_back(self) -> None:
        """Leave what lies beyond the gradient to the system; its values are lost."""
        if self._map is None:
            return
        used = self.gradient.nbytes
        start = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(self._map):
            self._map.madvise(mmap.MADV_DONTNEED, start, len(self._map) - start)


def lies_behind(part: slice, width: int, columns: int) -> bool:
    """Whether the logits of a part of the vocabulary, and of all after, lie behind its gradient.

    Args:
        part: entries of the vocabulary.
        width: columns of the gradient.
        columns: from one entry's logits to the next one's.
    """
    return part.stop * width <= part.start * columns
