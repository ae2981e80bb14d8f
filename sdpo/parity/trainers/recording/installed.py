"""Check that a trainer can be audited: what every run needs is installed and can be imported."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter, TrainerHooks
from sdpo.parity.trainers.recording.hooks import installed_versions
from sdpo.parity.trainers.recording.quiet_packages import quiet


def check_ready(adapter: TrainerAdapter) -> None:
    """Import what every run of a trainer needs, once and before any of them.

    Raises:
        CandidateError: a package is missing, is of another version, or cannot be imported.
    """
    if isinstance(adapter, TrainerHooks):
        check_installed(adapter)
    with quiet(), as_candidate_errors(adapter, "imported"):
        for module in adapter.imports:
            importlib.import_module(module)


def check_installed(adapter: TrainerAdapter) -> None:
    """Check the audited package, and what builds the tiny model and its data.

    Raises:
        CandidateError: it is not installed, or in a version that the adapter was not written for.
    """
    for name in ("transformers", "accelerate", "datasets", "peft"):
        if importlib.util.find_spec(name) is None:
            raise CandidateError(
                "config", f"an audit of trainers needs {name!r}: pip install 'sdpo[train]'"
            )
    if not adapter.package:
        return
    install = adapter.install or f"'{adapter.package}{adapter.versions}'"
    try:
        version = importlib.metadata.version(adapter.package)
    except importlib.metadata.PackageNotFoundError:
        raise CandidateError(
            "config",
            f"the package {adapter.package!r} is not installed: pip install {install}",
        ) from None
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(adapter.versions).contains(version, prereleases=True):
        raise CandidateError(
            "config",
            f"{adapter.package} {version} is installed, but its adapter was written for "
            f"{adapter.package}{adapter.versions}, so what its hooks would show is unknown: "
            f"pip install {install}",
        )


@contextlib.contextmanager
def as_candidate_errors(adapter: TrainerAdapter, attempted: str) -> Iterator[None]:
    """Take whatever the trainer raises for its failure, `SystemExit` included; Ctrl-C passes.

    Raises:
        CandidateError: the trainer raised.
        NotCoveredError: passed on.
    """
    try:
        yield
    except (NotCoveredError, CandidateError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        raise CandidateError(
            "config",
            f"{adapter.name} needs the package {error.name!r}, which is not installed: "
            f"pip install {adapter.install or error.name}",
        ) from error
    except BaseException as error:
        text = " ".join(str(error).split())
        raise CandidateError(
            "config",
            f"{adapter.name} could not be {attempted}: {type(error).__name__}: "
            f"{text or 'no message'}; versions: {installed_versions(adapter.package)}",
        ) from error
