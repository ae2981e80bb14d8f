"""What may be watched, as a user writes it, and what makes no sense."""

import pytest

from sdpo.parity.watch.upstreams import Upstream, WatchError, parse_upstream


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("trl", Upstream("trl", "trl")),
        ("trl==1.15.0, 1.14.2,1.15.0", Upstream("trl", "trl", listed=("1.14.2", "1.15.0"))),
        ("trl==1.10.0,1.9.0", Upstream("trl", "trl", listed=("1.9.0", "1.10.0"))),
        ("trl>=1.13", Upstream("trl", "trl", range=">=1.13")),
        ("sdpo-rl@trl==1.15.0", Upstream("sdpo-rl", "trl", listed=("1.15.0",))),
        ("my_loss.py:f@p==2", Upstream("my_loss.py:f", "p", listed=("2",))),
        ("a@b.py:f@p", Upstream("a@b.py:f", "p")),
        ("verl@SDPO:main,v1", Upstream("verl", checkout="SDPO", listed=("main", "v1"))),
        ("verl@c:/x:a..b", Upstream("verl", checkout="c:/x", listed=("a..b",))),
    ],
)
def test_candidate_and_releases_are_read(text, upstream):
    assert parse_upstream(text) == upstream


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no package"),
        ("@trl", "names no package"),
        ("mine@", "names no package"),
        ("trl==", "names no version"),
        ("trl==,", "names no version"),
        ("trl==new", "Invalid version: 'new'"),
        ("trl 1.15", "'1.15' are no versions"),
        ("trl=1.15", "'=1.15' are no versions"),
        ("verl", "names no checkout"),
        ("verl==0.9", "names no checkout"),
        ("verl@SDPO", "names no commits"),
        ("verl@SDPO:", "names no commits"),
        ("verl@:main", "names no checkout"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_a_form_that_does(text, words):
    with pytest.raises(WatchError, match=words) as refused:
        parse_upstream(text)
    assert "write " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkout_is_called_by_its_folder():
    assert parse_upstream("verl@/a/b/SDPO/:main").name == "SDPO"
    assert parse_upstream("sdpo-rl@trl").name == "trl"
