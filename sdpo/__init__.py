"""SDPO: a readable implementation with a reference-parity harness; names load when asked for."""

from typing import TYPE_CHECKING

from sdpo.runtime.lazy_names import lazy_names
from sdpo.settings.version import __version__

if TYPE_CHECKING:
    from sdpo.lockstep.parity_callback import ParityCallback
    from sdpo.loss.self_distillation import self_distillation_loss
    from sdpo.parity.capabilities.declared import capabilities
    from sdpo.parity.in_python import assert_parity, audit
    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

__all__ = [
    "ParityCallback",
    "SDPOConfig",
    "SDPOTrainer",
    "__version__",
    "assert_parity",
    "audit",
    "capabilities",
    "self_distillation_loss",
]

_HOMES = {
    "ParityCallback": "sdpo.lockstep.parity_callback",
    "SDPOConfig": "sdpo.settings.config",
    "SDPOTrainer": "sdpo.trainer.sdpo_trainer",
    "assert_parity": "sdpo.parity.in_python",
    "audit": "sdpo.parity.in_python",
    "capabilities": "sdpo.parity.capabilities.declared",
    "self_distillation_loss": "sdpo.loss.self_distillation",
}


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
