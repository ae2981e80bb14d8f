"""Pre-trains the embedded model from scratch: `python -m sdpo.benchmark.embedded.pretrain OUT`.

One thread, float32, everything drawn from the seed and the number of the step, so that the same
machine makes the same weights, and a run that was cut off continues as if it had not been. Takes
some ten minutes on an idle core.
"""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.benchmark.embedded import tokenizer as words
from sdpo.benchmark.embedded.lessons import KINDS, Shape, draw_lesson, lesson_shapes
from sdpo.determinism import deterministic

SEED = 7
STEPS = 920
WARM_UP = 50
FALL = 120
LEARNING_RATE = 2e-3
# Lessons of each kind in a batch, up to a step: first to copy, a look at feedback, then solutions.
STAGES = (
    (300, {"echo": 24, "plain": 6, "shown": 6, "told": 0}),
    (350, {"echo": 0, "plain": 6, "shown": 8, "told": 4}),
    (STEPS, {"echo": 0, "plain": 10, "shown": 10, "told": 1}),
)
SAVE_EVERY = 50
IGNORED = -100
ARCHITECTURE = {
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
}


def new_model(vocabulary: int) -> Any:
    """A Qwen2 model with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **ARCHITECTURE, **ends))


def encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt with the generation header, and of the answer with the end token."""
    end, start = words.END, words.START
    head = f"{start}user\n{prompt}{end}\n{start}assistant\n"
    return tokenizer.encode(head).ids, tokenizer.encode(answer + end).ids


def batch_of(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Right-padded ids and labels; only answers are learnt."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "labels": labels}


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    hidden = model.model(batch["input_ids"]).last_hidden_state[:, :-1]
    targets = batch["labels"][:, 1:]
    kept = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), targets[kept])


def rate_at(step: int, steps: int) -> float:
    """Learning rate: warm-up, constant, and a linear fall at the end.

    Up to the fall it does not depend on `steps`, so that a saved state serves longer runs too.
    """
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / FALL))


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    tokenizer: Any,
    shapes: list[Shape],
    step: int,
    steps: int,
) -> dict[str, float]:
    """One optimizer step; returns the loss of each kind of lesson."""
    generator = random.Random(f"{SEED} {step}")
    counts = next((one for end, one in STAGES if step < end), STAGES[-1][1])
    for group in optimizer.param_groups:
        group["lr"] = rate_at(step, steps)
    optimizer.zero_grad()
    losses = {}
    for kind in KINDS:
        if not counts[kind]:
            continue
        lessons = [draw_lesson(kind, shapes, generator) for _ in range(counts[kind])]
        loss = loss_of(model, batch_of([encode(tokenizer, *lesson) for lesson in lessons]))
        (loss * (counts[kind] / sum(counts.values()))).backward()
        losses[kind] = loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


def save_state(path: Path, model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights and moments in one replaced file."""
    tensors = {f"weight.{name}": value for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    part = path.with_suffix(".part")
    save_file({name: t.detach().clone() for name, t in tensors.items()}, part, {"step": str(step)})
    os.replace(part, path)


def load_state(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote; returns the number of steps done."""
    if not path.is_file():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in keys}
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def write_model(model: Any, folder: Path, steps: int) -> None:
    """Weights rounded to float16, configuration, tokenizer and their checksums."""
    words.save(folder)
    # The file's float16 is for size only.
    model.config.dtype, model.config.architectures = torch.float32, [type(model).__name__]
    model.config.save_pretrained(folder)
    # Tied output weights are left out.
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files = sorted(p for p in folder.iterdir() if p.name not in {"manifest.json", "problems.jsonl"})
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}
    manifest = {
        "recipe": {"seed": SEED, "steps": steps, "learning_rate": LEARNING_RATE},
        "architecture": ARCHITECTURE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "sha256": sums,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def pretrain(folder: Path, state: Path, steps: int = STEPS) -> None:
    """Train, or go on training, and write the model."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    tokenizer, shapes = words.build(), lesson_shapes()
    with deterministic(SEED):
        model = new_model(tokenizer.get_vocab_size())
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        done = load_state(state, model, optimizer)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
        with Progress(*columns) as bar:
            task = bar.add_task("pre-training", total=steps, completed=done)
            for step in range(done, steps):
                losses = train_step(model, optimizer, tokenizer, shapes, step, steps)
                shown = " ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items())
                bar.update(task, advance=1, description=f"loss: {shown}")
                if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                    save_state(state, model, optimizer, step + 1)
                    bar.console.print(f"step {step + 1}: {shown}")
        write_model(model, folder, steps)


def main() -> None:
    """Pre-train and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--state", type=Path, help="file to continue from; default: OUT.state")
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    state = chosen.state or chosen.out.with_suffix(".state")
    pretrain(chosen.out, state, chosen.steps)
    print(f"DONE {chosen.out}")


if __name__ == "__main__":
    main()
