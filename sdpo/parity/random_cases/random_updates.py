"""Random updates of the tiny recorded models: settings, batches, optimizers and teachers.

Some are wrong on purpose (settings, sizes, teachers, batches): both sides must refuse them alike.
Not varied: several ranks, fused kernels that run, compute dtype float16, kinds of the KL term other
than `low_var_kl`, and how a dynamic batch is split, which the transcription is told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdpo.fixtures import GoldenFamily
from sdpo.fixtures.models import build_model, build_optimizer
from sdpo.parity.cases.run_reference import Groups, TraceHooks, run_reference_updates
from sdpo.parity.live_fork.updates import live_update_actor
from sdpo.parity.random_cases.chance import Chance
from sdpo.parity.recorded.golden_updates import golden_tensors
from sdpo.reference.loss import LOSS_AGG_MODES
from sdpo.reference.update import UpdateSettings

Values = dict[str, object]
Scalars = dict[str, bool | int | float | str | None]

OPTIMIZERS: tuple[dict[str, str | float], ...] = (
    {"name": "SGD", "lr": 0.5},
    {"name": "SGD", "lr": 0.2, "momentum": 0.9},
    {"name": "AdamW", "lr": 0.003, "weight_decay": 0.1},
)
REFUSED_SETTINGS: tuple[Scalars, ...] = (
    {"alpha": 1.5},
    {"teacher_update_rate": -0.1},
    {"teacher_regularization": "none"},
    {"distillation_topk": 0},
    {"is_clip": 0.0},
)
SETTINGS: Callable[..., UpdateSettings] = UpdateSettings
"""Makes the transcription's settings of those of the fork, which may have values of wrong types."""

MODELS = {"A": 96, "B": 80}
"""The recorded models and the sizes of their vocabularies."""


@dataclass
class RandomUpdate:
    """One to three updates; `groups` are the fork's rows of dynamic batches, once it has run."""

    family: GoldenFamily = field(repr=False)
    model: str
    optimizer: dict[str, str | float]
    actor: Scalars
    distillation: Scalars
    teacher: str
    temperature: float
    batches: list[dict[str, Tensor]] = field(repr=False)
    groups: list[Groups] = field(default_factory=list, repr=False)

    def described(self) -> str:
        """Settings and the names of each batch, on one line."""
        return f"{self!r} {[sorted(batch) for batch in self.batches]}"

    def models(self) -> tuple[nn.Module, nn.Module | None, torch.optim.Optimizer]:
        """Fresh actor, teacher and optimizer."""
        student = build_model(self.family, self.model)
        teacher: nn.Module | None = build_model(self.family, self.model, "teacher")
        if self.teacher in ("none", "actor"):
            teacher = None if self.teacher == "none" else student
        return student, teacher, build_optimizer(self.optimizer, student.parameters())

    def fork(self) -> Values:
        """Every value, gradient, weight and metric of the fork's actor."""
        student, teacher, optimizer = self.models()
        self.groups = []
        watched = live_update_actor(
            self.actor,
            self.distillation,
            student,
            optimizer,
            teacher,
            trust_region=self.teacher == "trust_region",
        )
        metrics = []
        for batch in self.batches:
            try:
                metrics.append(watched.update(batch, self.temperature))
            finally:
                self.groups.append(watched.groups)
        return {**watched.tensors, **numbered(metrics)}

    def transcribed(self) -> Values:
        """The same of the transcription, as far as the fork's values are watched."""
        student, teacher, optimizer = self.models()
        settings, hooks = SETTINGS(**self.actor, **self.distillation), TraceHooks()
        metrics = run_reference_updates(
            student,
            teacher,
            optimizer,
            settings,
            self.temperature,
            zip(self.batches, self.completed_groups(), strict=True),
            hooks=hooks,
        )
        unwatched = ("_support", ".divergence")
        values = golden_tensors(hooks.trace)
        seen = {name: value for name, value in values.items() if not name.endswith(unwatched)}
        return {**seen, **numbered(metrics)}

    def completed_groups(self) -> list[Groups | None]:
        """Groups of each update; where the fork raised before it made them, a row each."""
        if not self.actor["use_dynamic_bsz"]:
            return [None] * len(self.batches)
        size, epochs = self.actor["ppo_mini_batch_size"], self.actor["ppo_epochs"]
        assert isinstance(size, int)
        assert isinstance(epochs, int)
        complete: list[Groups | None] = []
        for number, batch in enumerate(self.batches):
            made = list(self.groups[number]) if number < len(self.groups) else []
            rows = range(len(next(iter(batch.values()))))
            steps = [[[row] for row in rows[start : start + size]] for start in rows[::size]]
            complete.append(made + (steps * epochs)[len(made) :])
        return complete


def numbered(metrics: list[dict[str, object]]) -> Values:
    """The metrics of all updates by name and number."""
    return {f"u{n}.{name}": v for n, logged in enumerate(metrics) for name, v in logged.items()}


