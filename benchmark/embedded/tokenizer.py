"""Makes the embedded model's tokenizer: one token for each known word, bytes for all else.

Nothing is unknown, and decoding gives back every text exactly. Digits are single tokens, and a
word's token includes the blank behind it, so that a number looks the same wherever it stands.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.benchmark.embedded.language import CONDITIONS, NAMES, VERBS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
PATTERN = r" (?:==|!=|[-+*/%<>=]) |, |[A-Za-z_]+(?: (?![-+*/%<>=!]))?|\d|\n +|\n|."
_PROSE = """system user assistant
You write Python functions.
Write a function for a number text list. First it by, then it. If it is above, otherwise it
Correct solution: The following is feedback from your unsuccessful earlier attempt:
Correctly solve the original question.
of tests passed. Test failed: error: Expected: Actual: Line of the submitted code: not shown more
assert def return if else: for v in sorted sum max min len upper x s a v None True False
TypeError NameError SyntaxError ValueError IndexError AttributeError object has no attribute"""
_MARKS = (" == ", " != ", " - ", " + ", " * ", " < ", " > ", " = ", ", ", "\n    ", "\n        ")


@cache
def words() -> list[str]:
    """List every known word, with and without a blank behind it."""
    verbs = [verb.word for verb in (*VERBS, *CONDITIONS)]
    plain = dict.fromkeys([*re.findall(r"[A-Za-z_]+", _PROSE), *verbs, *NAMES])
    return [word + blank for word in plain for blank in ("", " ")] + list(_MARKS)


@cache
def _byte_alphabet() -> dict[int, str]:
    """Give every byte the printable stand-in that it has in byte-level tokenizers."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown}
    return table | {byte: chr(256 + index) for index, byte in enumerate(hidden)}


def build() -> "Tokenizer":
    """Build the tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    table = _byte_alphabet()
    entries = [PAD, START, END, *table.values()]
    entries += ["".join(table[byte] for byte in word.encode()) for word in words()]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([PAD, START, END])
    return tokenizer


def save(folder: Path) -> None:
    """Write the tokenizer's files as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "padding_side": "left",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
