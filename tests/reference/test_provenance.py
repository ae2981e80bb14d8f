"""Every range of lines of the reference that this project names is where it says it is.

`reference/PROVENANCE.toml` has a table of definitions and their lines. Everything else that names
lines must agree with it; with a checkout (`SDPO_VERL_CHECKOUT`) so must the reference itself.
"""

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest

from sdpo.parity.cases.stages import STAGES

ROOT = Path(__file__).parents[2]
CHECKOUT = os.environ.get("SDPO_VERL_CHECKOUT", "")
PROVENANCE = tomllib.loads((ROOT / "reference" / "PROVENANCE.toml").read_text("utf-8"))
DEFINITIONS: dict[str, dict[str, str]] = PROVENANCE["definitions"]
FUNCTIONS = [entry for file in PROVENANCE["files"].values() for entry in file["functions"]]
NAMED = re.compile(r"`?(verl/[\w/]+\.py)`?[ :](\d+-\d+)")


def span(lines: str) -> range:
    first, last = map(int, lines.split("-"))
    return range(first, last + 1)


def named_ranges() -> list[tuple[str, str, str]]:
    """Where, path and lines of every range that code and documents name."""
    found = []
    for folder in ("sdpo", "reference", "benchmark", "fixtures", "docs", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".toml"):
                text = path.read_text("utf-8")
                where = str(path.relative_to(ROOT))
                found += [(where, *match.groups()) for match in NAMED.finditer(text)]
    return found


def test_the_table_is_large_enough_to_say_something():
    assert sum(map(len, DEFINITIONS.values())) > 20
    assert len(named_ranges()) > 30


def test_each_function_of_the_transcription_comes_from_a_definition():
    for entry in FUNCTIONS:
        whole = span(DEFINITIONS[entry["path"]][entry["definition"]])
        part = span(entry["lines"])
        assert part[0] in whole, entry
        assert part[-1] in whole, entry


def test_each_range_in_code_and_documents_is_a_definition_of_the_table():
    known = {(path, lines) for path, named in DEFINITIONS.items() for lines in named.values()}
    wrong = [place for place in named_ranges() if place[1:] not in known]
    assert wrong == []


def test_each_stage_names_lines_of_a_definition_and_few_enough_to_read():
    for stage in STAGES.values():
        path, _, lines = stage.source.partition(":")
        named = span(lines)
        wholes = [span(whole) for whole in DEFINITIONS[path].values()]
        assert any(named[0] in whole and named[-1] in whole for whole in wholes), stage
        assert len(named) <= 60 or lines in DEFINITIONS[path].values(), stage


def lines_of_definitions(text: str) -> dict[str, str]:
    """Qualified names of all functions and classes, and their lines with decorators."""
    found: dict[str, str] = {}

    def collect(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                first = min([child.lineno, *(item.lineno for item in child.decorator_list)])
                found[prefix + child.name] = f"{first}-{child.end_lineno}"
                name = f"{prefix}{child.name}."
            collect(child, name)

    collect(ast.parse(text), "")
    return found


def test_lines_are_counted_with_decorators_and_inside_of_functions():
    text = "@d\n@e\ndef f():\n    if 1:\n        def g():\n            pass\nclass C:\n    x = 1\n"
    assert lines_of_definitions(text) == {"f": "1-6", "f.g": "5-6", "C": "7-8"}


@pytest.mark.skipif(not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO")
@pytest.mark.parametrize("path", DEFINITIONS)
def test_the_checkout_has_each_definition_at_its_lines(path):
    found = lines_of_definitions((Path(CHECKOUT) / path).read_text("utf-8"))
    assert {name: found.get(name) for name in DEFINITIONS[path]} == DEFINITIONS[path]


@pytest.mark.skipif(not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO")
def test_the_checkout_sets_the_tokenizers_sides_at_the_lines_named():
    (entry,) = (entry for entry in FUNCTIONS if entry["name"] == "set_tokenizer_sides")
    lines = (Path(CHECKOUT) / entry["path"]).read_text("utf-8").splitlines()
    first, last = span(entry["lines"])[0], span(entry["lines"])[-1]
    assert all("tokenizer." in lines[number - 1] for number in (first, last))
    assert all("_side = " in lines[number - 1] for number in (first, last))
