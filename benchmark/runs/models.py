"""Loads the model and tokenizer of a run: the embedded one, a folder, or one of the hub."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo.benchmark.problems.prompts import embedded_folder
from sdpo.benchmark.runs.settings import ModelSettings, Settings, SettingsError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Only the embedded model's vocabulary has this word.
_EMBEDDED_WORD = '"zorp"'


def check_hardware(settings: Settings) -> None:
    """Check that the hardware is there which the settings ask for.

    Raises:
        SettingsError: a GPU is needed and there is none.
    """
    import torch

    model, train = settings.model, settings.train
    needing_gpu = {
        "train.use_cpu": train.get("use_cpu") is False,
        "train.use_vllm": train.get("use_vllm", False),
        "train.fp16": train.get("fp16", False),
    }
    wanted = [name for name, asked in needing_gpu.items() if asked]
    if wanted and not torch.cuda.is_available():
        instead = {"train.use_cpu": "true"}
        raise SettingsError(
            f"{', '.join(wanted)} asks for a GPU and there is none here; add "
            + " ".join(f"--set {name}={instead.get(name, 'false')}" for name in wanted)
        )
    if model.four_bit and find_spec("bitsandbytes") is None:
        raise SettingsError("model.four_bit needs bitsandbytes: pip install bitsandbytes")
    if model.four_bit and not model.lora_r:
        raise SettingsError("model.four_bit needs adapters to train: set model.lora_r, say to 16")


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer, with a padding token.

    Raises:
        SettingsError: it cannot be had, or has no chat template.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = _source(name)
    # For the model type, AutoTokenizer would put Qwen2's way to split words over the file's own.
    kind = PreTrainedTokenizerFast if _has_embedded_tokenizer(source) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise SettingsError(_unreachable(name, error)) from error
    if not tokenizer.chat_template:
        raise SettingsError(
            f"the tokenizer of {name!r} has no chat template, and problems are asked as "
            "conversations: take an instruction-tuned model, or add a chat_template to it"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SettingsError(f"the tokenizer of {name!r} has neither padding nor end token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _source(name: str) -> str:
    """Turn `embedded` into its folder; other names are folders or on the hub."""
    return str(embedded_folder()) if name == "embedded" else name


def _has_embedded_tokenizer(folder: str) -> bool:
    """Tell whether a folder holds the embedded model or one that was trained from it."""
    path = Path(folder) / "tokenizer.json"
    return path.is_file() and _EMBEDDED_WORD in path.read_text(encoding="utf-8")


def load_model(model: ModelSettings) -> "PreTrainedModel":
    """Load the model in the dtype asked for, quantized if asked for.

    Raises:
        SettingsError: it cannot be had.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.four_bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(_source(model.name), **options)
    except (OSError, ValueError, ImportError) as error:
        raise SettingsError(_unreachable(model.name, error)) from error


def adapter_config(model: ModelSettings) -> "LoraConfig | None":
    """Make the LoRA settings for PEFT; None without adapters."""
    if not model.lora_r:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_targets,
        task_type="CAUSAL_LM",
    )


def _unreachable(name: str, error: BaseException) -> str:
    reason = str(error).split("\n")[0][:200]
    return (
        f"cannot load the model {name!r}: {type(error).__name__}: {reason}; give a folder, a name "
        "on a reachable hub, or `embedded`"
    )
