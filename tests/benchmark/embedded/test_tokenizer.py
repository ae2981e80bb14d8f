"""The embedded tokenizer: every text survives, and the benchmark's own words are whole."""

import random
from typing import Any

import pytest

from sdpo.benchmark.embedded import lessons, tokenizer
from sdpo.benchmark.embedded.generate_problems import LETTERS
from sdpo.benchmark.runs.models import load_tokenizer


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


@pytest.mark.parametrize(
    "text",
    ["", " ", "a\u00e9\t\u4e2d\U0001f600\r\n\x00", "def f(x):\n    return x ** 2 // 3  # é\n"],
)
def test_any_text_survives(words, text):
    ids = words.encode(text).ids
    assert words.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["plain", "shown", "told"])
def test_lessons_are_words_numbers_and_letters(words, kind):
    generator, shapes = random.Random(2), lessons.lesson_shapes()
    for _ in range(50):
        lesson = lessons.draw_lesson(kind, shapes, generator)
        for text in lesson:
            tokens = [words.decode([one]) for one in words.encode(text).ids]
            assert "".join(tokens) == text
            # Only the letters of test values may be spelt out.
            spelt = {one for one in tokens if len(one) == 1 and one.isalpha()}
            allowed = set(LETTERS + LETTERS.upper()) | set("xsavf")
            assert spelt <= allowed


def test_the_chat_template_writes_what_pre_training_saw():
    loaded = load_tokenizer("embedded")
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "B"}]
    text = loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n"
    )
    ids: Any = loaded.apply_chat_template(
        messages[1:], add_generation_prompt=True, return_dict=True
    )
    head = "<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n"
    assert ids["input_ids"] == tokenizer.build().encode(head).ids
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|endoftext|>"
