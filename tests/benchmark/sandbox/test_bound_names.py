"""Names that a program binds are found in its text, and nothing is claimed where it hides them."""

import pytest

from sdpo.benchmark.sandbox.bound_names import bound_names


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        "async def f(): pass",
        "class f: pass",
        "f = 1",
        "f: int = 1",
        "a, (f, *b) = x",
        "for f in x: pass",
        "with x as f: pass",
        "import f",
        "import f.g",
        "from m import g as f",
        "(f := 1)",
        "try:\n    pass\nexcept E as f:\n    pass",
        "match x:\n    case [f, *_]: pass",
        "match x:\n    case {**f}: pass",
        "if x:\n    def f(): pass",
    ],
)
def test_a_binding_is_found(source: str) -> None:
    assert bound_names(source, ["f", "other"]) == ["f"]


@pytest.mark.parametrize("source", ["f(1)", "def g(f): return f", "x.f = 1", "import m.f", "del f"])
def test_another_use_of_the_name_is_no_binding(source: str) -> None:
    assert bound_names(source, ["f"]) == []


@pytest.mark.parametrize(
    "source",
    ["exec(text)", "globals()[n] = 1", "from m import *", "import sys", "x.__dict__[n] = 1"],
)
def test_a_program_that_can_hide_a_binding_may_bind_anything(source: str) -> None:
    assert bound_names(source, ["f", "g"]) == ["f", "g"]
