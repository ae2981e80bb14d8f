"""Self-distillation on sums: successful attempts and feedback teach the failed ones.

python examples/basic_sdpo.py --tiny --steps 2
"""

from common import AnswerReward, additions, arguments, load, options

from sdpo import SDPOConfig, SDPOTrainer


def main() -> None:
    """Train."""
    chosen = options(__doc__)
    model, tokenizer = load(chosen)
    trainer = SDPOTrainer(
        model=model,
        args=arguments(chosen),
        sdpo_config=SDPOConfig(),
        processing_class=tokenizer,
        reward_funcs=[AnswerReward()],
        train_dataset=additions(),
    )
    trainer.train()


if __name__ == "__main__":
    main()
