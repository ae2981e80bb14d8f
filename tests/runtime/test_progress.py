"""Bars are for terminals; elsewhere they count and show nothing."""

from sdpo.runtime.progress import progress_bars


def test_without_a_terminal_nothing_is_shown(capsys):
    with progress_bars() as bars:
        task = bars.add_task("cases", total=3, completed=1)
        bars.advance(task)
        assert bars.tasks[task].completed == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_terminal_shows_description_and_count(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bars() as bars:
        task = bars.add_task("cases", total=3)
        bars.advance(task, 2)
    error = capsys.readouterr().err
    assert "cases" in error
    assert "2/3" in error
