"""Honest completions in odd shapes, and honest wrong ones, each with the verdict it must get.

The task is always `add(a, b)`, unless the entry brings tests of its own.
"""

# Programs are easier to compare on one line each.
# ruff: noqa: E501

import dataclasses

from sdpo.benchmark.problems.case import Case

ADD_TESTS = ("assert add(1, 2) == 3", "assert add(5, 7) == 12", "assert add(-4, 1) == -3")


@dataclasses.dataclass(frozen=True)
class Program:
    """A completion, the statuses that are right for it, and its tests."""

    completion: str
    statuses: tuple[str, ...]
    tests: tuple[str, ...] = ADD_TESTS
    imports: str = ""
    setup: str = ""

    def case(self) -> Case:
        """The completion with its tests, as a case."""
        return Case("id", self.completion, self.tests, self.imports, self.setup)


def _right(completion: str, *tests: str, imports: str = "", setup: str = "") -> Program:
    return Program(completion, ("pass",), tests or ADD_TESTS, imports, setup)


def _wrong(completion: str, *tests: str) -> Program:
    return Program(completion, ("fail",), tests or ADD_TESTS)


def _broken(completion: str) -> Program:
    return Program(completion, ("error",))


_PLAIN = "def add(a, b):\n    return a + b\n"
_CLASS = "class Stack:\n    def __init__(self):\n        self.items = []\n"

