"""The transcription against the real functions of a checkout, beyond what was recorded.

Bits, dtypes and the classes of exceptions, on random inputs; both sides run here, so that no
processor's own rounding enters. Skipped without a checkout:

    SDPO_VERL_CHECKOUT=SDPO python -m pytest -m slow tests/equivalence/test_against_live_fork.py
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.fixtures import packaged_family
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.run_reference import TraceHooks, run_reference_updates
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.live_fork.losses import GivenLogits
from sdpo.parity.live_fork.modules import CORE_ALGOS, live_function
from sdpo.parity.live_fork.one_process import one_process
from sdpo.parity.live_fork.settings import distillation_settings, live_actor
from sdpo.parity.live_fork.teacher_prompts import Attempts, LivePrompt, live_prompt
from sdpo.parity.live_fork.updates import live_update_actor
from sdpo.parity.recorded.golden_updates import golden_tensors
from sdpo.reference import loss as reference
from sdpo.reference import teacher_prompt
from sdpo.reference.forward import forward_micro_batch
from sdpo.reference.loss import LOSS_AGG_MODES
from sdpo.reference.update import UpdateSettings
from tests.helpers.recorded.checkout import checkout, needs_checkout
from tests.helpers.recorded.random_updates import Given, given_update

pytestmark = [
    needs_checkout,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True, scope="module")
def found() -> None:
    """The checkout comes first on the path."""
    find_checkout(checkout())


LOSSES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MASKS = (torch.bool, torch.uint8, torch.int32, torch.int64, *LOSSES)
MODES: list[dict[str, Any]] = [
    {"full_logit_distillation": False, "alpha": 1.0},
    {"full_logit_distillation": True, "distillation_topk": None},
    {"full_logit_distillation": True, "distillation_topk": 5, "distillation_add_tail": True},
    {"full_logit_distillation": True, "distillation_topk": 5, "distillation_add_tail": False},
]


def outcome(function: Callable[[], Any]) -> Any:
    """What a side gives, or the class of what it raises, as text."""
    try:
        return function()
    except Exception as error:
        return type(error).__name__


def differences(actual: Any, expected: Any) -> list[str]:
    """Names of what is not the same in bits and dtype; texts are classes of exceptions."""
    if isinstance(actual, str) or isinstance(expected, str):
        return [] if actual == expected else [f"{actual} for {expected}"]
    names = actual.keys() | expected.keys()
    return sorted(
        name
        for name in names
        if name not in actual or name not in expected or not same_bits(actual[name], expected[name])
    )


def random_mask(dtype: torch.dtype, rows: int, width: int, share: float) -> Tensor:
    mask = torch.rand(rows, width) < share
    if rows > 1 and random.random() < 0.3:
        mask[random.randrange(rows)] = False
    return mask.to(dtype)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("dtype", LOSSES, ids=str)
def test_aggregations(dtype, mode):
    """960 cases each: values, dtypes and gradients, with NaN in a place now and then."""
    random.seed(0)
    wrong = []
    for number, kind in itertools.product(range(120), MASKS):
        rows, width = random.randrange(1, 9), random.randrange(1, 65)
        mask = random_mask(kind, rows, width, random.choice([0.0, 0.1, 0.7, 1.0]))
        values = torch.randn(rows, width, dtype=torch.float64).to(dtype)
        if number % 6 == 5:
            values[0, 0] = float("nan")
        count = None if number % 5 == 4 else mask.sum().clamp(min=1.0)
        sides = []
        for function in (reference.agg_loss, live_function(CORE_ALGOS, "agg_loss")):
            leaf = values.clone().requires_grad_(True)
            loss = function(leaf, mask, mode, batch_num_tokens=count)
            (gradient,) = torch.autograd.grad(loss, leaf)
            sides.append({"loss": loss.detach(), "gradient": gradient})
        wrong += [(kind, name) for name in differences(*sides)]
    assert wrong == []


def log_probs_of(mode: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> dict:
    """Log-probs as the loss takes them, of both sides."""
    found: dict[str, Tensor] = {}
    for side in ("student", "teacher"):
        logits = (torch.randn(*shape, 12) * random.choice([0.1, 1.0, 8.0])).to(dtype)
        logs = torch.log_softmax(logits, dim=-1)
        found[f"{side}_log_probs"] = logs[..., 0].clone()
        if mode["full_logit_distillation"] and mode["distillation_topk"] is None:
            found[f"{side}_all_log_probs"] = logs
        elif mode["full_logit_distillation"]:
            found[f"{side}_topk_log_probs"] = logs[..., : mode["distillation_topk"]].clone()
    return found


def given_loss(dtype: torch.dtype, mode: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Random log-probs, further arguments and settings of the loss."""
    shape = (random.randrange(1, 6), random.randrange(1, 20))
    alphas = [0.0, 0.3, 0.5, 1.0] if mode["full_logit_distillation"] else [1.0]
    settings = mode | {
        "alpha": random.choice(alphas),
        "is_clip": random.choice([None, 0.5, 2.0]),
    }
    further: dict[str, Any] = {
        "response_mask": random_mask(random.choice(MASKS), *shape, random.choice([0.0, 0.6, 1.0])),
        "loss_agg_mode": random.choice(LOSS_AGG_MODES),
        "old_log_probs": None,
        "rollout_is_weights": None,
        "self_distillation_mask": None,
    }
    if random.random() < 0.9:
        further["old_log_probs"] = -torch.rand(shape).to(random.choice(LOSSES)) * 3
    if random.random() < 0.5:
        further["rollout_is_weights"] = torch.rand(shape).to(random.choice(LOSSES)) * 2
    if random.random() < 0.6:
        kept = torch.rand(shape[0]) < 0.7
        further["self_distillation_mask"] = kept.to(random.choice(MASKS))
    return log_probs_of(mode, shape, dtype), further, settings


