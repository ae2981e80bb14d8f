"""Import contracts and sizes that keep the project readable."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.lint_imports import PACKAGES, installed_tree, lint

ROOT = Path(__file__).parents[2]
PLAIN = ("sdpo/loss", "sdpo/update", "sdpo/fused", "sdpo/prompt", "reference")
READING_ORDER = ("support", "divergence", "importance", "aggregate", "self_distillation")
CROSS_CUTTING = {"equivalence", "sensitivity", "properties", "project", "cli"}
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
PLANTED = [
    ("sdpo/loss/support.py", "sdpo.parity.cases.stages", "imports go down the floors only"),
    ("sdpo/parity/cases/stages.py", "sdpo.parity.report.trend", "imports go down the floors only"),
    ("sdpo/benchmark/scoring/reward.py", "sdpo.trainer.checks", "imports go down the floors only"),
    ("sdpo/fused/lm_head.py", "sdpo.parity.truth.oracle", "imports go down the floors only"),
    ("sdpo/loss/support.py", "sdpo.loss.self_distillation", "no cycles between the modules"),
    ("sdpo/benchmark/problems/case.py", "sdpo.benchmark.problems.prompts", "no cycles between"),
    ("sdpo/loss/aggregate.py", "numpy", "the maths is plain torch"),
    ("sdpo/fused/chunks.py", "transformers", "the maths is plain torch"),
    ("sdpo/loss/divergence.py", "sdpo.reference.loss", "our maths never imports the transcription"),
    ("sdpo/reference/loss.py", "sdpo.loss.support", "the transcription imports nothing of ours"),
    ("sdpo/reference/update.py", "trl", "the transcription imports nothing of ours"),
    ("sdpo/parity/truth/oracle.py", "sdpo.reference.loss", "the oracle shares nothing"),
    ("sdpo/parity/truth/oracle.py", "sdpo.parity.truth.budget", "the oracle shares nothing"),
    ("sdpo/parity/truth/oracle.py", "sdpo.loss.log_softmax", "the oracle shares nothing"),
    ("sdpo/lockstep/replica.py", "sdpo.trainer.checkpoint", "the live audit shares nothing with"),
    ("sdpo/lockstep/trainer_snapshot.py", "sdpo.update.schedule", "the live audit shares nothing"),
    (
        "sdpo/lockstep/chunked_logit_outputs.py",
        "sdpo.loss.support",
        "the live audit shares nothing",
    ),
    ("sdpo/parity/cases/run_reference.py", "sdpo.prompt.teacher_tokens", "the live audit shares"),
    ("sdpo/parity/compare/verdict.py", "trl", "the harness imports TRL in adapters only"),
    ("sdpo/parity/trainers/judge/effects.py", "trl.trainer", "the harness imports TRL"),
]


def sources(*folders: str) -> list[Path]:
    """The modules below each of the folders, of which none may be empty."""
    found = [sorted((ROOT / folder).rglob("*.py")) for folder in folders]
    assert all(found), folders
    return [path for paths in found for path in paths]


def third_party(path: Path) -> set[str]:
    """Top-level names of what a module imports anywhere that is neither ours nor Python's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - {"sdpo"} - sys.stdlib_module_names


@pytest.fixture
def tree(tmp_path):
    installed_tree(tmp_path)
    return tmp_path


def test_imports_keep_the_contracts(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS['contracts'])} kept, 0 broken" in done.stdout
    assert all(f"{contract['name']} KEPT" in done.stdout for contract in CONTRACTS["contracts"])


@pytest.mark.parametrize(("path", "imported", "contract"), PLANTED)
def test_a_planted_import_breaks_its_contract(tree, path, imported, contract):
    module = tree / path
    text = module.read_text(encoding="utf-8")
    module.write_text(f"{text}\n\ndef planted():\n    import {imported}\n", encoding="utf-8")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), done.stdout


def test_every_contract_is_seen_broken():
    for contract in CONTRACTS["contracts"]:
        assert any(contract["name"].startswith(begun) for *_, begun in PLANTED), contract["name"]


