"""`docs/neighbours.md` says what the table of neighbours says, and what the reports hold."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sdpo.parity.compare.statuses import Verdict
from sdpo.parity.neighbours.effects import Effect
from sdpo.parity.neighbours.packages import neighbours

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "neighbours.md").read_text(encoding="utf-8")
SAME = Effect("full vocabulary, alpha 0", 1.0, 1.0, 1.0, 2e-7)
APART = Effect("top-8, renormalised, alpha 0", 1.04, 0.98, 0.785, 0.649)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neighbours_page", DOCS / "neighbours.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["neighbours_page"] = found
    spec.loader.exec_module(found)
    return found


def run_of(**changes):
    departs = SimpleNamespace(failing=3, gradient_ratio=0.92, gradient_cosine=-0.24)
    settings = {
        "verdict": Verdict.DIVERGENT,
        "cases": ["a case"] * 9,
        "compared_cases": 7,
        "diagnosis": departs,
        "lacks": ["tail", "ratio"],
        "first_stage": "support",
        "explained_by": ["M04 teacher's top-k as support"],
        "environment": SimpleNamespace(torch="9.9"),
    }
    return SimpleNamespace(**{**settings, **changes})


def test_the_committed_page_has_all_that_the_table_says():
    for row in neighbours().values():
        assert f"## {row.name}\n" in PAGE
        assert f"[{row.name}]({row.link}) | {row.version[:8]} |" in PAGE
        for sentence in (row.computes, *row.differs):
            assert sentence in PAGE, row.name


def test_a_row_tells_what_was_compared_found_and_lacking(pages):
    agreeing = run_of(first_stage=None, explained_by=[], diagnosis=None, lacks=[])
    table = pages.overview({"liger": run_of(), "trl-gkd": agreeing})
    first, second = table.splitlines()[2:]
    found = "| DIVERGENT | `support`, M04 teacher's top-k as support | tail, ratio | "
    assert first.endswith(f"{found}7 of 9 | 3 | 0.92 | -0.24 |")
    assert second.endswith("| - | - | 7 of 9 | 0 | - | - |")
    odd = SimpleNamespace(failing=1, gradient_ratio=None, gradient_cosine=None)
    assert pages.gradient(run_of(diagnosis=odd)) == ("1", "-", "-")


def test_gradients_that_are_the_references_are_one_sentence(pages):
    assert pages.effect_table([SAME]) == (
        "At 1 of 1 settings the gradient is the reference's, 2e-07 of its norm away at most."
    )
    both = pages.effect_table([SAME, APART])
    assert both.startswith("At 1 of 2 settings")
    assert "| top-8, renormalised, alpha 0 | 1.04 | 0.98 | 0.785 | 0.649 |" in both
    assert not pages.effect_table([APART]).startswith("At")
    nan = Effect("sampled tokens, alpha 1", *[float("nan")] * 4)
    assert "sampled tokens" in pages.effect_table([SAME, nan]).splitlines()[-1]


def test_a_page_has_a_section_for_each(pages):
    runs = dict.fromkeys(neighbours(), run_of())
    text = pages.page(runs, {name: [APART] for name in runs})
    assert "with torch 9.9;" in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(neighbours())
