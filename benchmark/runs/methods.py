"""Builds the trainer of a method from the settings of a run."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from sdpo.benchmark.runs.settings import Settings, SettingsError
from sdpo.settings.rules import nearest

OURS = ("grpo", "sdpo", "hybrid")


def train_arguments(settings: Settings, out: Path) -> dict[str, Any]:
    """Fields of the training arguments: those of the file, and those that the machinery sets."""
    import torch

    resumable = settings.method in OURS
    return {
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
        **settings.train,
        "output_dir": str(out / "checkpoints"),
        "seed": settings.seed,
        "logging_steps": 1,
        "save_strategy": "steps" if resumable else "no",
        "save_steps": settings.records.checkpoint_every,
        # The one before stays until the next one is complete.
        "save_total_limit": 2,
        "shuffle_dataset": False,
    }


def build_trainer(settings: Settings, out: Path, parts: dict[str, Any]) -> Any:
    """The trainer of a method.

    Args:
        settings: of the run.
        out: folder of the run.
        parts: `model`, `processing_class`, `train_dataset`, `reward_funcs`, `peft_config`,
            `callbacks`.

    Raises:
        SettingsError: settings that the trainer refuses, or a peer that is not installed.
    """
    arguments = train_arguments(settings, out)
    build = {"trl": _trl, "sdpo-rl": _sdpo_rl}.get(settings.method, _ours)
    try:
        return build(settings, arguments, parts)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{settings.method}: {error}") from error


def filled(config: Any, values: Mapping[str, Any], section: str) -> Any:
    """A configuration of TRL or a peer from a section of the settings; ours checks its own names.

    Raises:
        SettingsError: a field that it does not have.
    """
    known = list(signature(config).parameters)
    if odd := [
        f"{name} is not a field of {config.__name__}{nearest(name, known)}"
        for name in values
        if name not in known
    ]:
        raise SettingsError(f"section {section}: {'; '.join(odd)}")
    return config(**values)


def _ours(settings: Settings, arguments: dict[str, Any], parts: dict[str, Any]) -> Any:
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    folder = Path(arguments["output_dir"]).parent / "parity"
    own: dict[str, Any] = {"audit_dir": str(folder), **settings.sdpo}
    if settings.method == "grpo":
        if settings.sdpo:
            raise SettingsError("method grpo has no teacher: leave the section [sdpo] empty")
        own = {"enabled": False}
    if settings.method == "hybrid" and not own.get("hybrid_lambda"):
        raise SettingsError("method hybrid needs sdpo.hybrid_lambda between 0 and 1")
    args = filled(GRPOConfig, arguments, "train")
    return SDPOTrainer(args=args, sdpo_config=SDPOConfig(**own), **parts)


def _trl(settings: Settings, arguments: dict[str, Any], parts: dict[str, Any]) -> Any:
    try:
        from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
    except ImportError as error:
        raise SettingsError(f"this TRL has no SDPO trainer ({error}); TRL 1.16 has one") from error
    args = filled(SDPOConfig, {**arguments, **settings.sdpo}, "train and sdpo")
    return SDPOTrainer(args=args, **parts)


def _sdpo_rl(settings: Settings, arguments: dict[str, Any], parts: dict[str, Any]) -> Any:
    try:
        import sdpo_rl  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SettingsError("sdpo-rl is not installed: pip install 'sdpo[peers]'") from error
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    config = filled(sdpo_rl.SDPOConfig, settings.sdpo, "sdpo")
    args = filled(GRPOConfig, arguments, "train")
    return sdpo_rl.SDPOTrainer(args=args, sdpo_config=config, **parts)
