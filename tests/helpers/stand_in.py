"""Writes a stand-in for a checkout of the fork, and puts it where the audit finds it."""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from sdpo.parity.candidates.live_settings import written_layers
from sdpo.parity.live_fork.modules import PACKAGES
from sdpo.settings.stage_settings import POLICY_TERMS

HOME = Path(__file__).parent / "stand_in_fork"
Replacements = Mapping[str, tuple[str, str]]
"""By file below `verl/`, without its ending: a text in it, and what stands there instead."""


def write_stand_in(folder: Path, replaced: Replacements | None = None) -> Path:
    """Write the stand-in's package and its configuration.

    Args:
        folder: where `verl/` is put.
        replaced: faults to plant.
    """
    shutil.copytree(HOME / "verl", folder / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    for path, value in configuration().items():
        target = folder / "verl" / "trainer" / "config" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value))
    for name, (old, new) in (replaced or {}).items():
        (path,) = (folder / "verl").glob(f"{name}.*")
        text = path.read_text()
        assert old in text, (name, old)
        path.write_text(text.replace(old, new))
    return folder


def write_missing_packages(folder: Path) -> Path:
    """Write packages for those of the fork's needs that are not installed."""
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            source = HOME / "stubs" / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                (folder / name).mkdir()
                (folder / name / "__init__.py").touch()
    return folder


def configuration() -> dict[str, dict]:
    """The fork's configuration files as the provenance says they are, as JSON."""
    layers = written_layers()
    composed: dict = {}
    for name, value in layers["further"].items():
        first = name.split(".")[0]
        below = first in ("actor", "rollout", "model")
        put(composed, f"actor_rollout_ref.{name}" if below else name, value)
    yaml = dict(layers["sdpo_yaml"])
    enabled = {"policy_loss": {"loss_mode": "sdpo" if yaml.pop("enabled") else "vanilla"}}
    terms = {name: yaml.pop(name) for name in POLICY_TERMS}
    for name in ("lr", "grad_clip", "loss_agg_mode", "apply_chat_template_kwargs"):
        del yaml[name]
    put(composed, "actor_rollout_ref.actor.optim.lr", layers["sdpo_yaml"]["lr"])
    put(composed, "actor_rollout_ref.actor.grad_clip", layers["sdpo_yaml"]["grad_clip"])
    put(composed, "actor_rollout_ref.rollout.temperature", yaml.pop("temperature"))
    threshold = yaml.pop("rollout_is_threshold")
    put(composed, "algorithm.rollout_correction.rollout_is_threshold", threshold)
    composed["actor_rollout_ref"]["actor"] |= (
        enabled | terms | {"self_distillation": yaml | TEMPLATES}
    )
    single = dict(layers["actor_yaml"])
    mode = "sdpo" if single.pop("enabled") else "vanilla"
    actor = {
        "policy_loss": {"loss_mode": mode},
        "optim": {"lr": single.pop("lr")},
        **{name: single.pop(name) for name in ("loss_agg_mode", *POLICY_TERMS)},
    }
    clip = {"grad_clip": single.pop("grad_clip")}
    return {
        "sdpo.yaml": composed,
        "actor/actor.yaml": actor | {"self_distillation": single},
        "actor/dp_actor.yaml": clip,
    }


TEMPLATES = {
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}",
    "feedback_template": (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"
    ),
}


def put(values: dict, path: str, value: object) -> None:
    *above, last = path.split(".")
    for name in above:
        values = values.setdefault(name, {})
    values[last] = value