RIGHT = {
    "plain": _right(_PLAIN),
    "fenced": _right(f"Here it is:\n```python\n{_PLAIN}```\nIt adds."),
    "carriage returns": _right(_PLAIN.replace("\n", "\r\n")),
    "byte order mark": _right("\ufeff" + _PLAIN),
    "tabs": _right("def add(a, b):\n\treturn a + b\n"),
    "no final line end": _right("def add(a, b): return a + b"),
    "form feed": _right("\f\n" + _PLAIN),
    "lambda": _right("add = lambda a, b: a + b"),
    "operator": _right("from operator import add"),
    "operator renamed": _right("import operator\nadd = operator.add"),
    "partial": _right("import functools\nadd = functools.partial(lambda a, b: a + b)"),
    "bound method": _right(
        "class A:\n    def add(self, a, b):\n        return a + b\nadd = A().add"
    ),
    "callable instance": _right(
        "class Add:\n    def __call__(self, a, b):\n        return a + b\nadd = Add()"
    ),
    "class with new": _right("class add(int):\n    def __new__(cls, a, b):\n        return a + b"),
    "decorated": _right(
        "import functools\ndef d(f):\n    @functools.wraps(f)\n    def g(*a):\n        return f(*a)\n"
        "    return g\n@d\n" + _PLAIN
    ),
    "cached": _right("from functools import lru_cache\n@lru_cache(maxsize=None)\n" + _PLAIN),
    "star import": _right(
        "from typing import *\ndef add(a: Optional[int], b: Any) -> int:\n    return a + b"
    ),
    "future annotations": _right("from __future__ import annotations\n" + _PLAIN),
    "type hints": _right("def add(a: 'int', b: \"int\") -> 'list[int]':\n    return a + b"),
    "defaults": _right("def add(a, b=0, *c, d=1, **e):\n    return a + b"),
    "keyword only inner": _right("def add(a, b, /):\n    return sum((a, b))"),
    "nested functions": _right(
        "def add(a, b):\n    def go(n):\n        return b if n == 0 else 1 + go(n - 1)\n"
        "    return go(a) if a >= 0 else a + b"
    ),
    "conditional definition": _right("if True:\n    def add(a, b):\n        return a + b"),
    "try definition": _right(
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None\n" + _PLAIN
    ),
    "redefined": _right("def add(a, b):\n    return 0\n" + _PLAIN),
    "exec definition": _right("exec('def add(a, b): return a + b')"),
    "globals definition": _right("globals()['add'] = lambda a, b: a + b"),
    "walrus definition": _right("(add := lambda a, b: a + b)"),
    "for definition": _right("for add in [lambda a, b: a + b]:\n    pass"),
    "global statement": _right(
        "def make():\n    global add\n    def add(a, b):\n        return a + b\nmake()"
    ),
    "main block": _right(_PLAIN + "if __name__ == '__main__':\n    print(add(int(input()), 1))"),
    "main block with unittest": _right(
        _PLAIN + "if __name__ == '__main__':\n    import unittest\n    unittest.main()"
    ),
    "own asserts": _right(_PLAIN + "assert add(2, 2) == 4\nassert add(0, 0) == 0"),
    "prints": _right(
        "print('start')\ndef add(a, b):\n    print(a, b)\n    return a + b\nprint(add(1, 1))"
    ),
    "many prints": _right("def add(a, b):\n    print('x' * 10_000_000)\n    return a + b"),
    "prints odd characters": _right(
        "import sys\ndef add(a, b):\n    sys.stdout.buffer.write(b'\\xff\\x00\\x1b[2J')\n    return a + b"
    ),
    "writes to stderr": _right(
        "import sys\ndef add(a, b):\n    sys.stderr.write('e' * 99999)\n    return a + b"
    ),
    "uses scratch": _right(
        "def add(a, b):\n    with open('n.txt', 'w') as f:\n        f.write(str(a + b))\n"
        "    return int(open('n.txt').read())"
    ),
    "uses tempfile": _right(
        "import tempfile\ndef add(a, b):\n    with tempfile.TemporaryFile('w+', dir='.') as f:\n"
        "        f.write('1')\n    return a + b"
    ),
    "threads": _right(
        "import threading\ndef add(a, b):\n    out = []\n"
        "    t = threading.Thread(target=lambda: out.append(a + b))\n    t.start()\n    t.join()\n"
        "    return out[0]"
    ),
    "thread pool": _right(
        "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n"
        "    with ThreadPoolExecutor(8) as pool:\n        return sum(pool.map(int, [a, b]))"
    ),
    "asyncio": _right(
        "import asyncio\nasync def go(a, b):\n    await asyncio.sleep(0)\n    return a + b\n"
        "def add(a, b):\n    return asyncio.run(go(a, b))"
    ),
    "signal alarm": _right("import signal\ndef add(a, b):\n    signal.alarm(60)\n    return a + b"),
    "recursion limit": _right("import sys\nsys.setrecursionlimit(10**6)\n" + _PLAIN),
    "deep recursion": _right(
        "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
        "def add(a, b):\n    assert down(950) == 950\n    return a + b"
    ),
    "generator helper": _right(
        "def parts(*a):\n    yield from a\ndef add(a, b):\n    return sum(parts(a, b))"
    ),
    "dataclass": _right(
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n    b: 'int' = 0\n"
        "def add(a, b):\n    p = P(a, b)\n    return p.a + p.b"
    ),
    "enum result": _right(
        "import enum\nclass N(enum.IntEnum):\n    THREE = 3\n    TWELVE = 12\n    LESS = -3\n"
        "def add(a, b):\n    return N(a + b)"
    ),
    "float result": _right("def add(a, b):\n    return float(a + b)"),
    "fraction result": _right(
        "from fractions import Fraction\ndef add(a, b):\n    return Fraction(a + b)"
    ),
    "decimal result": _right(
        "from decimal import Decimal\ndef add(a, b):\n    return Decimal(a) + b"
    ),
    "complex result": _right("def add(a, b):\n    return complex(a + b, 0)"),
    "integer subclass": _right("class I(int):\n    pass\ndef add(a, b):\n    return I(a + b)"),
    "unicode names": _right("def add(α, β):\n    return α + β"),
    "semicolons": _right("def add(a, b): c = a; c += b; return c"),
    "match statement": _right(
        "def add(a, b):\n    match (a, b):\n        case (x, y):\n            return x + y"
    ),
    "module docstring": _right('"""Adds.\n\nExample:\n    add(1, 2)\n"""\n' + _PLAIN),
    "shadowed builtins": _right("list = dict = len = type = isinstance = None\n" + _PLAIN),
    "patched print": _right("import builtins\nbuiltins.print = lambda *a: None\n" + _PLAIN),
    "closed stdout": _right("import sys\nsys.stdout.close()\nsys.stdout = None\n" + _PLAIN),
    "changed folder": _right("import os\nos.mkdir('d')\nos.chdir('d')\n" + _PLAIN),
    "name like a builtin": _right("def sum(a, b):\n    return a + b", "assert sum(10, 15) == 25"),
    "name like a builtin, lambda": _right("max = lambda a: 7", "assert max([1]) == 7"),
    "name like a module": _right("def copy(a):\n    return a[:]", "assert copy([1]) == [1]"),
    "list of generator": _right(
        "def up(n):\n    for i in range(n):\n        yield i",
        "assert list(up(3)) == [0, 1, 2]",
        "assert next(up(1)) == 0",
        "assert 2 in up(5)",
        "assert sum(up(4)) == 6",
        "assert [x for x in up(2)] == [0, 1]",
    ),
    "endless generator": _right(
        "def up():\n    i = 0\n    while True:\n        yield i\n        i += 1",
        "import itertools\nassert list(itertools.islice(up(), 3)) == [0, 1, 2]",
        "assert [a for a, _ in zip(up(), 'ab')] == [0, 1]",
    ),
    "map and filter": _right(
        "def odd(x):\n    return filter(lambda i: i % 2, x)",
        "assert list(odd([1, 2, 3])) == [1, 3]",
    ),
    "set of list": _right("def u(x):\n    return x + x", "assert set(u([1, 2])) == {1, 2}"),
    "sorted": _right("def u(x):\n    return set(x)", "assert sorted(u([2, 1])) == [1, 2]"),
    "isclose": _right(
        "def h(x):\n    return x / 2",
        "assert math.isclose(h(1), 0.5, rel_tol=1e-9)",
        imports="import math",
    ),
    "isclose by name": _right(
        "def h(x):\n    return x / 2",
        "assert isclose(h(1), 0.5)",
        imports="from math import isclose",
    ),
    "absolute difference": _right("def h(x):\n    return x / 3", "assert abs(h(1) - 1 / 3) < 1e-9"),
    "match object": _right(
        "import re\ndef m(s):\n    return re.match('a+$', s)",
        "assert m('aa')",
        "assert not m('b')",
        "assert bool(m('a')) == True",
    ),
    "counter": _right(
        "from collections import Counter\ndef c(x):\n    return Counter(x)",
        "assert c('aab') == {'a': 2, 'b': 1}",
        "assert c('a') == Counter('a')",
        imports="from collections import Counter",
    ),
    "ordered dict": _right(
        "from collections import OrderedDict\ndef c(x):\n    return OrderedDict((i, 1) for i in x)",
        "assert c('ab') == {'a': 1, 'b': 1}",
    ),
    "default dict": _right(
        "from collections import defaultdict\ndef c(x):\n    d = defaultdict(list)\n"
        "    d[x].append(1)\n    return d",
        "assert c('a') == {'a': [1]}",
    ),
    "named tuple": _right(
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef p():\n    return P(1, 2)",
        "assert p() == (1, 2)",
        "assert p().x == 1",
        "assert p().y + 1 == 3",
    ),
    "dict keys": _right(
        "def k(d):\n    return d.keys()", "assert k({1: 2}) == {1}", "assert list(k({3: 1})) == [3]"
    ),
    "values of a dict": _right("def k(d):\n    return d.values()", "assert list(k({1: 2})) == [2]"),
    "deque": _right(
        "from collections import deque\ndef q():\n    return deque([1, 2])",
        "assert list(q()) == [1, 2]",
        "assert len(q()) == 2",
        "assert q()[0] == 1",
    ),
    "range": _right(
        "def r(n):\n    return range(n)", "assert r(3) == range(3)", "assert list(r(2)) == [0, 1]"
    ),
    "bytes": _right("def b(s):\n    return s.encode()", "assert b('é') == b'\\xc3\\xa9'"),
    "frozenset": _right("def b(s):\n    return frozenset(s)", "assert b('ab') == {'a', 'b'}"),
    "nothing": _right("def n():\n    pass", "assert n() is None", "assert n() == None"),
    "big integer": _right(
        "def p(n):\n    return 2 ** n",
        "assert p(100) == 1267650600228229401496703205376",
        "assert p(20000) == 1 << 20000",
    ),
    "infinity": _right("def i():\n    return float('inf')", "assert i() == float('inf')"),
    "not a number": _right("def i():\n    return float('nan')", "assert math.isnan(i())"),
    "negative zero": _right("def i():\n    return -0.0", "assert str(i()) == '-0.0'"),
    "surrogate": _right("def s():\n    return '\\ud800'", "assert len(s()) == 1"),
    "long list": _right(
        "def l(n):\n    return list(range(n))",
        "assert l(100000) == list(range(100000))",
        "assert len(l(300000)) == 300000",
    ),
    "nested list": _right(
        "def l(n):\n    return [] if n == 0 else [l(n - 1)]", "assert l(3) == [[[[]]]]"
    ),
    "stack": _right(
        _CLASS + "    def push(self, x):\n        self.items.append(x)\n"
        "    def pop(self):\n        return self.items.pop()\n",
        "s = Stack()\ns.push(4)\ns.push(5)\nassert s.pop() == 5\nassert s.pop() == 4",
    ),
    "solution class": _right(
        "class Solution:\n    def twice(self, x):\n        return x * 2",
        "assert Solution().twice(2) == 4",
    ),
    "mutates its argument": _right(
        "def s(x):\n    x.sort()", "x = [3, 1, 2]\ns(x)\nassert x == [1, 2, 3]"
    ),
    "raises as it should": _right(
        "def r(x):\n    raise ValueError('bad')",
        "try:\n    r(1)\n    assert False\nexcept ValueError as e:\n    assert 'bad' in str(e)",
    ),
    "loop of asserts": _right(
        _PLAIN, "for a, b, c in [(1, 2, 3), (2, 2, 4)]:\n    assert add(a, b) == c"
    ),
    "all": _right(_PLAIN, "assert all(add(i, i) == 2 * i for i in range(10))"),
    "chained": _right(_PLAIN, "assert 2 < add(1, 2) < 4", "assert add(1, 2) == add(2, 1) == 3"),
    "boolean": _right(
        _PLAIN,
        "assert add(1, 2) == 3 and add(2, 2) == 4",
        "assert add(0, 0) == 1 or add(0, 1) == 1",
    ),
    "message": _right(_PLAIN, "assert add(1, 2) == 3, 'wrong sum'"),
    "literal first": _right(_PLAIN, "assert 3 == add(1, 2)"),
    "passed as a function": _right(_PLAIN, "assert list(map(add, [1], [2])) == [3]"),
    "returns a function": _right("def k(n):\n    return lambda x: x + n", "assert k(1)(2) == 3"),
    "takes a function": _right(
        "def ap(f, x):\n    return f(x)", "assert ap(lambda v: v * 2, 4) == 8"
    ),
    "type tests": _right(
        _PLAIN, "assert isinstance(add(1, 2), int)", "assert type(add(1, 2)) == int"
    ),
    "methods of the result": _right(
        "def s(x):\n    return ' '.join(x)",
        "assert s('ab').split() == ['a', 'b']",
        "assert s('a').upper() == 'A'",
    ),
    "set-up after the solution": _right(
        "class Node:\n    def __init__(self, v):\n        self.v = v\n        self.left = None\n"
        "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)",
        "assert depth(root) == 2",
        setup="root = Node(1)\nroot.left = Node(2)",
    ),
    "helper in the set-up": _right(
        _PLAIN, "assert near(add(1, 2), 3.0)", setup="def near(a, b):\n    return abs(a - b) < 1e-6"
    ),
    "module only the solution imports": _right(
        "import sys\ndef size(t):\n    return sys.getsizeof(t)",
        "assert size((1, 2)) == sys.getsizeof((1, 2))",
    ),
    "coroutine": _right(
        "async def c(x):\n    return x + 1",
        "assert asyncio.run(c(1)) == 2",
        imports="import asyncio",
    ),
    "random with seed": _right(
        "import random\ndef r():\n    random.seed(1)\n    return random.random()",
        "assert r() == r()",
    ),
    "thinking first": _right(f"<think>def add(a, b): return 0</think>\n```python\n{_PLAIN}```"),
    "two blocks": _right(
        f"```python\ndef add(a, b):\n    return 0\n```\nBetter:\n```python\n{_PLAIN}```"
    ),
    "unclosed fence": _right(f"```python\n{_PLAIN}"),
    "usage block after": _right(
        f"```python\n{_PLAIN}```\nUse:\n```python\nprint(add(input(), 2))\n```"
    ),
    "large completion": _right("x" * 200_000 + f"\n```python\n{_PLAIN}```\n" + "word " * 2_000_000),
}

