"""What a user asks for: the command that repeats it, and names that are no stages."""

import pytest

from sdpo.parity.audit.request import Request, UsageError, check_stages, folder_name


def test_the_command_repeats_every_option_and_quotes_what_a_shell_would_split():
    request = Request(
        "my loss.py:f", ("gold",), ("trl",), stages=("tail",), require=("gradient",), coverage=2
    )
    assert request.command == (
        "sdpo audit 'my loss.py:f' --stages tail --require gradient --coverage 2 "
        "--goldens gold --declared trl"
    )
    assert Request("sdpo").command == "sdpo audit sdpo"


@pytest.mark.parametrize(
    ("candidate", "folder"),
    [
        ("pkg.mod:attr", "pkg.mod-attr"),
        ("../../my loss.py:f", "my-loss.py-f"),
        ("::", "candidate"),
    ],
)
def test_a_folder_name_has_no_separators_and_does_not_begin_with_a_dot(candidate, folder):
    assert folder_name(candidate) == Request(candidate).folder == folder


def test_a_name_that_is_no_stage_is_refused_with_the_valid_ones():
    check_stages("--stages", ["tail", "gradient"])
    with pytest.raises(
        UsageError, match=r"--require: unknown stages \['tails'\]; valid are config"
    ):
        Request("sdpo", require=("tail", "tails")).check()
