"""Measures a training step at real sizes, by teacher, quantization and loss.

python -m sdpo.benchmark.performance.model_memory --sizes 0.5B --device cuda

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
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from sdpo.benchmark.performance.own_process import synchronized_seconds
from sdpo.benchmark.performance.random_models import qwen2_shape, random_model, reward_every
from sdpo.benchmark.performance.tables import Row, options
from sdpo.runtime.markdown_table import markdown_table

if TYPE_CHECKING:
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

VOCABULARY = 151_936
SHAPES = {
    "tiny": qwen2_shape(64, 128, 2, 2, 1, VOCABULARY, tied=True),
    "0.5B": qwen2_shape(896, 4864, 24, 14, 2, VOCABULARY, tied=True),
    "1.5B": qwen2_shape(1536, 8960, 28, 12, 2, VOCABULARY, tied=True),
}


class Teacher(NamedTuple):
    """Says how a teacher is kept, and the dtype that the weights are stored in."""

    mode: str
    lora_rank: int
    four_bit: bool
    dtype: str


TEACHERS = {
    # in bfloat16 the small steps of a moving average would be rounded away
    "ema": Teacher("ema", 0, False, "float32"),
    "lora_ema": Teacher("lora_ema", 16, False, "bfloat16"),
    "4-bit lora_ema": Teacher("lora_ema", 16, True, "bfloat16"),
}
LOSSES = ("logits", "fused")
PROMPT_WORDS = 150
FEEDBACK = " ".join(f"w{1000 + 7 * n}" for n in range(60))
TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a word for every id, so that random tokens come back unchanged."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    named = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "system"]
    words = [*named, *(f"w{index}" for index in range(len(named), VOCABULARY))]
    table = {word: index for index, word in enumerate(words)}
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
    """Write random weights in bfloat16; returns the number of parameters."""
    import torch

    with torch.device(device):
        model = random_model(SHAPES[size], eos_token_id=2, pad_token_id=0).bfloat16()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return sum(p.numel() for p in model.parameters())


def trainer_of(teacher: Teacher, loss: str, folder: Path, steps: int, *, small: bool) -> Any:
    """Build the trainer of `sdpo mbpp run --config published` on random problems.

    Args:
        teacher: and the weights' dtype.
        loss: `loss_implementation`.
        folder: of the model and its tokenizer.
        steps: optimizer steps.
        small: whether a completion has 16 tokens only.
    """
    import torch
    from datasets import Dataset
    from msgspec.structs import replace
    from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

    from sdpo.benchmark.runs.models import adapter_config, load_model, load_tokenizer
    from sdpo.benchmark.runs.settings import load
    from sdpo.settings.config import SDPOConfig

    published = load("published")
    model = replace(
        published.model,
        name=str(folder),
        lora_r=teacher.lora_rank,
        four_bit=teacher.four_bit,
        dtype=teacher.dtype,
    )
    fixed = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "max_completion_length": 16 if small else published.train["max_completion_length"],
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    prompt = " ".join(f"w{100 + 13 * n}" for n in range(PROMPT_WORDS))
    conversation = [{"role": "user", "content": prompt}]
    return generating_once()(
        model=load_model(model),
        args=GRPOConfig(**{**published.train, **fixed}),
        sdpo_config=SDPOConfig(teacher_mode=teacher.mode, loss_implementation=loss),
        processing_class=load_tokenizer(str(folder)),
        reward_funcs=[reward_every(2)],
        train_dataset=Dataset.from_list([{"prompt": conversation, "feedback": FEEDBACK}] * steps),
        peft_config=adapter_config(model),
    )


def generating_once() -> "type[SDPOTrainer]":
    """Make our trainer generate once, and keep the tokens and the `generation` seconds."""
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

    class Timed(SDPOTrainer):
        """Keeps its first generation."""

        kept: Any = None
        generation = 0.0

        def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
            if self.kept is None:
                began = synchronized_seconds()
                self.kept = super()._generate_single_turn(*arguments, **named)
                self.generation = synchronized_seconds() - began
            return self.kept

    return Timed


def measure(teacher: str, loss: str, folder: Path, steps: int, *, small: bool) -> Row:
    """Measure one row of the table in this process.

    Args:
        teacher: of `TEACHERS`.
        loss: of `LOSSES`.
        folder: of the model and its tokenizer.
        steps: optimizer steps.
        small: whether a completion has 16 tokens only.
    """
    import torch
    from transformers import TrainerCallback

    from sdpo.benchmark.runs.environment import peak_memory_mib

    trainer = trainer_of(TEACHERS[teacher], loss, folder, steps, small=small)
    loaded = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    marks: list[float] = []

    class Marks(TrainerCallback):
        """Notes the end of each step."""

        def on_step_end(self, args, state, control, **kwargs):
            marks.append(synchronized_seconds())

    trainer.add_callback(Marks())
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss" in row)
    return {
        "generation": trainer.generation,
        "learning": median(b - a for a, b in itertools.pairwise(marks)),
        "loaded_mib": loaded,
        "peak_mib": peak_memory_mib(),
        "tokens": log["completions/mean_length"],
        "signal": log["self_distillation/reprompt_sample_fraction"],
        "value": log["loss"],
    }


def table(size: str, parameters: int, rows: list[Row]) -> str:
    """Show rows as Markdown; what failed says why."""
    head = ["teacher", "loss", "generation, s", "learning, s", "loaded, MiB", "peak, MiB", "loss"]
    formats = {"generation": ".2f", "learning": ".3f", "loaded_mib": ".0f", "peak_mib": ".0f"}
    formats["value"] = ".1e"
    cells = []
    for row in rows:
        values = [format(row[name], form) for name, form in formats.items() if name in row]
        cells.append([row["teacher"], row["loss"], *(values or [row["error"], "", "", "", ""])])
    return f"{size}: {parameters:,} parameters\n\n{markdown_table(head, cells, left=2)}"


def row_of(teacher: str, loss: str, folder: Path, chosen: argparse.Namespace) -> Row:
    """Measure in a process of its own; what fails there is the row's `error`."""
    command = [sys.executable, "-m", __spec__.name, "--one", teacher, loss, str(folder)]
    command += ["--steps", str(chosen.steps), *(["--small"] if chosen.small else [])]
    row: Row = {"teacher": teacher, "loss": loss}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=chosen.limit)
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not within {chosen.limit:.0f} s"}
    try:
        return row | json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
        return {**row, "error": last[:200]}


def main() -> None:
    """Measure and print a table for each size."""
    parser = options(__doc__, steps=6, limit=120.0, device="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["0.5B"])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--small", action="store_true", help="16 tokens a completion, for a try")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if chosen.one:
        teacher, loss, folder = chosen.one
        row = measure(teacher, loss, Path(folder), chosen.steps, small=chosen.small)
        print("\n" + json.dumps(row))
        return
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            parameters, rows = write_model(size, Path(folder), chosen.device), []
            for teacher, loss in itertools.product(chosen.teachers, chosen.losses):
                rows.append(row_of(teacher, loss, Path(folder), chosen))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            print(table(size, parameters, rows), flush=True)


if __name__ == "__main__":
    main()
