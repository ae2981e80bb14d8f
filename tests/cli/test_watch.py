"""`sdpo watch`: wrong usage is one line and exit code 2, and nothing is written."""

import pytest

from sdpo.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing parameter: upstreams"),
        (["trl", "--last", "0"], "greater than or equal to 1"),
        (["trl=="], "names no version"),
        (["verl@SDPO"], "names no commits"),
        (["verl@no-such-folder:main"], "cannot be watched"),
    ],
)
def test_wrong_usage_is_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["watch", *arguments])
    told = capsys.readouterr().out
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert words in told
    assert list(tmp_path.iterdir()) == []