def random_update(seed: int, family: GoldenFamily) -> RandomUpdate:
    """The updates of a seed, of the models in the manifest of recorded updates."""
    chance = Chance("update", seed)
    model = chance.choice(list(MODELS))
    actor, rows = random_actor(chance)
    trust_region = chance.happens(0.3)
    distillation = random_distillation(chance, MODELS[model], trust_region)
    # fused kernels need models of their own; what refuses them does so before
    refused = distillation["full_logit_distillation"] or trust_region
    actor["use_fused_kernels"] = bool(refused) and chance.happens(0.02)
    usual = "trust_region" if trust_region else "separate"
    return RandomUpdate(
        family,
        model,
        chance.choice(OPTIMIZERS),
        actor,
        distillation,
        chance.choice([usual] * 38 + ["none", "actor"]),
        chance.choice([0.7, 1.0, 1.3]),
        [random_batch(chance, rows, actor, MODELS[model]) for _ in range(chance.between(1, 3))],
    )


def random_actor(chance: Chance) -> tuple[Scalars, int]:
    """Settings of the actor, and the rows of a batch."""
    mini = chance.between(1, 4)
    actor: Scalars = {
        "ppo_mini_batch_size": mini,
        "ppo_micro_batch_size_per_gpu": chance.choice([1, mini, mini, 1 + mini // 2] * 9 + [5]),
        "ppo_epochs": chance.choice([1, 1, 1, 2]),
        "loss_agg_mode": chance.choice([*LOSS_AGG_MODES] * 12 + ["sum"]),
        "grad_clip": chance.choice([0.1, 1.0, 100.0] * 12 + [None]),
        "entropy_coeff": chance.choice([0.0, 0.0, 0.01, -0.01]),
        "calculate_entropy": chance.happens(0.3),
        "use_kl_loss": chance.happens(0.3),
        "kl_loss_coef": chance.choice([0.001, 0.1]),
        "use_dynamic_bsz": chance.happens(0.3),
        "ppo_max_token_len_per_gpu": chance.choice([20, 40, 16384]),
        "use_remove_padding": chance.happens(0.3),
        "compute_dtype": chance.choice(["float32"] * 4 + ["bfloat16"]),
    }
    return actor, chance.choice([mini, mini, mini * 2, mini + 1])


def random_distillation(chance: Chance, vocabulary: int, trust_region: bool) -> Scalars:
    """Settings of loss and teacher; one in fifty is refused by both sides."""
    full, topk = chance.happens(0.8), chance.happens(0.7)
    alpha = chance.choice([0.0, 0.5, 1.0, chance.number(0.0, 1.0)])
    settings: Scalars = {
        "full_logit_distillation": full,
        "alpha": alpha if full or chance.happens(0.1) else 1.0,
        "distillation_topk": chance.choice([1, 8, 8, vocabulary, 100]) if topk else None,
        "distillation_add_tail": chance.happens(0.6),
        "is_clip": chance.choice([None, 0.5, 0.8, 2.0]),
        "teacher_regularization": "trust-region" if trust_region else "ema",
        "teacher_update_rate": chance.choice([0.0, 0.05, 0.3, 1.0]),
    }
    return settings | (chance.choice(REFUSED_SETTINGS) if chance.happens(0.02) else {})


def random_batch(
    chance: Chance, rows: int, actor: Mapping[str, object], vocabulary: int
) -> dict[str, Tensor]:
    """Everything that an update takes; now and then something is left out or does not count."""
    width = chance.between(1, 7)
    mask = chance.mask(rows, width).long()
    responses = chance.integers(1, vocabulary, rows, width) * mask
    batch = {
        **padded_prompts(chance, "", mask, responses, vocabulary),
        **padded_prompts(chance, "teacher_", mask, responses, vocabulary),
        "responses": responses,
        "response_mask": mask,
        "old_log_probs": -chance.uniform(rows, width) * 5,
        "advantages": torch.zeros(rows, width),
        "ref_log_prob": -chance.uniform(rows, width) * 5,
        "self_distillation_mask": (chance.uniform(rows) < 0.7).float(),
    }
    if chance.happens(0.3):
        batch["rollout_is_weights"] = chance.uniform(rows, width) * 2
    if chance.happens(0.1):
        batch["rollout_log_probs"] = -chance.uniform(rows, width) * 5
    if chance.happens(0.03):
        del batch[chance.choice(list(batch))]
    # how a dynamic batch is split is no part of the transcription, and fails without any token
    if chance.happens(0.05) and not actor["use_dynamic_bsz"]:
        for prefix in ("", "teacher_"):
            batch.get(f"{prefix}attention_mask", mask).zero_()
    return batch


def padded_prompts(
    chance: Chance, prefix: str, response_mask: Tensor, responses: Tensor, vocabulary: int
) -> dict[str, Tensor]:
    """Prompts of random lengths, padded on the left, before the responses."""
    rows, longest = len(responses), chance.between(1, 9)
    lengths = chance.integers(1, longest + 1, rows, 1)
    kept = (torch.arange(longest) >= longest - lengths).long()
    ids = chance.integers(1, vocabulary, rows, longest) * kept
    attention = torch.cat([kept, response_mask], 1)
    return {
        f"{prefix}input_ids": torch.cat([ids, responses], 1),
        f"{prefix}attention_mask": attention,
        f"{prefix}position_ids": (attention.cumsum(1) - 1).clamp(min=0),
    }
