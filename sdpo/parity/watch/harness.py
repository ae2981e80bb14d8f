"""This harness for another interpreter: what it needs installed, and its own modules as they are.

Every release is judged by the code that runs here, beside the same versions of everything else, so
that a difference is the release's.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sdpo.parity.live_fork.modules import PACKAGES as CHECKOUT_PACKAGES
from sdpo.parity.watch.upstreams import Upstream

DISTRIBUTION = "sdpo"
EXTRA = "train"
BESIDE = ("benchmark", "fixtures", "reference")
"""Packages that lie beside `sdpo` in a checkout, and inside it where it is installed."""


def requirements_of(upstream: Upstream, release: str, chosen: Sequence[str]) -> list[str]:
    """List what an environment needs for the audit of a release.

    Args:
        upstream: a package, which is installed in that release, or a checkout; a candidate that is
            another package is installed too, where it is one of our extras.
        release: a version; of a checkout no package is installed.
        chosen: requirements of the user, which take the place of ours.
    """
    wanted = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    ours = [
        requirement
        for requirement in wanted
        if requirement.marker is None
        or requirement.marker.evaluate({"extra": EXTRA})
        or requirement.name == upstream.candidate
    ]
    if upstream.checkout:
        ours += [Requirement(name) for name in CHECKOUT_PACKAGES.values()]
    released = [f"{upstream.package}=={release}"] if upstream.package else []
    taken = {canonicalize_name(Requirement(text).name) for text in [*released, *chosen]}
    pinned = {
        canonicalize_name(requirement.name): _as_installed_here(requirement)
        for requirement in ours
        if canonicalize_name(requirement.name) not in taken
    }
    return sorted([*pinned.values(), *released, *chosen])


def _as_installed_here(requirement: Requirement) -> str:
    """A package in the version that this process has; as it is required where it has none."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name}{requirement.specifier}"
    return f"{requirement.name}=={Version(version).public}"


def lay_out(folder: Path) -> Path:
    """Lay the packages of this harness into a folder for PYTHONPATH, by links.

    Args:
        folder: empty.

    Returns:
        The folder.
    """
    target = folder / DISTRIBUTION
    target.mkdir()
    for entry in Path(_folder_of(DISTRIBUTION)).iterdir():
        if entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)
    for name in BESIDE:
        link = target / name
        if not link.exists():
            link.symlink_to(_folder_of(f"{DISTRIBUTION}.{name}"))
    return folder


def modules_of(folder: Path) -> dict[str, str]:
    """The variables by which another interpreter takes the modules in a folder before all others.

    Not even the present folder comes first: in a checkout of this project it holds half of them.
    """
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}


def _folder_of(package: str) -> Path:
    """The folder of a package that is importable here."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} runs here"
    assert spec.submodule_search_locations, f"{package} is a package"
    return Path(spec.submodule_search_locations[0]).resolve()
