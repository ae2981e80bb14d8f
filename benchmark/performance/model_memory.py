"""Memory and time of a training step at real sizes, by teacher, quantization and loss.

python benchmark/performance/model_memory.py --sizes 0.5B --device cuda

Random weights in Qwen2.5's shapes with its vocabulary; batch, accumulation, group, lengths, rank
and rate of `benchmark/configs/published.toml`. Each row is a process of its own. The tokens of the
first generation, which is timed, serve every step: random weights never end a completion, so each
has the full length, and half of the attempts count as successful. `learning` is the median of the
other steps: teacher prompts, forward, backward, optimizer, teacher update, without generation.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

VOCABULARY = 151_936
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
# Teacher: its mode, adapters, 4 bits, and the dtype that the weights are stored in. A moving
# average needs float32: in bfloat16 its small steps are rounded away.
TEACHERS: dict[str, tuple[str, int, bool, str]] = {
    "ema": ("ema", 0, False, "float32"),
    "lora_ema": ("lora_ema", 16, False, "bfloat16"),
    "4-bit lora_ema": ("lora_ema", 16, True, "bfloat16"),
}
LOSSES = ("logits", "fused")
PROMPT_WORDS = 150
FEEDBACK = " ".join(f"w{1000 + 7 * n}" for n in range(60))
TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with a word for every id, so that random tokens come back as they were."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    named = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "system"]
    words = [*named, *(f"w{place}" for place in range(len(named), VOCABULARY))]
    table = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "padding_side": "left",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_model(size: str, folder: Path, device: str) -> int:
    """Random weights in bfloat16; returns the number of parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=VOCABULARY, eos_token_id=2, pad_token_id=0, **SIZES[size])
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return sum(p.numel() for p in model.parameters())


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Every second attempt succeeds."""
    return [float(row % 2 == 0) for row in range(len(completions))]


def trainer_of(teacher: str, loss: str, folder: Path, steps: int, small: bool) -> Any:
    """The trainer as `sdpo mbpp run --config published` builds it, on random problems."""
    import torch
    from datasets import Dataset
    from msgspec.structs import replace
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    from sdpo.benchmark.runs.models import adapter_config, load_model, load_tokenizer
    from sdpo.benchmark.runs.settings import load
    from sdpo.settings.config import SDPOConfig
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    mode, rank, four_bit, dtype = TEACHERS[teacher]
    published = load("published")
    model = replace(published.model, lora_r=rank, four_bit=four_bit, dtype=dtype)
    length = 16 if small else published.train["max_completion_length"]
    prompt = " ".join(f"w{100 + 13 * n}" for n in range(PROMPT_WORDS))
    rows = {
        "prompt": [[{"role": "user", "content": prompt}]] * steps,
        "feedback": [FEEDBACK] * steps,
    }
    fixed = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "max_completion_length": length,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
    }

    class Timed(SDPOTrainer):
        """Generates once, and keeps the seconds of it and of each step."""

        kept: Any = None
        generation = 0.0
        seconds: list[float]

        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            if self.kept is None:
                began = now()
                self.kept = super()._generate_single_turn(*arguments, **named)
                self.generation = now() - began
            return self.kept

    return Timed(
        model=load_model(replace(model, name=str(folder))),
        args=GRPOConfig(**{**published.train, **fixed}),
        sdpo_config=SDPOConfig(teacher_mode=mode, loss_implementation=loss),
        processing_class=load_tokenizer(str(folder)),
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict(rows),
        peft_config=adapter_config(model),
    )


def now() -> float:
    """Seconds on the wall clock, after the GPU has done its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib() -> float:
    """Greatest memory so far."""
    from sdpo.benchmark.runs.environment import peak_memory_mib

    return peak_memory_mib()


def measure(teacher: str, loss: str, folder: Path, steps: int, small: bool) -> dict[str, Any]:
    """One row of the table."""
    import torch
    from transformers import TrainerCallback

    trainer = trainer_of(teacher, loss, folder, steps, small)
    loaded = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    marks: list[float] = []

    class Marks(TrainerCallback):
        """Notes the end of each step."""

        def on_step_end(self, args, state, control, **kwargs):
            marks.append(now())

    trainer.add_callback(Marks())
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss" in row)
    return {
        "teacher": teacher,
        "loss": loss,
        "generation": trainer.generation,
        "learning": median(b - a for a, b in itertools.pairwise(marks)),
        "loaded_mib": loaded,
        "peak_mib": peak_mib(),
        "tokens": log["completions/mean_length"],
        "signal": log["self_distillation/reprompt_sample_fraction"],
        "value": log["loss"],
    }


def table(size: str, parameters: int, rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown; what failed says why."""
    head = f"{size}: {parameters:,} parameters\n\n"
    head += "| teacher | loss | generation, s | learning, s | loaded, MiB | peak, MiB | loss |\n"
    lines = [head + "|---|---|--:|--:|--:|--:|--:|"]
    for one in rows:
        name = f"| {one['teacher']} | {one['loss']} "
        if "error" in one:
            lines.append(f"{name}| {one['error']} | | | | |")
            continue
        lines.append(
            f"{name}| {one['generation']:.2f} | {one['learning']:.3f} | {one['loaded_mib']:.0f} "
            f"| {one['peak_mib']:.0f} | {one['value']:.1e} |"
        )
    return "\n".join(lines)


def row_of(teacher: str, loss: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", teacher, loss, str(folder)]
    command += ["--steps", str(chosen.steps), *(["--small"] if chosen.small else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=chosen.limit)
    except subprocess.TimeoutExpired:
        return {"teacher": teacher, "loss": loss, "error": f"not within {chosen.limit:.0f} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        return {"teacher": teacher, "loss": loss, "error": last[:200]}


def main() -> None:
    """Measure and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.5B"])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=float, default=120, help="seconds for a row")
    parser.add_argument("--small", action="store_true", help="16 tokens a completion, for a try")
    parser.add_argument("--device", default="cpu", help="where random weights are drawn")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if chosen.one:
        teacher, loss, folder = chosen.one
        row = measure(teacher, loss, Path(folder), chosen.steps, chosen.small)
        print("\n" + json.dumps(row))
        return
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            parameters = write_model(size, Path(folder), chosen.device)
            rows = []
            for teacher in chosen.teachers:
                for loss in chosen.losses:
                    rows.append(row_of(teacher, loss, Path(folder), chosen))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            print(table(size, parameters, rows), flush=True)


if __name__ == "__main__":
    main()
