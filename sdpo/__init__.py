"""SDPO: a readable implementation with a reference-parity harness; names load when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdpo.settings.version import __version__

if TYPE_CHECKING:
    from sdpo.lockstep.parity_callback import ParityCallback
    from sdpo.loss.self_distillation import self_distillation_loss
    from sdpo.parity.in_python import audit
    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

__all__ = [
    "ParityCallback",
    "SDPOConfig",
    "SDPOTrainer",
    "__version__",
    "audit",
    "self_distillation_loss",
]

_HOMES = {
    "ParityCallback": "sdpo.lockstep.parity_callback",
    "SDPOConfig": "sdpo.settings.config",
    "SDPOTrainer": "sdpo.trainer.sdpo_trainer",
    "audit": "sdpo.parity.in_python",
    "self_distillation_loss": "sdpo.loss.self_distillation",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'sdpo' has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
