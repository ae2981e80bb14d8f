"""Lists of cases: strict keys, each mistake in one line."""

import pytest

from sdpo.parity.record.case_list import CaseListError, read_case_list

CASE = '[[loss]]\nid = "A"\ndescription = "one"\ntags = ["t"]\nseed = 1\n'


def read(tmp_path, text):
    (tmp_path / "cases.toml").write_text(text)
    return read_case_list(tmp_path / "cases.toml")


def test_what_is_not_given_has_the_usual_value(tmp_path):
    (entry,) = read(tmp_path, CASE).loss
    assert (entry.alpha, entry.loss_agg_mode, entry.temperature) == (0.5, "token-mean", 1.0)
    assert (entry.dtype, entry.is_clip, entry.rollout_is_threshold) == ("float32", None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CASE + "alhpa = 0.5\n", "'alhpa' is no key of a loss case; did you mean 'alpha'"),
        ("[[los]]\n", "'los' is no key; did you mean 'loss'"),
        (CASE + 'alpha = "half"\n', "Expected `float`, got `str`"),
        (CASE.replace("seed = 1\n", ""), "missing required field `seed`"),
        (CASE + CASE, "repeats the ids A"),
        ("", "lists no case"),
        ("[[loss]\n", "is not TOML"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(CaseListError, match=words) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "cases.toml" in str(caught.value)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CaseListError, match=r"absent\.toml: No such file"):
        read_case_list(tmp_path / "absent.toml")
