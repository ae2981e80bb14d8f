"""The sixteen stages of an SDPO step, in causal order. Names and order are contract."""

from dataclasses import dataclass

CORE_ALGOS = "verl/trainer/ppo/core_algos.py"
DP_ACTOR = "verl/workers/actor/dp_actor.py"
RAY_TRAINER = "verl/trainer/ppo/ray_trainer.py"
ACTOR_CONFIG = "verl/workers/config/actor.py"


@dataclass(frozen=True)
class Stage:
    """One stage: what is compared there, how, and where the reference computes it."""

    name: str
    number: int
    compares: str
    kind: str
    source: str
    family: str


def _stage(number: int, name: str, kind: str, family: str, source: str, compares: str) -> Stage:
    return Stage(name, number, compares, kind, source, family)


ORDERED = (
    _stage(1, "config", "exact", "config", f"{ACTOR_CONFIG}:38-112", "settings against the preset"),
    _stage(
        2,
        "feedback",
        "exact",
        "reprompt",
        f"{RAY_TRAINER}:610-634",
        "which feedback counts, per row",
    ),
    _stage(
        3,
        "demonstration",
        "exact",
        "reprompt",
        f"{RAY_TRAINER}:650-669",
        "chosen peer per row and its text after clean-up",
    ),
    _stage(
        4,
        "teacher_prompt",
        "exact",
        "reprompt",
        f"{RAY_TRAINER}:672-796",
        "messages of the teacher prompt",
    ),
    _stage(
        5,
        "teacher_tokens",
        "exact",
        "reprompt",
        f"{RAY_TRAINER}:672-796",
        "ids, attention mask and position ids",
    ),
    _stage(
        6,
        "distillation_mask",
        "exact",
        "reprompt",
        f"{RAY_TRAINER}:672-796",
        "rows with a teacher signal",
    ),
    _stage(
        7,
        "log_probs",
        "numeric",
        "loss",
        f"{DP_ACTOR}:174-560",
        "log-probs of the sampled tokens, student and teacher",
    ),
    _stage(
        8,
        "support",
        "numeric",
        "loss",
        f"{DP_ACTOR}:174-560",
        "top-k indices and both sides' log-probs on them",
    ),
    _stage(
        9,
        "tail",
        "numeric",
        "loss",
        f"{CORE_ALGOS}:1085-1188",
        "after tail bucket or renormalisation",
    ),
    _stage(
        10, "divergence", "numeric", "loss", f"{CORE_ALGOS}:1085-1188", "divergence of each token"
    ),
    _stage(
        11,
        "importance",
        "numeric",
        "loss",
        f"{CORE_ALGOS}:1085-1188",
        "per-token loss after ratio and rollout weights",
    ),
    _stage(12, "aggregate", "numeric", "loss", f"{CORE_ALGOS}:1027-1082", "loss of a micro-batch"),
    _stage(
        13,
        "gradient",
        "numeric",
        "loss",
        f"{CORE_ALGOS}:1085-1188",
        "d loss / d student logits",
    ),
    _stage(
        14,
        "accumulate",
        "numeric",
        "update",
        f"{DP_ACTOR}:675-921",
        "parameter gradient at the optimizer step, before clipping",
    ),
    _stage(
        15,
        "optimizer",
        "numeric",
        "update",
        f"{DP_ACTOR}:562-587",
        "parameters after the step, or the skipped step",
    ),
    _stage(
        16,
        "teacher_update",
        "numeric",
        "update",
        f"{DP_ACTOR}:132-151",
        "teacher parameters",
    ),
)

STAGES = {stage.name: stage for stage in ORDERED}
NAMES = tuple(STAGES)
PROMPT_STAGES = tuple(name for name in NAMES if STAGES[name].family == "reprompt")


def first_in_order(names: set[str]) -> str | None:
    """The earliest of some stages, None of none."""
    return min(names, key=NAMES.index) if names else None
