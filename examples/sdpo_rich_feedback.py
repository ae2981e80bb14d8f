"""Code with executed tests: the error messages of a failed attempt are what its teacher sees.

python examples/sdpo_rich_feedback.py --tiny --steps 2
"""

from common import arguments, load, options
from datasets import Dataset

from sdpo import SDPOConfig, SDPOTrainer
from sdpo.benchmark.scoring.reward import FormatReward, MBPPReward

PROBLEMS = {
    "Write a function `double(x)` that doubles a number.": ["assert double(2) == 4"],
    "Write a function `first(items)` that returns the first item.": ["assert first([3, 4]) == 3"],
    "Write a function `total(items)` that adds up numbers.": ["assert total([1, 2, 3]) == 6"],
    "Write a function `back(text)` that reverses a text.": ["assert back('ab') == 'ba'"],
}


def problems() -> Dataset:
    """The problems with their tests."""
    prompts = [[{"role": "user", "content": text}] for text in PROBLEMS]
    return Dataset.from_dict({"prompt": prompts, "test_list": list(PROBLEMS.values())})


def main() -> None:
    """Train with the paper's settings for rich feedback; tests count, form a little."""
    chosen = options(__doc__)
    model, tokenizer = load(chosen)
    tests = MBPPReward(all_or_nothing=True, workers=2)
    trainer = SDPOTrainer(
        model=model,
        args=arguments(chosen, reward_weights=[1.0, 0.1]),
        sdpo_config=SDPOConfig.from_dict({}, preset="paper_rich_feedback"),
        processing_class=tokenizer,
        reward_funcs=[tests, FormatReward()],
        train_dataset=problems(),
    )
    trainer.train()
    tests.close()


if __name__ == "__main__":
    main()