@pytest.mark.parametrize("mode", MODES, ids=["sampled", "full_vocab", "tail", "renorm"])
@pytest.mark.parametrize("dtype", LOSSES, ids=str)
def test_losses_from_log_probs(dtype, mode):
    """250 cases each, over all dtypes of masks, weights and old log-probs."""
    random.seed(1)
    wrong = []
    for number in range(250):
        logs, further, settings = given_loss(dtype, mode)
        used = [name for name in logs if name.startswith("student")][-1]

        def of(function: Any, arguments: dict, logs: dict = logs, used: str = used) -> dict:
            leaf = logs[used].clone().requires_grad_(True)
            loss = function(**logs | {used: leaf}, **arguments)
            loss = loss[0] if isinstance(loss, tuple) else loss
            (gradient,) = torch.autograd.grad(loss, leaf)
            return {"loss": loss.detach(), "gradient": gradient}

        ours = outcome(
            lambda of=of, a=further | settings: of(reference.compute_self_distillation_loss, a)
        )
        config = {"self_distillation_config": distillation_settings(settings)}
        function = live_function(CORE_ALGOS, "compute_self_distillation_loss")
        theirs = outcome(lambda of=of, f=function, a=further | config: of(f, a))
        wrong += [(number, name) for name in differences(ours, theirs)]
    assert wrong == []


@pytest.mark.parametrize("dtype", LOSSES[:3], ids=str)
def test_log_probs_and_support_from_logits(dtype):
    """300 forward passes each: temperature, log-probs, support and entropy, and their gradients."""
    random.seed(2)
    wrong = []
    for number in range(300):
        mode = random.choice(MODES)
        topk = mode.get("distillation_topk")
        rows, width = random.randrange(1, 5), random.randrange(1, 9)
        # one and two logits close to each other: ties and near ties at the edge of the top-k
        logits = (torch.randn(rows, width, 12) * random.choice([0.01, 1, 20])).to(dtype)
        responses = torch.randint(12, (rows, width))
        temperature = random.choice([0.7, 1.0, 1.3])
        everything = mode["full_logit_distillation"] and topk is None
        entropy = random.random() < 0.3
        zeros = torch.zeros(rows, width + 1, dtype=torch.long)
        batch = {
            "responses": responses,
            "input_ids": zeros,
            "attention_mask": zeros + 1,
            "position_ids": zeros,
        }
        leaves = [logits.clone().requires_grad_(True) for _ in range(2)]
        ours = forward_micro_batch(
            GivenLogits(leaves[0]),
            batch,
            temperature,
            topk=topk,
            all_log_probs=everything,
            entropy=entropy,
        )
        with one_process():
            made = live_actor(
                {"ppo_mini_batch_size": rows, "ppo_micro_batch_size_per_gpu": rows},
                mode,
                GivenLogits(leaves[1]),
            )
            theirs = made._forward_micro_batch(
                batch, temperature, entropy, return_all_logps=everything, distill_topk=topk
            )
        names = {"topk_logps": "topk_log_probs", "all_logps": "all_log_probs"} | {
            "entropys": "entropy"
        }
        theirs = {names.get(name, name): value for name, value in theirs.items()}
        for side, leaf in zip((ours, theirs), leaves, strict=True):
            parts = [v.double().sin().sum() for v in side.values() if v.is_floating_point()]
            total = torch.stack(parts).sum()
            (side["gradient"],) = torch.autograd.grad(total, leaf)
        wrong += [(number, name) for name in differences(ours, theirs)]
    assert wrong == []


