"""Student and teacher as two LoRA adapters of one base model, each update checked by the reference.

python examples/sdpo_lora_ema.py --tiny --steps 2
"""

from common import AnswerReward, additions, arguments, load, options
from peft import LoraConfig, get_peft_model

from sdpo import SDPOConfig, SDPOTrainer


def main() -> None:
    """Train adapters; on a CPU the lockstep audit watches."""
    chosen = options(__doc__)
    model, tokenizer = load(chosen)
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = SDPOTrainer(
        model=get_peft_model(model, adapters),
        args=arguments(chosen),
        sdpo_config=SDPOConfig(
            teacher_mode="lora_ema",
            audit_every=1 if chosen.tiny else 0,
            audit_lockstep=chosen.tiny,
        ),
        processing_class=tokenizer,
        reward_funcs=[AnswerReward()],
        train_dataset=additions(),
    )
    trainer.train()


if __name__ == "__main__":
    main()
