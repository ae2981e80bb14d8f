"""A run's environment has versions and the machine, and no name or path of it."""

import json
import platform
import re
from pathlib import Path

from sdpo.benchmark.runs.environment import describe, peak_memory_mib


def test_versions_and_commit_are_named():
    environment = describe()
    assert environment["packages"]["python"] == platform.python_version()
    assert environment["packages"]["torch"]
    commit = environment["git_commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", commit)


def test_it_has_no_name_or_path_of_the_machine():
    text = json.dumps(describe())
    assert str(Path(__file__).parents[3]) not in text
    assert platform.node() not in text.split('"')


def test_the_peak_is_at_least_what_was_just_held():
    before = peak_memory_mib()
    held = bytearray(64 * 2**20)
    held[:] = b"x" * len(held)
    assert peak_memory_mib() >= max(before, 64)
