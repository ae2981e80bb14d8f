"""Checks the import contracts of `pyproject.toml` on the tree as it installs.

`reference/`, `fixtures/` and `benchmark/` lie beside `sdpo/` and install inside its namespace: the
linter sees them only in a copy of the installed tree. Run as `python tests/lint_imports.py`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "sdpo": "sdpo",
    "benchmark": "sdpo/benchmark",
    "fixtures": "sdpo/fixtures",
    "reference": "sdpo/reference",
}
LINT = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(no_cache=True))"


def installed_tree(target: Path, root: Path = ROOT) -> None:
    """Copies the modules of all packages, and the contracts, to `target` as they install.

    Raises:
        FileNotFoundError: A package has no module.
    """
    for folder, package in PACKAGES.items():
        modules = sorted((root / folder).rglob("*.py"))
        if not modules:
            raise FileNotFoundError(f"no module in {root / folder}: nothing would be checked")
        for module in modules:
            copy = target / package / module.relative_to(root / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(module, copy)
    shutil.copyfile(root / "pyproject.toml", target / "pyproject.toml")


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Runs the linter in `tree` on what lies there, from a fresh cache."""
    command = [sys.executable, "-c", LINT]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def main() -> int:
    """Lints a copy of this checkout, prints what the linter says, returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        installed_tree(Path(folder))
        done = lint(Path(folder))
    print(done.stdout, done.stderr, sep="", end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
