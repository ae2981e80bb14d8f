"""Builds the trainer of a method from the settings of a run."""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from sdpo.benchmark.runs.settings import Settings, SettingsError
from sdpo.settings.rules import nearest

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
    )

RewardFunction = Callable[..., list[float]]
_OURS = ("grpo", "sdpo", "hybrid")
_Config = TypeVar("_Config")


class TrainerParts(TypedDict):
    """Names the arguments of a trainer beside its configurations."""

    model: "PreTrainedModel"
    processing_class: "PreTrainedTokenizerBase"
    train_dataset: "Dataset"
    reward_funcs: list[RewardFunction]
    peft_config: "LoraConfig | None"
    callbacks: list["TrainerCallback"]


def _train_arguments(settings: Settings, out: Path) -> dict[str, object]:
    """Join the fields of the file's training arguments with those that the benchmark sets."""
    import torch

    resumable = settings.method in _OURS
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


def build_trainer(settings: Settings, out: Path, parts: TrainerParts) -> "Trainer":
    """Build the trainer of a method.

    Args:
        settings: of the run.
        out: folder of the run.
        parts: what the trainer works with.

    Raises:
        SettingsError: settings that the trainer refuses, or a peer that is not installed.
    """
    arguments = _train_arguments(settings, out)
    build = {"trl": _trl, "sdpo-rl": _sdpo_rl}.get(settings.method, _sdpo)
    try:
        return build(settings, arguments, parts)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{settings.method}: {error}") from error


def _configuration(
    config: Callable[..., _Config], values: Mapping[str, object], section: str
) -> _Config:
    """Make a configuration of TRL or a peer from a section of the settings.

    Raises:
        SettingsError: a field that it does not have.
    """
    known = list(signature(config).parameters)
    unknown = [
        f"{name} is not a field of {config.__name__}{nearest(name, known)}"
        for name in values
        if name not in known
    ]
    if unknown:
        raise SettingsError(f"section {section}: {'; '.join(unknown)}")
    return config(**values)


def _sdpo(settings: Settings, arguments: Mapping[str, object], parts: TrainerParts) -> "Trainer":
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    folder = Path(str(arguments["output_dir"])).parent / "parity"
    fields: dict[str, Any] = {"audit_dir": str(folder), **settings.sdpo}
    if settings.method == "grpo":
        if settings.sdpo:
            raise SettingsError("method grpo has no teacher: leave the section [sdpo] empty")
        fields = {"enabled": False}
    if settings.method == "hybrid" and not fields.get("hybrid_lambda"):
        raise SettingsError("method hybrid needs sdpo.hybrid_lambda between 0 and 1")
    args = _configuration(GRPOConfig, arguments, "train")
    return SDPOTrainer(args=args, sdpo_config=SDPOConfig(**fields), **parts)


def _trl(settings: Settings, arguments: Mapping[str, object], parts: TrainerParts) -> "Trainer":
    try:
        from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
    except ImportError as error:
        raise SettingsError(f"this TRL has no SDPO trainer ({error}); TRL 1.16 has one") from error
    args = _configuration(SDPOConfig, {**arguments, **settings.sdpo}, "train and sdpo")
    return SDPOTrainer(args=args, **parts)


def _sdpo_rl(settings: Settings, arguments: Mapping[str, object], parts: TrainerParts) -> "Trainer":
    try:
        import sdpo_rl  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SettingsError("sdpo-rl is not installed: pip install 'sdpo[peers]'") from error
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    config = _configuration(sdpo_rl.SDPOConfig, settings.sdpo, "sdpo")
    args = _configuration(GRPOConfig, arguments, "train")
    return sdpo_rl.SDPOTrainer(args=args, sdpo_config=config, **parts)