def test_a_tree_without_a_package_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing would be checked"):
        installed_tree(tmp_path / "tree", tmp_path)


def test_every_module_lies_on_a_floor():
    (layers,) = (c["layers"] for c in CONTRACTS["contracts"] if c["type"] == "layers")
    floors = [name for layer in layers for name in layer.split(" | ")]
    assert len(floors) == len(set(floors))
    for folder, package in PACKAGES.items():
        for path in sources(folder):
            inside = path.relative_to(ROOT / folder).with_suffix("")
            name = f"{package}/{inside}".replace("/", ".")
            on = [floor for floor in floors if f"{name}.".startswith(f"{floor}.")]
            assert len(on) == 1 or name.endswith("__init__"), f"{name} lies on floors {on}"


def test_maths_and_transcription_need_torch_only():
    needed = {path: third_party(path) for path in sources(*PLAIN)}
    assert set().union(*needed.values()) == {"torch", "triton"}
    assert [path.name for path, names in needed.items() if "triton" in names] == [
        "triton_kernels.py"
    ]


def test_maths_reads_top_to_bottom_in_few_lines():
    paths = [ROOT / "sdpo" / "loss" / f"{name}.py" for name in READING_ORDER]
    assert sum(len(path.read_text().splitlines()) for path in paths) <= 500


def test_the_reference_is_these_files():
    names = {path.name for path in sources("reference")}
    transcribed = {"forward.py", "loss.py", "teacher_prompt.py", "update.py"}
    assert names == {"__init__.py", "hooks.py"} | transcribed


def test_a_folder_has_at_most_twelve_modules():
    for folder in {path.parent for path in sources(*PACKAGES)}:
        modules = {path.name for path in folder.glob("*.py")}
        assert "__init__.py" in modules, folder
        assert len(modules - {"__init__.py"}) <= 12, folder


def test_every_folder_says_its_one_idea_in_a_line():
    faces = [path for path in sources(*PACKAGES) if path.name == "__init__.py"]
    assert len(faces) > 30
    for path in faces:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert said, path
        assert "\n" not in said, path


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in sources(*PACKAGES)}
    assert len(lengths) > 200
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


def test_tests_lie_in_folders_of_the_same_name_as_packages():
    tests = [path.relative_to(ROOT / "tests") for path in sources("tests")]
    mirrored = [t for t in tests if t.name.startswith("test_") and t.parts[0] not in CROSS_CUTTING]
    assert len(mirrored) > 60
    for test in mirrored:
        packages = (ROOT / "sdpo" / test.parent, ROOT / test.parent)
        assert test.parent.parts, test
        assert any((folder / "__init__.py").exists() for folder in packages), test


def test_no_test_imports_from_another_test():
    tests = [path for path in sources("tests") if path.name.startswith("test_")]
    assert len(tests) > 100
    stems = {path.stem for path in tests}
    for path in tests:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            parts = {part for name in names for part in name.split(".")}
            assert not stems & parts, path


def test_command_line_imports_nothing_heavy():
    code = (
        "import sys, sdpo.cli; "
        "from sdpo.parity.audit import launch; launch.keep(None, launch.Outputs(None)); "
        "print([m for m in ('torch', 'transformers', 'trl', 'matplotlib', 'pandas') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TYPES = {
    "UpdateSettings",
    "Demonstration",
    "LogitOptions",
    "PromptTrace",
    "TeacherBatch",
    "Tokenizer",
}
"""What the transcription calls its arguments and results; the original has no such classes."""


def test_provenance_names_every_function_of_the_reference():
    provenance = tomllib.loads((ROOT / "reference" / "PROVENANCE.toml").read_text())
    for path in sources("reference"):
        if path.name in ("__init__.py", "hooks.py"):  # not in the original
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        } - TYPES
        named = {entry["name"] for entry in provenance["files"][path.name]["functions"]}
        assert defined == named, path.name
