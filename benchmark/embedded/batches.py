"""Makes batches of lessons: each follows from the seed and the number of its step alone."""

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdpo.benchmark.embedded import tokenizer as words
from sdpo.benchmark.embedded.generate_problems import Shape
from sdpo.benchmark.embedded.lessons import KINDS, draw_lesson
from sdpo.benchmark.embedded.recipe import Recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""The label of a token that is not learnt."""


def batches_of(
    recipe: Recipe, step: int, tokenizer: "Tokenizer", shapes: list[Shape]
) -> dict[str, dict[str, Tensor]]:
    """Draw the batches of a step, one for each kind of lesson: `input_ids` and `labels`."""
    generator, batches = random.Random(f"{recipe.seed} {step}"), {}
    counts = recipe.counts_at(step)
    for kind in KINDS:
        if count := counts.get(kind, 0):
            lessons = [draw_lesson(kind, shapes, generator) for _ in range(count)]
            batches[kind] = batch_of([encode(tokenizer, *lesson) for lesson in lessons])
    return batches


def encode(tokenizer: "Tokenizer", prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Encode the prompt with the generation header, and the answer with the end token."""
    end, start = words.END, words.START
    head = f"{start}user\n{prompt}{end}\n{start}assistant\n"
    return tokenizer.encode(head).ids, tokenizer.encode(answer + end).ids


def batch_of(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Pad ids and labels on the right; only answers are learnt."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "labels": labels}
