"""Defines the small language of the embedded problems: verbs, steps and their code.

A problem asks for one or two steps on a number, a text or a list. Plain verbs (`sort`) mean what
they say. Invented verbs (`brill`) have several possible meanings: in pre-training each example
draws one at random with the verb's odds, so that the model knows the possibilities but not the
answer; the tests of the problem set fix one, `actual`, which has to be discovered.
"""

from dataclasses import dataclass
from itertools import product

SYMBOLS = {"number": "x", "text": "s", "list": "a"}
NAMES = ("solve", "task", "func", "work", "make", "apply")
CONSTANTS = (2, 3, 4, 5)
CUTS = (1, 2, 3)


@dataclass(frozen=True)
class Verb:
    """Describes a word for a step.

    `meanings` are expressions of the variable `_` and, if `constants` is not empty, the number
    `N`. `odds` are those of pre-training. `actual` is the index of the problem set's meaning. A
    `last` step ends a problem, because it changes the kind of the value.
    """

    word: str
    kind: str
    meanings: tuple[str, ...]
    odds: tuple[float, ...] = (1.0,)
    actual: int = 0
    constants: tuple[int, ...] = ()
    last: bool = False

    @property
    def invented(self) -> bool:
        """Tell whether the meaning has to be discovered."""
        return len(self.meanings) > 1


_ARITHMETIC = ("_ + N", "_ - N", "_ * N")
_ITEMS = ("[v + N for v in _]", "[v - N for v in _]", "[v * N for v in _]")
_SLICES = ("_[N:]", "_[:N]", "_[:-N]", "_[-N:]")
_TEXTS = ("_[::-1]", "_.upper()", "_ + _")
_ORDERS = ("sorted(_)", "_[::-1]", "sorted(_)[::-1]")
_FILTERS = ("[v for v in _ if v > N]", "[v for v in _ if v < N]")
_SUMMARIES = ("sum(_)", "max(_)", "min(_)")

VERBS = (
    Verb("increase", "number", ("_ + N",), constants=CONSTANTS),
    Verb("decrease", "number", ("_ - N",), constants=CONSTANTS),
    Verb("multiply", "number", ("_ * N",), constants=CONSTANTS),
    Verb("square", "number", ("_ * _",)),
    Verb("zorp", "number", _ARITHMETIC, (0.45, 0.15, 0.4), 2, CONSTANTS),
    Verb("blick", "number", _ARITHMETIC, (0.25, 0.4, 0.35), 1, CONSTANTS),
    Verb("dax", "number", _ARITHMETIC, (0.35, 0.2, 0.45), 0, CONSTANTS),
    Verb("fep", "number", _ARITHMETIC, (0.2, 0.45, 0.35), 2, CONSTANTS),
    Verb("tove", "number", ("_ * _", "_ + _", "-_"), (0.4, 0.25, 0.35), 2),
    Verb("reverse", "text", ("_[::-1]",)),
    Verb("capitalize", "text", ("_.upper()",)),
    Verb("skip", "text", ("_[N:]",), constants=CUTS),
    Verb("keep", "text", ("_[:N]",), constants=CUTS),
    Verb("snib", "text", _SLICES, (0.35, 0.2, 0.15, 0.3), 3, CUTS),
    Verb("glorp", "text", _SLICES, (0.15, 0.35, 0.3, 0.2), 2, CUTS),
    Verb("vint", "text", _SLICES, (0.35, 0.15, 0.3, 0.2), 0, CUTS),
    Verb("quax", "text", _TEXTS, (0.4, 0.35, 0.25), 1),
    Verb("murl", "text", _TEXTS, (0.2, 0.45, 0.35), 2),
    Verb("sort", "list", ("sorted(_)",)),
    Verb("reverse", "list", ("_[::-1]",)),
    Verb("raise", "list", ("[v + N for v in _]",), constants=CONSTANTS),
    Verb("skip", "list", ("_[N:]",), constants=CUTS),
    Verb("brill", "list", _ORDERS, (0.4, 0.25, 0.35), 2),
    Verb("plim", "list", _ITEMS, (0.25, 0.4, 0.35), 1, CONSTANTS),
    Verb("dorn", "list", _ITEMS, (0.45, 0.2, 0.35), 2, CONSTANTS),
    Verb("sift", "list", _FILTERS, (0.6, 0.4), 1, (3, 4, 5, 6)),
    Verb("trunk", "list", _SLICES, (0.2, 0.35, 0.15, 0.3), 3, CUTS),
    Verb("total", "list", ("sum(_)",), last=True),
    Verb("fold", "list", _SUMMARIES, (0.45, 0.2, 0.35), 2, last=True),
    Verb("crunch", "list", _SUMMARIES, (0.4, 0.25, 0.35), 0, last=True),
)
CONDITIONS = (
    Verb("above", "number", ("_ > N",), constants=(3, 4, 5, 6)),
    Verb("glim", "number", ("_ > N", "_ < N"), (0.55, 0.45), 1, (3, 4, 5, 6)),
)


