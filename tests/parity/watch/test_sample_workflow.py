"""The sample workflow files what is new, and what was filed before not again."""

import os
import subprocess

import pytest
import yaml

from tests.helpers.workflow_steps import ROOT, step_of

SAMPLE = yaml.safe_load((ROOT / ".github" / "workflows" / "sample-watch.yml").read_text())
MOVED = "1.2 introduced optimizer value (optimizer): largest |Δ| 0 → 0.25 in T01"
BROKEN = "trl with trl 1.3: not installed: no wheel of it"
LOG = f"trl with trl 1.1: DIVERGENT first=config deviations=1 9 s\n{BROKEN}\n{MOVED}\npage: p\n"


@pytest.mark.parametrize(
    ("filed", "new"),
    [("", f"{BROKEN}\n{MOVED}\n"), (f"{BROKEN}\n", f"{MOVED}\n"), (f"{MOVED}\n{BROKEN}\n", None)],
)
def test_only_what_is_new_is_filed(tmp_path, filed, new):
    (tmp_path / "watch.log").write_text(LOG)
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/bin/sh\n[ "$2" = list ] && printf %s "{filed}"\n'
        '[ "$2" = create ] && [ "$1" = issue ] && cp new.txt filed-now.txt\nexit 0\n'
    )
    gh.chmod(0o755)
    script = step_of(SAMPLE["jobs"]["watch"]["steps"], "File what is new")["run"]
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    filed_now = tmp_path / "filed-now.txt"
    assert (filed_now.read_text() if filed_now.exists() else None) == new
