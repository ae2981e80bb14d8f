"""Pre-trains the embedded model from scratch: `python -m sdpo.benchmark.embedded.pretrain OUT`.

Float32, everything drawn from the seed and the number of the step, so that the same machine makes
the same weights, and a run that was cut off continues as if it had not been. `recipe.py` says how
large the model is and what it is taught.
"""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.benchmark.embedded import tokenizer as words
from sdpo.benchmark.embedded.batches import IGNORED, batches_of
from sdpo.benchmark.embedded.lessons import lesson_shapes
from sdpo.benchmark.embedded.recipe import PACKAGED, Recipe
from sdpo.runtime.atomic_write import replacing
from sdpo.runtime.progress import progress_bars
from sdpo.settings.determinism import deterministic

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

SAVE_EVERY = 50


def new_model(recipe: Recipe, vocabulary: int) -> "Qwen2ForCausalLM":
    """Make a Qwen2 model with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **recipe.architecture, **ends))


def loss_of(model: "Qwen2ForCausalLM", batch: dict[str, Tensor]) -> Tensor:
    """Average the negative log-likelihood of the answers' tokens."""
    hidden = model.model(batch["input_ids"]).last_hidden_state[:, :-1]
    targets = batch["labels"][:, 1:]
    kept = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), targets[kept])


def train_step(
    model: "Qwen2ForCausalLM",
    optimizer: torch.optim.Optimizer,
    batches: dict[str, dict[str, Tensor]],
    rate: float,
) -> dict[str, Tensor]:
    """Make one optimizer step; returns the loss of each kind of lesson."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    rows = sum(len(batch["input_ids"]) for batch in batches.values())
    losses = {}
    for kind, batch in batches.items():
        loss = loss_of(model, batch)
        (loss * (len(batch["input_ids"]) / rows)).backward()
        losses[kind] = loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


def save_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write weights and moments in one replaced file."""
    tensors = {f"weight.{name}": value for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    copies = {name: t.detach().clone() for name, t in tensors.items()}
    with replacing(path) as partial:
        save_file(copies, partial, {"step": str(step)})


def load_state(path: Path, model: "Qwen2ForCausalLM", optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote; returns the number of steps done."""
    if not path.is_file():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            optimizer.state[parameter] = moments
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def write_model(model: "Qwen2ForCausalLM", folder: Path, recipe: Recipe) -> None:
    """Write weights rounded to float16, configuration, tokenizer and their checksums."""
    words.save(folder)
    # The file's float16 is for size only.
    model.config.dtype, model.config.architectures = torch.float32, [type(model).__name__]
    model.config.save_pretrained(folder)
    # Tied output weights are left out.
    halves = {n: p.detach().half() for n, p in model.named_parameters()}
    weights = {name: value.contiguous() for name, value in halves.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files = sorted(p for p in folder.iterdir() if p.name not in {"manifest.json", "problems.jsonl"})
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}
    manifest = {
        "recipe": asdict(recipe),
        "device": model.device.type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "sha256": sums,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def pretrain(folder: Path, state: Path, recipe: Recipe) -> None:
    """Train, or continue a training, and write the model.

    Args:
        folder: of the model.
        state: file to continue from, also written.
        recipe: what is trained, and how long.
    """
    tokenizer, shapes, steps = words.build(), lesson_shapes(), recipe.steps
    with deterministic(recipe.seed), progress_bars() as bar:
        model = new_model(recipe, tokenizer.get_vocab_size())
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        done = load_state(state, model, optimizer)
        task = bar.add_task("pre-training", total=steps, completed=done)
        for step in range(done, steps):
            batches = batches_of(recipe, step, tokenizer, shapes)
            losses = train_step(model, optimizer, batches, recipe.rate_at(step))
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                save_state(state, model, optimizer, step + 1)
                shown = " ".join(f"{kind} {loss.item():.3f}" for kind, loss in losses.items())
                bar.update(task, total=steps, completed=step + 1, description=f"loss: {shown}")
                bar.console.print(f"step {step + 1} of {steps}: {shown}")
        write_model(model, folder, recipe)


def main() -> None:
    """Pre-train and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--state", type=Path, help="file to continue from; default: OUT.state")
    parser.add_argument("--steps", type=int, default=PACKAGED.steps, help="%(default)s")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    state = chosen.state or chosen.out.with_suffix(".state")
    pretrain(chosen.out, state, replace(PACKAGED, steps=chosen.steps))
    print(f"DONE {chosen.out} steps={chosen.steps}")


if __name__ == "__main__":
    main()
