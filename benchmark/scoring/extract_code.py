r"""Finds the code in a completion.

The rule, in order:

1. Line ends become `\\n`, a byte order mark is dropped. Text up to the last `</think>` is dropped.
2. Text between `[PYTHON]` and `[/PYTHON]`, or `[BEGIN]` and `[DONE]`, stands for the completion;
   the closing mark may be missing, and so may the opening one.
3. Fenced blocks: three or more backticks or tildes, at any indentation, also at the end of a line
   of prose; closed by the same mark, or by the end of the text. Blocks labelled as Python count; if
   there are none, blocks without a label; if none either, blocks with any label.
4. Of several blocks the last one that defines a function under test is taken, or else the last one
   that defines any function or class, or else the last. Other blocks are put before it if they
   define a name that it uses and not the function under test.
5. A lone fence after code ends the code (the prompt had opened the block).
6. Without fences: from the first line that starts like code to the last, prose before and after cut
   off. Text with no such line holds no code.
7. Common indentation is removed.

All of it works line by line in linear time: the text is never parsed here.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

_FENCE = re.compile(r"^(?P<before>.*?)(?P<mark>`{3,}|~{3,})[ \t]*(?P<label>[^`~]*)$")
_PYTHON_LABELS = frozenset({"python", "py", "python3", "python2", "py3", "ipython", "pycon"})
_STRONG = re.compile(
    r"(?:def\s+\w+|class\s+\w+\s*[:(]|async\s+def\s|@\w|import\s+[\w.]+\s*(?:,|;|#|$|as\s)"
    r"|from\s+[\w.]+\s+import\s)"
)
_WEAK = re.compile(
    r"(?:#|\"\"\"|'''|[\])}]|[A-Za-z_][\w.]*(?:\s*,\s*[A-Za-z_][\w.]*)*(?:\[[^\]]*\])*\s*"
    r"(?::\s*[\w\[\], .|\"']+)?(?:=|[-+*/%|&^@]=|//=|\*\*=|>>=|<<=|\()"
    r"|(?:while|for|if|elif|with|try|else|except|finally|match)\b.*:\s*(?:#.*)?\S*"
    r"|(?:assert|del|return|raise|global|nonlocal|yield|await)\s+[\w(\[\"'-]"
    r"|\(\s*\w+\s*:=|(?:pass|break|continue|return|raise)\s*(?:#.*)?$|[\w.]+\.\w+\()"
)
_DEFINES = re.compile(
    r"^(?:async\s+def|def|class)\s+(\w+)|^(\w+)\s*(?::[^=]*)?=(?!=)", re.MULTILINE
)
_IMPORTS = re.compile(r"^(?:import\s+(.+)|from\s+\S+\s+import\s+(.+))$", re.MULTILINE)
_FUNCTION = re.compile(r"^\s*(?:async\s+def|def|class)\s+\w", re.MULTILINE)
# Longer code is refused: compiling it takes memory in proportion, and no honest answer comes near.
MAX_CODE = 1 << 20
# Lines tried as the first one; each attempt reads on from there.
_MAX_STARTS = 20
# What a line starts like is told by this many characters; a longer look takes too long.
_MAX_LOOK = 2000
_TAGS = (("[PYTHON]", "[/PYTHON]"), ("[BEGIN]", "[DONE]"))


@dataclasses.dataclass(frozen=True)
class Block:
    """Holds a fenced block; `closed` tells whether its end was marked."""

    label: str
    code: str
    closed: bool = True

    @property
    def is_python(self) -> bool:
        """Tell whether the label is one of Python's."""
        return self.label in _PYTHON_LABELS

    @property
    def names(self) -> frozenset[str]:
        """List the names that the code defines or imports at its left margin."""
        defined = {a or b for a, b in _DEFINES.findall(self.code)}
        for match in _IMPORTS.findall(self.code):
            defined.update(re.findall(r"\w+", " ".join(match)))
        return frozenset(defined)


def extract_code(completion: str, names: Sequence[str] = ()) -> str:
    """Find the code in a completion by the rule above.

    Args:
        completion: What the model wrote.
        names: Names that the code should define.

    Returns:
        The code, ending in a line end; empty if there is none.
    """
    blocks, rest = _fenced(_normal(completion).split("\n"))
    code = _choose(blocks, frozenset(names)) if blocks else _unfenced(rest)
    code = _dedent(code).strip("\n")
    return code + "\n" if code.strip() else ""


def fenced_blocks(completion: str) -> list[Block]:
    """List the fenced blocks of a completion that are not blank, in order."""
    return _fenced(_normal(completion).split("\n"))[0]


def _normal(completion: str) -> str:
    text = completion.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return _between_tags(text.rpartition("</think>")[2])


def _between_tags(text: str) -> str:
    for opening, closing in _TAGS:
        start, end = text.find(opening), text.find(closing)
        if 0 <= end < start:
            start = -1
        if start >= 0:
            text = text[start + len(opening) :].partition(closing)[0]
        elif end >= 0:
            text = text[:end]
    return text


