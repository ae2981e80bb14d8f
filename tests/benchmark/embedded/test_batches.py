"""A batch is padded on the right, and only answers are learnt."""

from dataclasses import replace

import torch

from sdpo.benchmark.embedded import batches, tokenizer
from sdpo.benchmark.embedded.lessons import lesson_shapes
from sdpo.benchmark.embedded.recipe import PACKAGED


def test_rows_are_padded_and_prompts_are_not_learnt():
    batch = batches.batch_of([([5, 6], [7]), ([8], [9, 10, 11])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100], [-100, 9, 10, 11]]


def test_an_answer_ends_with_the_end_token():
    words = tokenizer.build()
    prompt, answer = batches.encode(words, "Write", "return x")
    assert words.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>user\nWrite<|im_end|>\n<|im_start|>assistant\n"
    )
    assert words.decode(answer, skip_special_tokens=False) == "return x<|im_end|>"


def test_a_step_alone_decides_its_lessons():
    recipe = replace(PACKAGED, stages=((9, {"echo": 2, "told": 1}),))
    first, again, next_step = (
        batches.batches_of(recipe, step, tokenizer.build(), lesson_shapes()) for step in (3, 3, 4)
    )
    assert [*first] == ["echo", "told"]
    for kind, batch in first.items():
        assert torch.equal(batch["input_ids"], again[kind]["input_ids"])
    assert first["echo"]["input_ids"].tolist() != next_step["echo"]["input_ids"].tolist()
