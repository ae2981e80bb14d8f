"""What a user asks to be watched: a candidate, and the releases that it is audited with.

| text | meaning |
|---|---|
| `trl==1.14.2,1.15.0` | the candidate `trl` in these releases of the package |
| `trl`, `trl>=1.13` | in its latest releases, in a range of them |
| `sdpo-rl@trl==1.15.0,1.16.0` | the candidate `sdpo-rl` beside releases of another package |
| `verl@SDPO:v1.0.0,main` | the candidate `verl` in commits of a checkout |
"""

import re
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

CHECKOUT_CANDIDATE = "verl"
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
EXAMPLES = "write trl==1.15.0,1.16.0, CANDIDATE@PACKAGE==VERSION or verl@CHECKOUT:COMMIT,COMMIT"


class WatchError(Exception):
    """What is asked for makes no sense; the message says in one line why, and what to do."""


@dataclass(frozen=True)
class Upstream:
    """A candidate and where its releases come from.

    Attributes:
        candidate: what is audited, as `sdpo audit` takes it.
        package: the distribution whose releases are compared; empty for a checkout.
        checkout: the folder whose commits are compared; empty for a package.
        listed: versions or commits as the user wrote them; none where the index is asked.
        range: limits of the versions that the index lists, such as `>=1.13`.
    """

    candidate: str
    package: str = ""
    checkout: str = ""
    listed: tuple[str, ...] = ()
    range: str = ""

    @property
    def name(self) -> str:
        """The package, or the name of the checkout's folder."""
        return self.package or re.split(r"[/\\]", self.checkout.rstrip("/\\"))[-1]


def parse_upstream(text: str) -> Upstream:
    """Read what a user wrote.

    Raises:
        WatchError: it names no package or checkout, or no usable version or commit.
    """
    candidate, at, rest = text.rpartition("@")
    if candidate == CHECKOUT_CANDIDATE:
        return _of_checkout(rest, text)
    matched = re.fullmatch(rf"({NAME})\s*(.*)", rest)
    if matched is None or (at and not candidate):
        raise WatchError(f"{text!r} names no package: {EXAMPLES}")
    package, versions = matched.groups()
    candidate = candidate or package
    if candidate == CHECKOUT_CANDIDATE:
        raise WatchError(f"{text!r} names no checkout: write verl@CHECKOUT:COMMIT,COMMIT")
    if re.fullmatch(r"==[^=<>!~]*", versions):
        return Upstream(candidate, package, listed=_versions(versions[2:], text))
    try:
        return Upstream(candidate, package, range=str(SpecifierSet(versions)))
    except InvalidSpecifier:
        raise WatchError(f"{text!r}: {versions!r} are no versions: {EXAMPLES}") from None


def _of_checkout(rest: str, text: str) -> Upstream:
    """Read `CHECKOUT:COMMIT,COMMIT`."""
    folder, colon, commits = rest.rpartition(":")
    listed = tuple(name.strip() for name in commits.split(",") if name.strip())
    if not colon or not folder or not listed:
        raise WatchError(
            f"{text!r} names no {'commits' if folder or not colon else 'checkout'}: write "
            "verl@CHECKOUT:COMMIT,COMMIT or verl@CHECKOUT:FIRST..LAST"
        )
    return Upstream(CHECKOUT_CANDIDATE, checkout=folder, listed=listed)


def _versions(listed: str, text: str) -> tuple[str, ...]:
    """Read versions in a list with commas, and put them in order.

    Raises:
        WatchError: there is none, or one that is no version.
    """
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise WatchError(f"{text!r} names no version: {EXAMPLES}")
    try:
        return tuple(str(version) for version in sorted({Version(name) for name in names}))
    except InvalidVersion as error:
        raise WatchError(f"{text!r}: {error}: {EXAMPLES}") from None
