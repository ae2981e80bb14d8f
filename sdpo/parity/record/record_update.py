"""Records whole actor updates: per-token values, gradients, weights, teacher and metrics."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from sdpo.fixtures import GoldenFamily
from sdpo.fixtures.models import build_model, build_optimizer
from sdpo.parity.live_fork.updates import WatchedActor, live_update_actor
from sdpo.parity.record.recipes import Recipe, Recording, recording


def record_update(recipe: Recipe, family: GoldenFamily) -> Recording:
    """Run a case of one or several updates through the fork's actor.

    Args:
        recipe: with the batches as inputs.
        family: the recorded updates, whose manifest has the models.
    """
    config = recipe.config
    student, teacher = models(recipe, family)
    actor = live_update_actor(
        config["actor"],
        config["self_distillation"],
        student,
        build_optimizer(config["optimizer"], student.parameters()),
        teacher,
        trust_region=config["teacher"] == "trust_region",
    )
    results = [one_update(actor, batch, recipe, teacher) for batch in batches(recipe)]
    outputs = {name: value for name, value in actor.tensors.items() if is_kept(name, recipe)}
    return recording(recipe, outputs, {"results": results})


def models(recipe: Recipe, family: GoldenFamily) -> tuple[nn.Module, nn.Module | None]:
    """The student, and the teacher where it is a module of its own."""
    name, config = recipe.config["model"], recipe.config
    student = build_model(family, name)
    if config["teacher"] == "none":
        return student, None
    role = "teacher" if config["teacher_init"] == "perturbed" else "actor"
    return student, build_model(family, name, role)


def batches(recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Per update its batch."""
    for number in range(recipe.given["updates"]):
        start = f"u{number}.in."
        yield {
            name.removeprefix(start): tensor.clone()
            for name, tensor in recipe.inputs.items()
            if name.startswith(start)
        }


def is_kept(name: str, recipe: Recipe) -> bool:
    """Whether a value is recorded: gradients and whole distributions only where asked for."""
    if ".grad." in name:
        return recipe.config["save_grads"]
    if name.endswith("_all_log_probs"):
        return recipe.config["save_all_log_probs"]
    return True


def one_update(
    actor: WatchedActor, batch: Mapping[str, Tensor], recipe: Recipe, teacher: nn.Module | None
) -> dict[str, object]:
    """Run one update; its metrics, its micro-batches, and whether weights changed."""
    before = [copied(module) for module in (actor.actor.actor_module, teacher)]
    metrics = actor.update(batch, recipe.config["temperature"])
    after = [copied(module) for module in (actor.actor.actor_module, teacher)]
    groups = groups_of(recipe, len(batch["responses"]), actor)
    return {
        "metrics": metrics,
        "micro_batch_row_indices": [rows for step in groups for rows in step],
        "micro_batches_per_optimizer_step": [len(step) for step in groups],
        "actor_changed": changed(before[0], after[0]),
        "teacher_changed": None if teacher is None else changed(before[1], after[1]),
    }


def groups_of(recipe: Recipe, rows: int, actor: WatchedActor) -> list[list[list[int]]]:
    """Per optimizer step the rows of each micro-batch."""
    settings = recipe.config["actor"]
    if settings["use_dynamic_bsz"]:
        return actor.groups
    mini, micro = settings["ppo_mini_batch_size"], settings["ppo_micro_batch_size_per_gpu"]
    steps = [[*range(rows)][start : start + mini] for start in range(0, rows, mini)]
    groups = [[step[i : i + micro] for i in range(0, len(step), micro)] for step in steps]
    return groups * settings["ppo_epochs"]


def copied(module: nn.Module | None) -> dict[str, Tensor]:
    """Copies of the weights by name."""
    return {} if module is None else {n: v.clone() for n, v in module.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether any weight is another number than before."""
    return any(not before[name].equal(after[name]) for name in before)
