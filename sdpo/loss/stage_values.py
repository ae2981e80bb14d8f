"""The values of the loss's stages, as they are returned and as audits name them."""

from typing import NamedTuple

from torch import Tensor

from sdpo.loss.support import Support


class TokenStages(NamedTuple):
    """The stages' values for each token, `(…)` or `(…, S)`; `importance` is the token's loss.

    `support` is None where the response token alone is compared; `tails` are both sides' entries of
    a top-k support as the divergence compares them, None where there is no such support.
    """

    student_log_probs: Tensor
    teacher_log_probs: Tensor
    support: Support | None
    tails: tuple[Tensor, Tensor] | None
    divergence: Tensor
    importance: Tensor

    def named(self) -> dict[str, Tensor]:
        """The values by the names under which audits compare them."""
        named = {
            "log_probs.student": self.student_log_probs,
            "log_probs.teacher": self.teacher_log_probs,
        }
        if self.support is not None:
            indices, *sides = self.support
            named["support.student"], named["support.teacher"] = sides
            if indices is not None:
                named["support.indices"] = indices
        if self.tails is not None:
            named["tail.student"], named["tail.teacher"] = self.tails
        return named | {"divergence": self.divergence, "importance": self.importance}


class LossStages(NamedTuple):
    """All values of one micro-batch: those of its tokens, `(B, T)` weights, and the loss."""

    tokens: TokenStages
    loss_mask: Tensor
    aggregate: Tensor

    def named(self) -> dict[str, Tensor]:
        """The values by the names under which audits compare them."""
        return {**self.tokens.named(), "loss_mask": self.loss_mask, "aggregate": self.aggregate}
