"""Runs the `run:` steps of the action and of a workflow under bash, as a runner would."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SAMPLE = yaml.safe_load((ROOT / ".github" / "workflows" / "sample-parity.yml").read_text())


def substituted(text: str, context: Mapping[str, str]) -> str:
    """`${{ a.b }}` replaced; an expression that the context lacks is an error."""
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: context[found[1]], text)


def run_step(
    step: Mapping[str, Any], context: Mapping[str, str], folder: Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run one step with its environment; `python` is the one that runs the tests."""
    assert step["shell"] == "bash"
    assert "${{" not in step["run"], "scripts take values from the environment only"
    env = {name: substituted(str(value), context) for name, value in step["env"].items()}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent)])
    variables = os.environ | env | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} | extra
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def inputs(**given: str) -> dict[str, str]:
    """The context of an action: its defaults and what a workflow gives."""
    found = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()}
    names = {name.replace("_", "-"): value for name, value in given.items()}
    assert names.keys() <= found.keys()
    return {f"inputs.{name}": value for name, value in (found | names).items()}


def step_of(steps: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The step of that name."""
    (found,) = [step for step in steps if step.get("name") == name]
    return found


def audit_as_action(folder: Path, **given: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The action's step `Audit` in a folder; what it printed, and its outputs."""
    output, summary = folder / "github_output", folder / "github_summary"
    output.write_text("")
    step = step_of(ACTION["runs"]["steps"], "Audit")
    files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    done = run_step(step, inputs(**given), folder, **files)
    return done, dict(line.split("=", 1) for line in output.read_text().splitlines())
