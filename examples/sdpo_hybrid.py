"""A mixture of GRPO and self-distillation: `0.1 * GRPO + 0.9 * SDPO`.

python examples/sdpo_hybrid.py --tiny --steps 2
"""

from common import AnswerReward, additions, arguments, load, options

from sdpo import SDPOConfig, SDPOTrainer


def main() -> None:
    """Train with 10 % GRPO."""
    chosen = options(__doc__)
    model, tokenizer = load(chosen)
    trainer = SDPOTrainer(
        model=model,
        args=arguments(chosen, num_iterations=2, epsilon_high=0.28),
        sdpo_config=SDPOConfig(hybrid_lambda=0.1),
        processing_class=tokenizer,
        reward_funcs=[AnswerReward()],
        train_dataset=additions(),
    )
    trainer.train()


if __name__ == "__main__":
    main()
