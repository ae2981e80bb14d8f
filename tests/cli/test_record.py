"""`sdpo record`: which options go together."""

import pytest

from sdpo.cli import main
from sdpo.parity.record.launch import KERNELS, with_kernels


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


def test_the_kernels_of_the_recording_replace_those_of_the_environment():
    own = with_kernels({"ATEN_CPU_CAPABILITY": "avx512", "HOME": "/h"})
    assert own == {"HOME": "/h", **KERNELS}
    assert own["MKL_CBWR"] == "COMPATIBLE"
