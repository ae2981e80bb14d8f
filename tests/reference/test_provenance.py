"""Every range of lines of the reference that this project names is where it says it is.

`reference/PROVENANCE.toml` has tables of definitions and of parts of them, with their lines.
Everything else that names lines must agree with them; with a checkout (`SDPO_VERL_CHECKOUT`) so
must the reference itself: a part by the hashes of its first and last line.
"""

import ast
import hashlib
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
PARTS: dict[str, dict[str, dict[str, str]]] = PROVENANCE["parts"]
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


def known_ranges() -> set[tuple[str, str]]:
    """Path and lines of all definitions and of all parts."""
    definitions = {(path, lines) for path, named in DEFINITIONS.items() for lines in named.values()}
    return definitions | {(path, lines) for path, parts in PARTS.items() for lines in parts}


def line_hash(line: str) -> str:
    return hashlib.sha256(line.strip().encode()).hexdigest()[:8]


def test_each_part_lies_in_its_definition_and_is_short_enough_to_read():
    for path, parts in PARTS.items():
        for lines, part in parts.items():
            definition, named = span(DEFINITIONS[path][part["of"]]), span(lines)
            assert named[0] in definition, (path, lines)
            assert named[-1] in definition, (path, lines)
            assert len(named) <= 60, (path, lines)


def test_each_part_is_named_somewhere():
    named = {place[1:] for place in named_ranges() if place[0] != "reference/PROVENANCE.toml"}
    named |= {(entry["path"], entry["lines"]) for entry in FUNCTIONS}
    named |= {tuple(stage.source.split(":")) for stage in STAGES.values()}
    unused = {(path, lines) for path, parts in PARTS.items() for lines in parts} - named
    assert unused == set()


def test_each_function_of_the_transcription_comes_from_its_definition_or_a_part_of_it():
    for entry in FUNCTIONS:
        path, lines = entry["path"], entry["lines"]
        part = PARTS.get(path, {}).get(lines)
        assert part is not None or lines == DEFINITIONS[path][entry["definition"]], entry
        assert part is None or part["of"] == entry["definition"], entry


def test_each_range_in_code_and_documents_is_a_definition_or_a_part_of_the_tables():
    wrong = [place for place in named_ranges() if place[1:] not in known_ranges()]
    assert wrong == []


def test_each_stage_names_a_definition_or_a_part_of_the_tables():
    assert {tuple(stage.source.split(":")) for stage in STAGES.values()} <= known_ranges()


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


def test_a_line_is_known_by_its_text_without_white_space_around_it():
    assert line_hash("    return 1\n") == line_hash("return 1") != line_hash("return 2")


def test_lines_are_counted_with_decorators_and_inside_of_functions():
    text = "@d\n@e\ndef f():\n    if 1:\n        def g():\n            pass\nclass C:\n    x = 1\n"
    assert lines_of_definitions(text) == {"f": "1-6", "f.g": "5-6", "C": "7-8"}


@pytest.mark.skipif(not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO")
@pytest.mark.parametrize("path", DEFINITIONS)
def test_the_checkout_has_each_definition_at_its_lines(path):
    found = lines_of_definitions((Path(CHECKOUT) / path).read_text("utf-8"))
    assert {name: found.get(name) for name in DEFINITIONS[path]} == DEFINITIONS[path]


@pytest.mark.skipif(not CHECKOUT, reason="SDPO_VERL_CHECKOUT names no checkout of lasgroup/SDPO")
@pytest.mark.parametrize("path", PARTS)
def test_the_checkout_begins_and_ends_each_part_as_recorded(path):
    text = (Path(CHECKOUT) / path).read_text("utf-8").splitlines()
    ends = {lines: (text[span(lines)[0] - 1], text[span(lines)[-1] - 1]) for lines in PARTS[path]}
    found = {lines: tuple(map(line_hash, pair)) for lines, pair in ends.items()}
    assert found == {lines: (part["first"], part["last"]) for lines, part in PARTS[path].items()}