WRONG = {
    "subtracts": _wrong("def add(a, b):\n    return a - b"),
    "returns nothing": _wrong("def add(a, b):\n    a + b"),
    "returns text": _wrong("def add(a, b):\n    return str(a + b)"),
    "returns a list": _wrong("def add(a, b):\n    return [a + b]"),
    "raises": _wrong("def add(a, b):\n    raise ValueError('no')"),
    "divides by zero": _wrong("def add(a, b):\n    return a / 0"),
    "wrong arity": _wrong("def add(a):\n    return a"),
    "endless recursion": _wrong("def add(a, b):\n    return add(a, b)"),
    "partly right": _wrong("def add(a, b):\n    return 3"),
    "off by one": _wrong("def add(a, b):\n    return a + b + 1"),
    "near": _wrong("def add(a, b):\n    return a + b + 1e-9"),
    "tuple for list": _wrong("def t():\n    return (1, 2)", "assert t() == [1, 2]"),
    "generator for list": _wrong("def t():\n    yield 1", "assert t() == [1]"),
    "not a number, equal to itself": _wrong(
        "def t():\n    return float('nan')", "assert t() == t()"
    ),
    "prints the answer": _wrong("def add(a, b):\n    print(a + b)"),
    "cycle": _wrong("def t():\n    x = []\n    x.append(x)\n    return x", "assert t() == [[]]"),
    "too large": _wrong("def t():\n    return [0] * 3_000_000", "assert t() == 1"),
    "too deep": _wrong(
        "def t():\n    x = []\n    for _ in range(100_000):\n        x = [x]\n    return x",
        "assert t() == []",
    ),
    "false assert of the test's own": _wrong(
        "def add(a, b):\n    return a + b", "assert add(1, 2) == 4"
    ),
}

