"""Dependency rules and sizes that keep the project readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MATHS = ("support", "divergence", "importance", "aggregate", "loss")
FUSED = ("heads", "vocabulary", "log_probs", "fused_job", "fused", "kernels", "gradient_memory")
TORCH_ONLY = {"torch", "math", "collections", "typing", "dataclasses", "types", "re", "warnings"}
FURTHER = {
    "fused": {"functools"},
    "log_probs": {"functools"},
    "gradient_memory": {"mmap"},
    "softmax": {"itertools"},
    "vocabulary": {"importlib", "functools"},
    "kernels": {"triton"},
}


def imports(path: Path) -> set[str]:
    """Top-level modules, and modules of this project in full, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found.add(name if name.startswith("sdpo") else name.split(".")[0])
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", [*MATHS, *FUSED, "softmax", "teacher", "shapes"])
def test_maths_imports_torch_and_maths_only(name):
    allowed = TORCH_ONLY | {"sdpo", "sdpo.config"} | FURTHER.get(name, set())
    known = (*MATHS, *(FUSED if name in FUSED else ()), "config", "softmax", "teacher", "shapes")
    for module in imports(ROOT / "sdpo" / f"{name}.py"):
        own = module.startswith("sdpo.") and module.split(".")[1] in known
        assert own or module in allowed, module


def test_maths_reads_top_to_bottom_in_few_lines():
    lines = [len((ROOT / "sdpo" / f"{n}.py").read_text().splitlines()) for n in MATHS]
    assert sum(lines) <= 500


@pytest.mark.parametrize("path", sources("reference"), ids=lambda p: p.name)
def test_reference_imports_torch_only(path):
    standard = sys.stdlib_module_names
    for module in imports(path):
        assert module == "torch" or module in standard or module.startswith("sdpo.reference")


def test_reference_is_four_files():
    names = {path.name for path in (ROOT / "reference").glob("*.py")}
    assert names == {"__init__.py", "forward.py", "loss.py", "teacher_prompt.py", "update.py"}


def test_sdpo_and_reference_do_not_import_each_other():
    for path in sorted((ROOT / "sdpo").glob("*.py")):
        assert not any(m.startswith("sdpo.reference") for m in imports(path)), path
    for path in sources("reference"):
        assert not any(m.startswith("sdpo.") and "reference" not in m for m in imports(path))


def test_oracle_shares_nothing_with_what_it_judges():
    allowed = {"sdpo.parity.case", "sdpo.parity.case.LossCase"}
    for module in imports(ROOT / "sdpo" / "parity" / "oracle.py"):
        assert not module.startswith("sdpo") or module in allowed, module


def test_parity_never_imports_trl():
    for path in sources("sdpo/parity"):
        if "adapters" not in path.parts:
            assert "trl" not in imports(path), path


def test_no_file_is_longer_than_400_lines():
    paths = sources("sdpo", "reference", "fixtures", "benchmark")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lengths) > 200
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


def test_command_line_imports_nothing_heavy():
    code = (
        "import sys, sdpo.cli; "
        "from sdpo.parity import launch; launch.keep({}, None, None); "
        "print([m for m in ('torch', 'transformers', 'trl', 'matplotlib', 'pandas') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_provenance_names_every_function_of_the_reference():
    import tomllib

    provenance = tomllib.loads((ROOT / "reference" / "PROVENANCE.toml").read_text())
    for path in sources("reference"):
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        } - {"UpdateSettings", "Demonstration", "TeacherBatch"}
        named = {entry["name"] for entry in provenance["files"][path.name]["functions"]}
        assert defined == named, path.name
