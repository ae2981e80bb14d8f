"""`sdpo record`: which options go together."""

import pytest

from sdpo.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of --out DIR, --check and --random N"),
        (["--check", "--out", "x"], "give one of --out DIR, --check and --random N"),
        (["--random", "3", "--check"], "give one of --out DIR, --check and --random N"),
        (["--check", "--force-regen"], "go with --out alone"),
        (["--random", "3", "--allow-modified"], "go with --out alone"),
        (["--check", "--seed", "3"], "--seed goes with --random alone"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(["record", "SDPO", *arguments])
    told = capsys.readouterr().out
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert words in told
