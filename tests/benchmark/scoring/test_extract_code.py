"""The extraction rule, case by case."""

import time

import pytest

from sdpo.benchmark.scoring.extract_code import extract_code, fenced_blocks

_F = "def f(x):\n    return x\n"
_G = "def g(x):\n    return 2 * x\n"

CASES = {
    "plain": (_F, _F),
    "python fence": (f"```python\n{_F}```", _F),
    "py fence": (f"```py\n{_F}```", _F),
    "upper-case label": (f"```Python\n{_F}```", _F),
    "label with attributes": (f"```python title='a'\n{_F}```", _F),
    "braces": (f"```{{.python}}\n{_F}```", _F),
    "no label": (f"```\n{_F}```", _F),
    "tildes": (f"~~~python\n{_F}~~~", _F),
    "long fence": (f"````python\n{_F}````", _F),
    "prose around": (f"Sure!\n\n```python\n{_F}```\nThis returns x.", _F),
    "fence after prose on the line": (f"Here: ```python\n{_F}```", _F),
    "unclosed": (f"Text\n```python\n{_F}", _F),
    "unclosed without line end": ("```python\ndef f(x): return x", "def f(x): return x\n"),
    "indented block": ("1. So:\n   ```python\n   def f(x):\n       return x\n   ```", _F),
    "carriage returns": (f"```python\n{_F}```".replace("\n", "\r\n"), _F),
    "other language ignored": (f"```bash\npip install x\n```\n```python\n{_F}```", _F),
    "output block ignored": (f"```python\n{_F}```\n```\n3\n```", _F),
    "only another language": (f"```text\n{_F}```", _F),
    "last definition wins": (f"```python\n{_G}```\n```python\n{_F}```", _F),
    "usage after": (f"```python\n{_F}```\n```python\nprint(f(1))\n```", _F),
    "helper before": (
        f"```python\n{_G}```\n```python\ndef f(x):\n    return g(x)\n```",
        _G + "def f(x):\n    return g(x)\n",
    ),
    "imports before": (
        "```python\nimport math\n```\n```python\ndef f(x):\n    return math.pi\n```",
        "import math\ndef f(x):\n    return math.pi\n",
    ),
    "corrected version": (
        f"```python\ndef f(x):\n    return 0\n```\nNo:\n```python\n{_F}```",
        _F,
    ),
    "opened by the prompt": (f"{_F}```\nThis returns x.", _F),
    "thinking": (f"<think>\n```python\n{_G}```\n</think>\n```python\n{_F}```", _F),
    "python tags": (f"[PYTHON]\n{_F}[/PYTHON]\nprose", _F),
    "begin and done": (f"[BEGIN]\n{_F}[DONE]\nmore", _F),
    "done only": (f"{_F}[DONE]\n[BEGIN]", _F),
    "no fence, prose before": (f"Here is the function:\n\n{_F}", _F),
    "no fence, prose after": (f"{_F}\nThis function returns x.\nIt is simple.", _F),
    "no fence, import first": (f"Use this:\nimport math\n{_F}", f"import math\n{_F}"),
    "no fence, assignment": ("f = lambda x: x", "f = lambda x: x\n"),
    "no fence, loop": ("while True:\n    pass", "while True:\n    pass\n"),
    "no fence, triple quotes": (
        'def f(x):\n    """Doc.\n\nMore text here\n    """\n    return x\n',
        'def f(x):\n    """Doc.\n\nMore text here\n    """\n    return x\n',
    ),
    "no fence, open bracket": (
        "y = [\n'some text here',\n]\n" + _F,
        "y = [\n'some text here',\n]\n" + _F,
    ),
    "decorator": ("@cache\n" + _F, "@cache\n" + _F),
    "common indentation": ("    def f(x):\n        return x\n", _F),
    "byte order mark": ("\ufeff" + _F, _F),
    "empty": ("", ""),
    "prose": ("I cannot do that. Please ask again.", ""),
    "empty fence": ("```python\n```", ""),
}


@pytest.mark.parametrize(("completion", "code"), CASES.values(), ids=CASES)
def test_rule(completion: str, code: str) -> None:
    assert extract_code(completion, ["f"]) == code


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" * 100_000,
        "`" * 1_000_000,
        "word " * 500_000,
        "(" * 1_000_000,
        '"""\n' * 100_000,
        "a.b\n" * 100_000,
        "\n" * 400_000,
        "def f(x):\n" + "    x = 1\n" * 50_000,
        "x = 1 " * 100_000,
        "[PYTHON]" * 100_000,
        "x" * 1_500_000 + "=",
        " " * 1_500_000 + "x",
    ],
    ids=lambda text: text[:12],
)
def test_time_grows_no_faster_than_the_text(text: str) -> None:
    began = time.process_time()
    extract_code(text, ["f"])
    assert time.process_time() - began < 2


def test_blocks_know_whether_they_are_closed() -> None:
    blocks = fenced_blocks(f"```python\n{_F}```\n```py\n{_G}")
    assert [(block.is_python, block.closed) for block in blocks] == [(True, True), (True, False)]