def ours_on(given: Given, groups: list[Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """The transcription on a random case: tensors and metrics."""
    student, teacher, optimizer = given.models()
    settings, hooks = UpdateSettings(**given.actor, **given.distillation), TraceHooks()
    batches = zip(given.batches, groups, strict=True)
    metrics = run_reference_updates(
        student, teacher, optimizer, settings, given.temperature, batches, hooks=hooks
    )
    return golden_tensors(hooks.trace), metrics


def theirs_on(given: Given, groups: list[Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """The checkout on a random case; `groups` receives those of its dynamic batches."""
    student, teacher, optimizer = given.models()
    watched = live_update_actor(
        given.actor,
        given.distillation,
        student,
        optimizer,
        teacher,
        trust_region=given.teacher == "trust_region",
    )
    metrics = []
    for batch in given.batches:
        try:
            metrics.append(watched.update(batch, given.temperature))
        finally:
            groups.append(watched.groups)
    return watched.tensors, metrics


def completed(given: Given, groups: list[Any]) -> list[Any]:
    """Groups for each update; where the checkout raised before it made them, a row each."""
    if not given.actor["use_dynamic_bsz"]:
        return [None] * len(given.batches)
    size, whole = given.actor["ppo_mini_batch_size"], []
    for number, batch in enumerate(given.batches):
        made = groups[number] if number < len(groups) else []
        rows = range(len(next(iter(batch.values()))))
        steps = [[[row] for row in rows[start : start + size]] for start in rows[::size]]
        whole.append(made + (steps * given.actor["ppo_epochs"])[len(made) :])
    return whole


@pytest.mark.parametrize("seed", range(300))
def test_updates(seed):
    """One or two updates of a random case: every value, metric, gradient and weight; exceptions."""
    given, groups = given_update(seed), []
    theirs = outcome(lambda: theirs_on(given, groups))
    ours = outcome(lambda: ours_on(given, completed(given, groups)))
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs, given
        return
    seen = {name: value for name, value in ours[0].items() if name in theirs[0]}
    assert differences(seen, theirs[0]) == [], given
    texts = [
        [sorted(f"{n}: {v}" for n, v in m.items()) for m in side[1]] for side in (ours, theirs)
    ]
    assert texts[0] == texts[1], given


WORDS = [
    "",
    " ",
    "a",
    "<think>b</think> c",
    "<think>open",
    "{x}",
    "é\n",
    "wrong: 3 != 4",
    "</think>",
]


def given_prompt() -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Random attempts, settings and chat-template arguments."""
    rows, width = random.randrange(1, 7), random.randrange(1, 12)

    def text() -> str:
        return " ".join(random.choices(WORDS, k=random.randrange(4)))

    def messages() -> list[dict[str, str]]:
        roles = random.choices(["system", "user", "assistant"], k=random.randrange(1, 4))
        return [{"role": role, "content": text()} for role in roles]

    feedback = [random.choice([None, 1, "", " \n", text(), ["x"]]) for _ in range(rows + 1)]
    infos = [None, {}, {"feedback": feedback}, {"feedback": feedback[:-2]}, {"other": feedback}]
    mask = random_mask(torch.int64, rows, width, random.choice([0.0, 0.7, 1.0]))
    rewards = torch.zeros(rows, width)
    rewards[:, -1] = torch.tensor(random.choices([0.0, 0.1, 0.5, 1.0, float("nan")], k=rows))
    batch = {
        "responses": torch.randint(425, (rows, width)),
        "response_mask": mask,
        "token_level_rewards": rewards,
        "uids": random.choices(["u", "v", 3], k=rows),
        "raw_prompt": [messages() for _ in range(rows)],
        "reward_extra_infos": random.choice(infos),
    }
    flags = (
        "dont_reprompt_on_self_success",
        "remove_thinking_from_demonstration",
        "include_environment_feedback",
        "environment_feedback_only_without_solution",
    )
    settings: dict[str, Any] = {name: random.random() < 0.5 for name in flags} | {
        "success_reward_threshold": random.choice([0.1, 0.5, 1.0]),
        "max_reprompt_len": random.choice([5, 20, 10240]),
        "reprompt_truncation": random.choice(["left", "right", "right", "error"]),
        "reprompt_template": random.choice(
            ["{prompt}{solution}{feedback}\n", "{prompt} {missing}"]
        ),
        "solution_template": "[S {successful_previous_attempt}]",
        "feedback_template": "[F {feedback_raw}]",
    }
    return batch, settings, random.choice([None, {}, {"enable_thinking": False}, {"other": 1}])


def test_teacher_prompts():
    """800 batches of attempts: ids, masks, positions and metrics; exceptions by their class."""
    random.seed(3)
    tokenizer, wrong, raised = load_tokenizer(packaged_family("reprompt")), [], 0
    for number in range(800):
        batch, settings, template = given_prompt()

        def of(function: Callable[[], Any]) -> Any:
            made = function()
            values = made.tensors
            return dict(values) | {
                n: torch.tensor(v, dtype=torch.float64) for n, v in made.metrics.items()
            }

        def transcribed(batch=batch, settings=settings, template=template) -> Any:
            teacher_prompt.set_tokenizer_sides(tokenizer, settings)
            return teacher_prompt.build_teacher_batch(
                **batch,
                tokenizer=tokenizer,
                loss_mode="sdpo",
                self_distillation=settings,
                apply_chat_template_kwargs=template,
            )

        def live(batch=batch, settings=settings, template=template) -> LivePrompt | None:
            attempts = Attempts(**batch)
            return live_prompt(attempts, settings, tokenizer, chat_template_kwargs=template)

        theirs = outcome(lambda of=of, live=live: of(live))
        ours = outcome(lambda of=of, transcribed=transcribed: of(transcribed))
        raised += isinstance(theirs, str)
        wrong += [(number, name) for name in differences(ours, theirs)]
    assert wrong == []
    assert 50 < raised < 600
