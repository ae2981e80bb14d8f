"""QLoRA with Unsloth's kernels: 4-bit base model, two adapters. Needs a GPU and `unsloth`.

Unsloth rewrites TRL's trainers while it is imported, GRPO's among them, from which `SDPOTrainer`
derives. So it has to come before TRL and `sdpo.trainer.sdpo_trainer`. In the other order training
runs without its patches, or fails later; `check_import_order` says so at once.

python examples/sdpo_unsloth_qlora.py --model Qwen/Qwen2.5-7B-Instruct
"""

import importlib
import importlib.util
import sys
from typing import Any

PATCHED = ("trl", "transformers", "peft", "sdpo.trainer.sdpo_trainer")
PROMPT_LENGTH = 1024
"""Room for a problem, or for the teacher's prompt with a demonstration in it."""


def check_import_order() -> None:
    """Check that Unsloth can still patch what it has to.

    Raises:
        ImportError: unsloth is missing, or something that it patches has been imported before.
    """
    early = [name for name in PATCHED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        raise ImportError(
            f"{', '.join(early)} imported before unsloth, which has to patch them: make "
            "`import unsloth` the first import of the script"
        )
    if importlib.util.find_spec("unsloth") is None:
        raise ImportError("unsloth is not installed: pip install unsloth (needs a GPU)")


def main() -> None:
    """Train."""
    check_import_order()
    unsloth: Any = importlib.import_module("unsloth")

    from common import AnswerReward, additions, arguments, options

    from sdpo import SDPOConfig, SDPOTrainer

    chosen = options(__doc__)
    settings = arguments(chosen)
    fast = unsloth.FastLanguageModel
    model, tokenizer = fast.from_pretrained(
        chosen.model,
        load_in_4bit=True,
        max_seq_length=PROMPT_LENGTH + 2 * settings.max_completion_length,
    )
    model = fast.get_peft_model(model, r=16, lora_alpha=32, use_gradient_checkpointing="unsloth")
    trainer = SDPOTrainer(
        model=model,
        args=settings,
        sdpo_config=SDPOConfig(teacher_mode="lora_ema"),
        processing_class=tokenizer,
        reward_funcs=[AnswerReward()],
        train_dataset=additions(),
    )
    trainer.train()


if __name__ == "__main__":
    main()
