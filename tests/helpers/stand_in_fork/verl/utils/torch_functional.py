"""Stand-in: log-probs by flash-attn's cross entropy where it can be imported, else by torch."""

from sdpo.reference.loss import log_probs_from_logits

try:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE = True
except ImportError:
    FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE = False


def logprobs_from_logits(logits, labels):
    if FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE:
        return -cross_entropy_loss(logits, labels)[0]
    return log_probs_from_logits(logits, labels)
