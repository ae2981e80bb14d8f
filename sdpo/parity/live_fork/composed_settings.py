"""What the checkout's own files set: its dataclass, its `actor.yaml`, and `sdpo.yaml` as composed.

hydra composes `sdpo.yaml` as the fork's entry point does; nothing is filled in by hand.
"""

import dataclasses
import importlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.live_fork.modules import CONFIG, live_function
from sdpo.parity.live_fork.settings import Settings
from sdpo.settings.stage_settings import POLICY_TERMS

OF_USERS = {"USER": "user", "TASK": "task", "EXPERIMENT": "experiment"}
"""Variables that the fork's files take names and folders from; no setting compared here."""

OF_ACTOR = ("loss_agg_mode", "grad_clip", *POLICY_TERMS)
"""Settings of the actor beside those of its self-distillation."""


def live_layers(root: Path) -> dict[str, Settings]:
    """Settings by layer: `sdpo_yaml`, `dataclass`, `actor_yaml`, and `further`, by dotted names.

    Args:
        root: the checkout's folder.

    Raises:
        CheckoutError: the files cannot be composed.
    """
    folder = root / "verl" / "trainer" / "config"
    try:
        composed = _composed(folder)
        actor_yaml = _actor_yaml(folder)
    except Exception as error:  # hydra and omegaconf have a dozen classes of their own
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckoutError(f"{folder}/sdpo.yaml cannot be composed: {why}") from error
    return {
        "sdpo_yaml": _of_sdpo_yaml(composed),
        "dataclass": _of_dataclass(),
        "actor_yaml": actor_yaml,
        "further": _further(composed),
    }


def _composed(folder: Path) -> Mapping[str, object]:
    """`sdpo.yaml` with all that it takes in."""
    hydra = importlib.import_module("hydra")
    container = importlib.import_module("omegaconf").OmegaConf.to_container
    unset = {name: value for name, value in OF_USERS.items() if name not in os.environ}
    with mock.patch.dict(os.environ, unset), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return container(hydra.compose("sdpo"), resolve=True)


def _of_sdpo_yaml(composed: Mapping[str, object]) -> Settings:
    actor = _at(composed, "actor_rollout_ref.actor")
    distillation = _without_target(_at(composed, "actor_rollout_ref.actor.self_distillation"))
    return {
        **distillation,
        **{name: actor[name] for name in OF_ACTOR},
        "lr": _at(composed, "actor_rollout_ref.actor.optim")["lr"],
        "temperature": _at(composed, "actor_rollout_ref.rollout")["temperature"],
        "rollout_is_threshold": _at(composed, "algorithm.rollout_correction")[
            "rollout_is_threshold"
        ],
        "enabled": _at(composed, "actor_rollout_ref.actor.policy_loss")["loss_mode"] == "sdpo",
        "apply_chat_template_kwargs": _at(composed, "data")["apply_chat_template_kwargs"],
    }


def _of_dataclass() -> Settings:
    distillation = live_function(CONFIG, "SelfDistillationConfig")()
    actor = _defaults(live_function(CONFIG, "FSDPActorConfig"))
    fields = dataclasses.fields(distillation)
    return {
        **_without_target({field.name: getattr(distillation, field.name) for field in fields}),
        **{name: actor[name] for name in OF_ACTOR},
    }


def _actor_yaml(folder: Path) -> Settings:
    """`actor.yaml` before it is composed, and the clipping of `dp_actor.yaml`."""
    omega = importlib.import_module("omegaconf").OmegaConf
    actor = omega.load(folder / "actor" / "actor.yaml")
    return {
        **_without_target(omega.to_container(actor.self_distillation)),
        **{name: actor[name] for name in ("loss_agg_mode", *POLICY_TERMS)},
        "grad_clip": omega.load(folder / "actor" / "dp_actor.yaml").grad_clip,
        "lr": actor.optim.lr,
        "enabled": actor.policy_loss.loss_mode == "sdpo",
    }


def _further(composed: Mapping[str, object]) -> Settings:
    """Every composed value by its dotted name; `actor`, `rollout` and `model` without their root.

    What the files leave out of the rollout has the default of its dataclass.
    """
    defaults = _defaults(live_function(CONFIG, "RolloutConfig"))
    values = {f"rollout.{name}": value for name, value in defaults.items()}
    for name, value in _flat(composed):
        values[name.removeprefix("actor_rollout_ref.")] = value
    return values


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Names and values of a nested mapping, the inner mappings themselves too."""
    found: list[tuple[str, object]] = []
    for name, value in values.items():
        found.append((f"{prefix}{name}", value))
        if isinstance(value, Mapping):
            found += _flat(cast(Mapping[str, object], value), f"{prefix}{name}.")
    return found


def _defaults(kind: Any) -> Settings:
    """Defaults of a dataclass's fields that have a plain one."""
    fields = dataclasses.fields(kind)
    return {
        field.name: field.default for field in fields if field.default is not dataclasses.MISSING
    }


def _at(values: Mapping[str, object], path: str) -> Mapping[str, object]:
    for name in path.split("."):
        values = cast(Mapping[str, object], values[name])
    return values


def _without_target(values: Mapping[str, object]) -> Settings:
    """Without hydra's own entry, which names the class."""
    return {name: value for name, value in values.items() if name != "_target_"}