BROKEN = {
    "empty": _broken(""),
    "blank": _broken("  \n\n"),
    "prose": _broken("I am sorry, I cannot do that."),
    "syntax error": _broken("def add(a, b)\n    return a + b"),
    "unclosed bracket": _broken("def add(a, b):\n    return (a + b"),
    "bad indentation": _broken("def add(a, b):\nreturn a + b"),
    "null byte": _broken("def add(a, b):\n    return a +\x00 b\n"),
    "surrogate in the code": _broken("def add(a, b):\n    return '\ud800'\n"),
    "other name": _broken("def plus(a, b):\n    return a + b"),
    "unknown module": _broken("import no_such_module\ndef add(a, b):\n    return a + b"),
    "raises at once": _broken("def add(a, b):\n    return a + b\nraise RuntimeError('x')"),
    "own assert fails": _broken("def add(a, b):\n    return a + b\nassert add(1, 1) == 3"),
    "reads input": _broken("n = int(input())\ndef add(a, b):\n    return a + b"),
    "deep nesting": _broken(
        "x = " + "(" * 5000 + ")" * 5000 + "\ndef add(a, b):\n    return a + b"
    ),
    "long chain": _broken("x = " + "-" * 100_000 + "1\ndef add(a, b):\n    return a + b"),
    "megabytes of code": _broken("def add(a, b):\n    return a + b\n" + "x = 1\n" * 300_000),
}
