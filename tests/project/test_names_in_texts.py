"""Every path, module and link that documents and docstrings name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sdpo", "reference", "fixtures", "benchmark", "docs", "examples", "tests")
BESIDE = ("reference", "fixtures", "benchmark")
FILES = {
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "reference").glob("*.md")]
)
MODULES = sorted(ROOT / name for name in FILES if name.endswith(".py"))
NOT_OURS = re.compile(r"verl/|sdpo_rl/|(?:my_loss|port|submission)\.py$")
PATH = re.compile(rf"`((?:[\w.-]+/)*[\w.-]+\.py|(?:{'|'.join(FOLDERS)})/[\w./-]*)`")
DOTTED = re.compile(r"(?:`|python -m |from |import )(sdpo(?:\.(?!toml|yaml)\w+)+)(?=`|\s|$)")
LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")


def named(path: Path) -> str:
    """What a document says, or the docstrings of a module: history may name what is gone."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text if path.name != "CHANGELOG.md" else ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def absent(text: str, folder: Path) -> list[str]:
    """Names in a text that stand for no file, folder or module."""
    paths = {name for name in PATH.findall(text) if not NOT_OURS.search(name)}
    gone = [name for name in paths if not exists(name)]
    gone += [name for name in set(DOTTED.findall(text)) if not is_defined(name)]
    return sorted(gone + [link for link in LINK.findall(text) if not (folder / link).exists()])


def exists(name: str) -> bool:
    """Whether a name is a path of the checkout, or the end of the path of a file."""
    return (ROOT / name).exists() or any(file.endswith(f"/{name}") for file in FILES)


def is_defined(name: str) -> bool:
    """Whether a dotted name is a package, a module, or a name that a module mentions."""
    parts = name.split(".")[1:]
    base = ROOT if parts[0] in BESIDE else ROOT / "sdpo"
    for count in range(len(parts), -1, -1):
        path, rest = base.joinpath(*parts[:count]), parts[count:]
        module = path.with_suffix(".py") if path.with_suffix(".py").exists() else path
        if module.is_dir():
            module = module / "__init__.py"
        if module.is_file():
            text = module.read_text(encoding="utf-8")
            return all(re.search(rf"\b{part}\b", text) for part in rest)
    return False


def test_documents_name_what_exists():
    said = {path: named(path) for path in DOCUMENTS}
    assert sum(len(PATH.findall(text)) for text in said.values()) > 60
    assert sum(len(DOTTED.findall(text)) for text in said.values()) > 15
    gone = {path.name: absent(text, path.parent) for path, text in said.items()}
    assert {name: names for name, names in gone.items() if names} == {}


def test_docstrings_name_what_exists():
    said = {path: named(path) for path in MODULES}
    assert sum(len(PATH.findall(text)) for text in said.values()) > 40
    gone = {str(path.relative_to(ROOT)): absent(text, ROOT) for path, text in said.items()}
    assert {name: names for name, names in gone.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "`bounds.py`",
        "`sdpo/parity/adapters/own.py`",
        "`sdpo/parity/whole_step/`",
        "`sdpo.support`",
        "`sdpo.parity.truth.oracle.no_such_thing`",
        "from sdpo.aggregate import aggregate",
        "python -m sdpo.benchmark.pretrain OUT",
        "[why](docs/no_such_page.md)",
    ],
)
def test_a_name_that_is_gone_is_seen(text):
    assert absent(text, ROOT) != []


def test_map_of_the_readme_names_folders_and_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Where things are.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    names = re.findall(r"[\w/]+/(?=\s|$)|\w+\.(?:py|md|toml)", block[1])
    assert len(names) > 40
    wrong = [n for n in names if not any(f"/{n}" in f"/{file}" for file in FILES)]
    assert wrong == []
