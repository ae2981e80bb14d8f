"""Imports modules of the checkout, with what they need checked first.

transformers 5 renamed a class that the fork imports and does not use here; while the fork's
modules are imported it has its old name too.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from sdpo.parity.live_fork.checkout import COMMIT, FIX, CheckoutError

CORE_ALGOS = "verl.trainer.ppo.core_algos"
DP_ACTOR = "verl.workers.actor.dp_actor"
RAY_TRAINER = "verl.trainer.ppo.ray_trainer"
ROLLOUT_CORRECTION = "verl.trainer.ppo.rollout_corr_helper"
TORCH_FUNCTIONAL = "verl.utils.torch_functional"
ATTENTION = "verl.utils.attention_utils"
CONFIG = "verl.workers.config"

PACKAGES = {
    "accelerate": "accelerate",
    "codetiming": "codetiming",
    "datasets": "datasets",
    "einops": "einops",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "orjson": "orjson",
    "peft": "peft",
    "PIL": "pillow",
    "ray": "ray",
    "tensordict": "tensordict",
    "torchdata": "torchdata",
    "transformers": "transformers",
}
"""What the fork's modules import beside torch and numpy: the module, and what pip calls it."""


def check_packages() -> None:
    """Check that everything is installed that the fork's modules import.

    Raises:
        CheckoutError: something is missing; the message names all of it.
    """
    missing = [pip for name, pip in PACKAGES.items() if not _installed(name)]
    if missing:
        count = "packages" if len(missing) > 1 else "the package"
        raise CheckoutError(
            f"the checkout needs {count} {', '.join(missing)}: pip install {' '.join(missing)}"
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def live_module(name: str) -> ModuleType:
    """Import a module of the checkout.

    Raises:
        CheckoutError: it cannot be imported; the message says why, and what to do.
    """
    try:
        with _old_names(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        why = str(error).partition(" (")[0]
        if package == "verl":
            raise CheckoutError(
                f"another verl than lasgroup/SDPO at {COMMIT[:8]} ({why}): {FIX}"
            ) from error
        if not package:
            raise _failed(name, error) from error
        pip = PACKAGES.get(package, package)
        if not isinstance(error, ModuleNotFoundError):
            raise CheckoutError(
                f"{name} needs another version of {package} ({why}): pip install --upgrade {pip}"
            ) from error
        raise CheckoutError(f"{name} needs the package {package}: pip install {pip}") from error
    except Exception as error:
        raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> CheckoutError:
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return CheckoutError(f"importing {name} failed with {why}; {FIX}")


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """Give transformers 5 the name of a class that it renamed, while the fork is imported."""
    if not _installed("transformers"):
        yield
        return
    transformers = importlib.import_module("transformers")
    if hasattr(transformers, "AutoModelForVision2Seq"):
        yield
        return
    renamed = transformers.AutoModelForImageTextToText
    with mock.patch.object(transformers, "AutoModelForVision2Seq", renamed, create=True):
        yield


def live_function(module: str, name: str) -> Callable[..., Any]:
    """Get a function or class of the checkout, `Class.method` too.

    Raises:
        CheckoutError: there is none, as in other versions of verl than the fork.
    """
    value: Any = live_module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise CheckoutError(
            f"{module} has no {name}: another verl than lasgroup/SDPO at {COMMIT[:8]}; {FIX}"
        )
    return value
