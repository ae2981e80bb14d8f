"""The examples run as scripts with a tiny model; the Unsloth one says what is in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

FOLDER = Path(__file__).parents[2] / "examples"
ON_A_CPU = ("basic_sdpo", "sdpo_hybrid", "sdpo_lora_ema", "sdpo_rich_feedback")


def run(name: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_CPU)
def test_an_example_runs(name, tmp_path):
    done = run(name, tmp_path, "--tiny", "--steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'train_loss'" in done.stdout
    if name == "sdpo_lora_ema":
        rows = (tmp_path / "parity" / "parity.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 3
        assert (tmp_path / "parity" / "drift.png").is_file()


def test_every_example_is_run_or_guarded():
    names = {path.stem for path in FOLDER.glob("*.py")} - {"common"}
    audited = {"audit_my_trainer", "audit_my_hf_trainer"}
    assert names == {*ON_A_CPU, *audited, "sdpo_unsloth_qlora"}


@pytest.mark.parametrize("early", [(), ("trl",), ("sdpo.trainer.sdpo_trainer", "transformers")])
def test_the_import_order_of_unsloth_is_guarded(early, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import sdpo_unsloth_qlora as example  # pyright: ignore[reportMissingImports]

    modules = {n: m for n, m in sys.modules.items() if n not in example.PATCHED}
    monkeypatch.setattr(sys, "modules", modules | dict.fromkeys(early, sys))
    if not early:
        monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    message = "imported before unsloth" if early else "unsloth is not installed"
    with pytest.raises(ImportError, match=message):
        example.check_import_order()
