"""The kill test notices what is lost or changed, and a run survives it."""

import pytest

from sdpo.benchmark.runs import kill_test
from sdpo.benchmark.runs.records import Records
from sdpo.benchmark.runs.settings import load


def write(folder, steps, reward=0.5):
    folder.mkdir(parents=True)
    for step in steps:
        Records(folder).steps.append({"step": step, "reward": reward})
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_lost_a_doubled_and_a_changed_row_are_noticed(tmp_path):
    uninterrupted = write(tmp_path / "uninterrupted", [1, 2, 3])
    kill_test.check_state(write(tmp_path / "begun", [1, 2]), uninterrupted)
    kill_test.check_end(write(tmp_path / "same", [1, 2, 3]), uninterrupted)
    broken = {"lost": [1, 3], "doubled": [1, 1, 2], "more": [1, 2, 3, 4]}
    for name, steps in broken.items():
        with pytest.raises(kill_test.DamageError, match=r"steps\.jsonl is not the beginning"):
            kill_test.check_state(write(tmp_path / name, steps), uninterrupted)
    with pytest.raises(kill_test.DamageError, match=r"steps\.jsonl"):
        kill_test.check_state(write(tmp_path / "changed", [1], reward=0.4), uninterrupted)
    with pytest.raises(kill_test.DamageError, match=r"steps\.jsonl differ"):
        kill_test.check_end(write(tmp_path / "short", [1, 2]), uninterrupted)


def test_other_weights_are_noticed(tmp_path):
    uninterrupted, other = write(tmp_path / "uninterrupted", [1]), write(tmp_path / "other", [1])
    (other / "model" / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(kill_test.DamageError, match=r"model\.safetensors differ"):
        kill_test.check_end(other, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::sdpo.trainer.checks.SDPOWarning")
@pytest.mark.parametrize("config", ["grpo", "sdpo", "hybrid", "sdpo-audit"])
def test_kills_lose_nothing(config, tmp_path):
    short = [f"{name}={value}" for name, value in kill_test.SHORT.items()]
    count = kill_test.kill_runs(load(config, short), tmp_path, kills=5)
    assert len(count.steps) == 5
    assert "model/model.safetensors" in count.files
