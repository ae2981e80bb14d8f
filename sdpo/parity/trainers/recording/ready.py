"""Whether a trainer can be audited: what every run needs is installed and can be imported."""

import importlib

from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter, TrainerHooks
from sdpo.parity.trainers.recording.run_training import check_installed, failures, quiet


def check_ready(adapter: TrainerAdapter) -> None:
    """Import what every run of a trainer needs, once and before any of them.

    Raises:
        CandidateError: a package is missing, is of another version, or cannot be imported.
    """
    if isinstance(adapter, TrainerHooks):
        check_installed(adapter)
    with quiet(), failures(adapter, "imported"):
        for module in adapter.imports:
            importlib.import_module(module)