@dataclass(frozen=True)
class Step:
    """Joins a verb with its number, if it takes one."""

    verb: Verb
    number: int | None = None

    @property
    def phrase(self) -> str:
        """Say the step in words."""
        return f"{self.verb.word} it" + ("" if self.number is None else f" by {self.number}")

    def expression(self, meaning: int) -> str:
        """Write the step's value under one of its meanings."""
        text = self.verb.meanings[meaning].replace("_", SYMBOLS[self.verb.kind])
        return text if self.number is None else text.replace("N", str(self.number))


@dataclass(frozen=True)
class Program:
    """Holds one or two steps; with a condition, the second is its other branch."""

    name: str
    steps: tuple[Step, ...]
    condition: Step | None = None

    @property
    def kind(self) -> str:
        """Name what the function takes."""
        return self.steps[0].verb.kind

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """List everything that has a meaning: the condition, if there is one, and the steps."""
        return (self.condition, *self.steps) if self.condition else self.steps

    @property
    def family(self) -> str:
        """Name what problems of one kind share: the verbs and how they are put together."""
        words = [step.verb.word for step in self.steps]
        rule = f"if {self.condition.verb.word}: " if self.condition else ""
        return f"{self.kind}: {rule}{' '.join(words)}"

    @property
    def text(self) -> str:
        """Say the problem in words."""
        phrases = [step.phrase for step in self.steps]
        if self.condition:
            test = f"{self.condition.verb.word} {self.condition.number}"
            steps = f"If it is {test}, {phrases[0]}, otherwise {phrases[1]}."
        else:
            steps = f"First {', then '.join(phrases)}."
        return f"Write a function {self.name} for a {self.kind}. {steps}"

    @property
    def actual(self) -> tuple[int, ...]:
        """List the meanings that the problem set fixes."""
        return tuple(step.verb.actual for step in self.all_steps)

    def meanings(self) -> list[tuple[int, ...]]:
        """List all combinations of meanings; a verb that occurs twice means the same both times."""
        words = list(dict.fromkeys(step.verb for step in self.all_steps))
        choices = product(*(range(len(verb.meanings)) for verb in words))
        tables = [dict(zip(words, choice, strict=True)) for choice in choices]
        return [tuple(table[step.verb] for step in self.all_steps) for table in tables]

    def code(self, meaning: tuple[int, ...]) -> str:
        """Write the solution under a combination of meanings."""
        symbol = SYMBOLS[self.kind]
        values = [step.expression(m) for step, m in zip(self.all_steps, meaning, strict=True)]
        if self.condition:
            test, yes, no = values
            lines = [f"if {test}:", f"    {symbol} = {yes}", "else:", f"    {symbol} = {no}"]
        else:
            lines = [f"{symbol} = {value}" for value in values]
        body = "".join(f"    {line}\n" for line in (*lines, f"return {symbol}"))
        return f"def {self.name}({symbol}):\n{body}"


def families() -> list[tuple[Verb | None, tuple[Verb, ...]]]:
    """List every way to put verbs together: condition or none, and steps."""
    single: list[tuple[Verb | None, tuple[Verb, ...]]] = [(None, (verb,)) for verb in VERBS]
    pairs = [
        (first, second)
        for first, second in product(VERBS, VERBS)
        if first.kind == second.kind and not first.last and first != second
    ]
    on_numbers = [pair for pair in pairs if pair[0].kind == "number"]
    conditional = [(condition, pair) for condition in CONDITIONS for pair in on_numbers]
    return [*single, *((None, pair) for pair in pairs), *conditional]
