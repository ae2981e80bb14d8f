"""A run continues from the latest checkpoint that was written to its end."""

from sdpo.benchmark.runs import checkpoints


def test_a_checkpoint_counts_only_when_it_is_whole(tmp_path):
    for step in (5, 10, 15):
        folder = checkpoints.folder_of(tmp_path, step)
        folder.mkdir()
        (folder / "weights").write_text("x" * step)
        if step < 15:
            checkpoints.seal(folder)
    (checkpoints.folder_of(tmp_path, 10) / "weights").write_text("x")
    assert checkpoints.latest(tmp_path) == (checkpoints.folder_of(tmp_path, 5), 5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    assert checkpoints.latest(tmp_path / "nothing") == (None, 0)


def test_the_latest_is_that_of_the_highest_step(tmp_path):
    """Not the last one by name: 10 comes before 9 there."""
    for step in (9, 10):
        folder = checkpoints.folder_of(tmp_path, step)
        folder.mkdir()
        checkpoints.seal(folder)
    assert checkpoints.latest(tmp_path) == (tmp_path / "checkpoint-10", 10)
