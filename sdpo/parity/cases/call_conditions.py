"""How a loss is called on a case: the form of its tensors, its arguments, and what is around it.

None of this may change a result. Recorded cases are called plainly; generated ones vary it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["contiguous", "slice", "transposed", "non-leaf"]
Order = Literal["alone", "after another", "around another", "backward twice", "no_grad"]


@dataclass(frozen=True)
class CallConditions:
    """How a loss is called.

    Attributes:
        layout: of the tensors: `contiguous` leaves; a `slice` of larger tensors, `transposed` in
            memory, or `non-leaf` copies; the student's logits have a graph to their leaf.
        by_position: the four inputs are passed by position, where the protocol has them.
        incoming: gradient that arrives at the loss: a power of two, so that dividing the result by
            it is exact.
        autocast: call it under autocast to bfloat16.
        teacher_grad: whether the teacher's logits require grad.
        order: `alone`; `after another` call, on other values of the same shapes; `around another`:
            that call comes between forward and backward; `backward twice`, on the same graph;
            under `no_grad`, for the loss alone.
    """

    layout: Layout = "contiguous"
    by_position: bool = False
    incoming: float = 1.0
    autocast: bool = False
    teacher_grad: bool = True
    order: Order = "alone"

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """What the call of the loss stands in."""
        grad = torch.no_grad() if self.order == "no_grad" else torch.enable_grad()
        with grad, torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            yield

    def laid_out(self, tensor: Tensor) -> Tensor:
        """The same values in another layout, with a graph to the tensor where it requires grad."""
        if self.layout == "slice":
            filler = torch.zeros_like(tensor[..., :1])
            return torch.cat([filler, tensor, filler], dim=-1)[..., 1:-1]
        if self.layout == "transposed":
            if tensor.dim() < 2:
                return tensor.repeat_interleave(2)[::2]
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        return tensor if self.layout == "contiguous" else tensor.clone()

    def all_laid_out(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each of some tensors in this layout."""
        return {name: self.laid_out(tensor) for name, tensor in tensors.items()}


PLAIN_CALL = CallConditions()
"""How recorded cases are called."""
