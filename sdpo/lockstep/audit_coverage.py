"""Which runs the lockstep audit covers: those in which the reference can make the same updates."""

from typing import TYPE_CHECKING

from torch import nn

from sdpo.settings.config import ConfigError

if TYPE_CHECKING:
    from sdpo.trainer.sdpo_trainer import SDPOTrainer


def check_audited(trainer: "SDPOTrainer") -> None:
    """Check that the lockstep audit covers a run.

    Raises:
        ConfigError: it does not; the message names all reasons.
    """
    config, args = trainer.sdpo_config, trainer.args
    dropout = has_dropout(trainer.model)
    shared = config.shares_prompts("student")
    accumulated = args.gradient_accumulation_steps > 1
    exact = config.micro_batch_semantics == "exact" and accumulated
    several = trainer.args.gradient_accumulation_steps > trainer.args.steps_per_generation
    problems = {
        "gradient_accumulation_steps above steps_per_generation: an optimizer step of several "
        "generations or passes, which the reference never makes": several,
        "reprompt_truncation='error': the reference always fails with it": (
            config.reprompt_truncation == "error"
        ),
        "fp16: its loss scaling has no counterpart in the reference": args.fp16,
        "dropout in a trust-region teacher: the reference draws in another order": (
            dropout and config.teacher_regularization == "trust-region"
        ),
        "dropout with share_prompts='both': the reference drops in each row's prompt apart": (
            dropout and shared
        ),
        "dropout with micro_batch_semantics='exact' and accumulation: the reference takes the "
        "mini-batch as a whole, which draws other masks": dropout and exact,
        "bf16 with loss_implementation='fused': it multiplies hidden states and head in float32, "
        "and rounds otherwise": args.bf16 and config.loss_implementation == "fused",
        "bf16 with share_prompts: products of other shapes may round otherwise": (
            args.bf16 and config.share_prompts != "none"
        ),
        "bf16 with micro_batch_semantics='exact' and accumulation: the reference takes the "
        "mini-batch as a whole, which rounds otherwise": args.bf16 and exact,
        "hybrid_lambda above 0 with an adaptive entropy bonus: its state has moved on": (
            config.hybrid_lambda > 0 and getattr(trainer, "use_adaptive_entropy", False)
        ),
    }
    if found := [text for text, present in problems.items() if present]:
        raise ConfigError(
            "the parity callback does not cover " + "; ".join(found) + ". Set audit_every=0 and "
            "audit_lockstep=False, or change these settings"
        )


def has_dropout(model: nn.Module) -> bool:
    """Whether some module drops activations in training mode."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or getattr(module, "attention_dropout", 0) not in (0, None)
        for module in model.modules()
    )