def _dedent(text: str) -> str:
    """As `textwrap.dedent`, in linear time whatever the indentation."""
    lines = text.split("\n")
    indents = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    # What the least and the greatest text have in common at the start, all between have too.
    least, greatest = (min(indents), max(indents)) if indents else ("", "")
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(least, greatest, strict=False))
    margin = "".join(pair[0] for pair in pairs)
    return "\n".join(line.removeprefix(margin) for line in lines)


def _fenced(lines: list[str]) -> tuple[list[Block], list[str]]:
    """Split into fenced blocks and, where there are none, the lines that may be code."""
    blocks: list[Block] = []
    start, mark, label = -1, "", ""
    for index, line in enumerate(lines):
        match = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if match is None:
            continue
        if mark:
            if _closes(match, mark):
                before = [match["before"]] if match["before"].strip() else []
                blocks.append(Block(label, "\n".join(lines[start:index] + before)))
                mark = ""
        elif not blocks and not match["label"].strip() and _is_lone(lines, index):
            return [], lines[:index]
        elif _opens(match):
            start, mark, label = index + 1, match["mark"], _label(match["label"])
    if mark:
        blocks.append(Block(label, "\n".join(lines[start:]), closed=False))
    return [block for block in blocks if block.code.strip()], lines


def _closes(match: re.Match[str], mark: str) -> bool:
    closing = match["mark"]
    return closing[0] == mark[0] and len(closing) >= len(mark) and not match["label"].strip()


def _opens(match: re.Match[str]) -> bool:
    """Tell whether a fence opens a block: within a line, only with nothing but a label after it."""
    return not match["before"].strip() or len(match["label"].split()) <= 1


def _is_lone(lines: list[str], index: int) -> bool:
    """Tell whether a bare fence ends a block that the prompt had opened."""
    later = sum("```" in line or "~~~" in line for line in lines[index + 1 :])
    return later % 2 == 0 and any(_is_strong(line) for line in lines[:index])


def _label(text: str) -> str:
    words = re.findall(r"[\w+-]+", text.lower())
    return words[0] if words else ""


def _choose(blocks: list[Block], names: frozenset[str]) -> str:
    python = [block for block in blocks if block.is_python]
    candidates = python or [block for block in blocks if not block.label] or blocks
    defining = [block for block in candidates if block.names & names]
    functions = [block for block in candidates if _FUNCTION.search(block.code)]
    chosen = (defining or functions or candidates)[-1]
    used = frozenset(re.findall(r"\w+", chosen.code))
    helpers = [
        _dedent(block.code)
        for block in candidates
        if block is not chosen and block.names & (used - chosen.names) and not block.names & names
    ]
    return "\n".join([*helpers, _dedent(chosen.code)])


def _unfenced(lines: list[str]) -> str:
    lines = _dedent("\n".join(lines)).split("\n")
    strong = next((i for i, line in enumerate(lines) if _is_strong(line)), None)
    if strong is None:
        strong = next((i for i, line in enumerate(lines) if _is_code(line)), None)
        if strong is None:
            return ""
    return "\n".join(lines[_start(lines, strong) : _end(lines, strong)])


def _start(lines: list[str], strong: int) -> int:
    """Index of the first line of code: also assignments, comments and a docstring before it."""
    candidates = (i for i in range(strong) if _is_code(lines[i]))
    for start in itertools.islice(candidates, _MAX_STARTS):
        if _end(lines, start) > strong:
            return start
    return strong


def _is_strong(line: str) -> bool:
    return _STRONG.match(line, 0, _MAX_LOOK) is not None


def _is_code(line: str) -> bool:
    return _is_strong(line) or _WEAK.match(line, 0, _MAX_LOOK) is not None


def _end(lines: list[str], start: int) -> int:
    """Index after the last line of code: prose at the left margin ends it."""
    quote = ""
    depth = size = 0
    for index in range(start, len(lines)):
        line = lines[index]
        size += len(line)
        if size > MAX_CODE:
            # Refused by the executor however it ends.
            break
        inside = bool(quote) or depth > 0
        if line.strip() and not inside and not line[0].isspace() and not _is_code(line):
            return index
        quote, depth = _continues(line, quote, depth)
    return len(lines)


_TOKEN = re.compile(r"\"\"\"|'''|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|#.*|[()\[\]{}]", re.DOTALL)


def _continues(line: str, quote: str, depth: int) -> tuple[str, int]:
    """Follow triple quotes and brackets over a line; returns what is open after it."""
    position = 0
    while position < len(line):
        if quote:
            end = line.find(quote, position)
            if end < 0:
                return quote, depth
            position, quote = end + 3, ""
            continue
        match = _TOKEN.search(line, position)
        if match is None:
            break
        position = match.end()
        if match[0] in ('"""', "'''"):
            quote = match[0]
        elif match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth = max(0, depth - 1)
    return quote, depth
