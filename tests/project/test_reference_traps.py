"""The table of the reference's traps says what its command measures."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def traps():
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("reference_traps")
    sys.path.remove(str(DOCS))


def rows(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


@pytest.fixture(scope="module")
def written(traps: ModuleType) -> list[str]:
    text = traps.README.read_text(encoding="utf-8")
    return rows(text.split("<!-- traps: begin -->")[1].split("<!-- traps: end -->")[0])


@pytest.fixture(scope="module")
def measured(traps: ModuleType) -> list[str]:
    return rows(traps.table())


def test_the_page_says_what_is_measured(written, measured):
    """Other processors give other last digits, and never another sentence."""
    assert [NUMBER.sub("#", row) for row in written] == [NUMBER.sub("#", row) for row in measured]
    for one, other in zip(written, measured, strict=True):
        ours, theirs = ([float(n) for n in NUMBER.findall(row)] for row in (one, other))
        assert ours == pytest.approx(theirs, rel=0.02)


def test_every_trap_names_its_case_or_says_that_there_is_none(written):
    assert len(written) >= 15
    for row in written:
        case = row.split("|")[-2]
        assert re.search(r"P-[LRU]\d{3}|sdpo drift|none recorded|direct calls", case), row


def test_a_figure_that_is_not_the_measured_one_is_seen(written, measured):
    changed = [row.replace("0.423 in one", "0.523 in one") for row in written]
    assert changed != written
    with pytest.raises(AssertionError):
        test_the_page_says_what_is_measured(changed, measured)
