"""Each layer forbids what it is there for, and what is missing is said."""

import tempfile
from pathlib import Path

import pytest

from sdpo.benchmark.sandbox.client import IsolationError
from sdpo.benchmark.sandbox.confinement.confine import CORE_LAYERS
from sdpo.benchmark.scoring.executor import Executor
from tests.helpers.confined import needs_linux, printed_by
from tests.helpers.programs.attempts import REFUSED


@needs_linux
def test_core_layers_are_active_and_reported(executor: Executor) -> None:
    assert set(CORE_LAYERS) <= set(executor.isolation)


@needs_linux
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("read passwd", {"landlock"}),
        ("list the root", {"landlock"}),
        ("create elsewhere", {"landlock", "namespaces"}),
        ("fork", {"seccomp"}),
        ("internet socket", {"seccomp"}),
        ("signal to the parent", {"seccomp", "namespaces", "landlock"}),
        ("memory file", {"seccomp"}),
        ("large file", {"resource-limits", "namespaces"}),
    ],
)
def test_an_attempt_succeeds_without_its_layer(name: str, layers: set[str]) -> None:
    with Executor(1, disabled=frozenset(layers)) as executor:
        assert not layers & set(executor.isolation)
        result = executor.submit(REFUSED[name].case()).result()
    if Path("/tmp/sdpo-attempt").is_dir():
        Path("/tmp/sdpo-attempt").rmdir()
    assert result.status == "fail"
    assert "not refused" in result.feedback


@needs_linux
@pytest.mark.parametrize("name", ["fork", "read passwd", "internet socket", "signal to process 1"])
def test_core_layers_suffice_without_namespaces(name: str) -> None:
    with Executor(1, disabled=frozenset({"namespaces"})) as executor:
        assert not any("namespace" in layer for layer in executor.isolation)
        assert executor.submit(REFUSED[name].case()).result().status == "pass"


def test_missing_isolation_is_refused_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(IsolationError, match=r"seccomp.*drop --require-isolation"):
        Executor(1, require_isolation=True, disabled=frozenset({"seccomp"}))
    assert list(tmp_path.iterdir()) == []


def test_disabled_layers_are_not_listed() -> None:
    code = """
    from sdpo.benchmark.sandbox.confinement.confine import CORE_LAYERS, Confinement
    every = frozenset((*CORE_LAYERS, "no-capabilities"))
    confinement = Confinement(["pid-namespace"], every)
    confinement.prepare("/nowhere", 1, 1)
    print(confinement.layers)
    """
    assert printed_by(code) == ["['pid-namespace']"]
