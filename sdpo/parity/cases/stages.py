"""The sixteen stages of an SDPO step, in causal order. Names and order are contract."""

from dataclasses import dataclass

_FILES = {
    "actor.py": "verl/workers/config/actor.py",
    "ray_trainer.py": "verl/trainer/ppo/ray_trainer.py",
    "dp_actor.py": "verl/workers/actor/dp_actor.py",
    "core_algos.py": "verl/trainer/ppo/core_algos.py",
}

# family, stage, where the reference computes it (at 0e6d5106), what is compared there
_TABLE = """
config   config            actor.py:38-112          settings against the preset
reprompt feedback          ray_trainer.py:610-634   which feedback counts, per row
reprompt demonstration     ray_trainer.py:650-669   chosen peer per row and its text after clean-up
reprompt teacher_prompt    ray_trainer.py:710-745   messages of the teacher prompt
reprompt teacher_tokens    ray_trainer.py:748-764   ids, attention mask and position ids
reprompt distillation_mask ray_trainer.py:766-778   rows with a teacher signal
loss     log_probs         dp_actor.py:521-525      log-probs of the sampled tokens, student and teacher
loss     support           dp_actor.py:526-535      top-k indices and both sides' log-probs on them
loss     tail              core_algos.py:1112-1131  after tail bucket or renormalisation
loss     divergence        core_algos.py:1138-1166  divergence of each token
loss     importance        core_algos.py:1168-1180  per-token loss after ratio and rollout weights
loss     aggregate         core_algos.py:1027-1082  loss of a micro-batch
loss     gradient          core_algos.py:1085-1188  d loss / d student logits
update   accumulate        dp_actor.py:900-908      parameter gradient at the optimizer step, before clipping
update   optimizer         dp_actor.py:562-587      parameters after the step, or the skipped step
update   teacher_update    dp_actor.py:132-151      teacher parameters
"""  # noqa: E501

_EXACT_FAMILIES = ("config", "reprompt")
"""Families whose stages hold texts, settings and ids; the others hold numbers."""


@dataclass(frozen=True)
class Stage:
    """One stage: what is compared there, how, and where the reference computes it."""

    name: str
    number: int
    compares: str
    kind: str
    source: str
    family: str


def _stage(number: int, row: str) -> Stage:
    """Read a row of the table."""
    family, name, source, compares = row.split(maxsplit=3)
    file, lines = source.split(":")
    kind = "exact" if family in _EXACT_FAMILIES else "numeric"
    return Stage(name, number, compares, kind, f"{_FILES[file]}:{lines}", family)


STAGES = {
    stage.name: stage
    for stage in (_stage(n, row) for n, row in enumerate(_TABLE.strip().splitlines(), start=1))
}
NAMES = tuple(STAGES)
PROMPT_STAGES = tuple(name for name in NAMES if STAGES[name].family == "reprompt")


def first_in_order(names: set[str]) -> str | None:
    """Return the earliest of some stages, None of none."""
    return min(names, key=NAMES.index) if names else None
