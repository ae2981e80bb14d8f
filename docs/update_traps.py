"""Traps of the reference's updates, each measured by the transcription or by what was recorded."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from sdpo.fixtures import GoldenCase, packaged_family
from sdpo.fixtures.loader import read_verified
from sdpo.fixtures.models import build_model
from sdpo.parity.cases.run_reference import TraceHooks, run_reference_updates
from sdpo.parity.recorded.golden_updates import batches, build, recorded_trace
from sdpo.reference.update import Actor, TrustRegionTeacher, UpdateSettings, ema_update


class Trap(NamedTuple):
    """What happens, how much it is, and the recorded case that it is measured on."""

    trap: str
    effect: str
    case: str


def raised(call: Callable[[], object]) -> str:
    """The class of what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    raise AssertionError("nothing was raised")


def update_case(case_id: str) -> GoldenCase:
    """A recorded update."""
    return packaged_family("update").case(case_id)


def logged(case_id: str, metric: str = "actor/pg_loss") -> float:
    """The metric that the fork logged in the first update of a recorded case."""
    return float(update_case(case_id).entry["results"][0]["metrics"][metric])


def settings_of(golden: GoldenCase, **changes: Any) -> UpdateSettings:
    """A recorded update's settings for the transcription."""
    config = golden.config
    return replace(UpdateSettings(**config["actor"], **config["self_distillation"]), **changes)


def mean_of_means() -> Trap:
    """`token-mean` depends on the micro-batch."""
    losses = [logged(case_id) for case_id in ("P-U001", "P-U002", "P-U003", "P-U004")]
    assert abs(losses[2] - losses[3]) < 1e-6
    return Trap(
        "the loss is a mean of the micro-batches' own means, so that it depends on their size",
        f"the same four rows: {losses[0]:.3f} in one micro-batch, {losses[1]:.3f} in two, "
        f"{losses[2]:.3f} in four, which is `seq-mean-token-mean` although `token-mean` was set",
        "P-U001 to P-U004",
    )


def indivisible_micro_batch() -> Trap:
    """A micro-batch that does not divide the mini-batch: losses add up."""
    return Trap(
        "a micro-batch of 3 for a mini-batch of 4: the scale is 1/(4 // 3) = 1",
        f"losses are added instead of averaged: {logged('P-U019'):.3f}",
        "P-U019",
    )


def lora_factors() -> Trap:
    """LoRA factors are averaged, and the teacher's A is drawn anew."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.nn.ParameterList() for _ in range(2))
    for side in (student, teacher):
        side.append(torch.randn(4, 64, generator=random))
        side.append(torch.zeros(64, 4))
    student[1].data.normal_(generator=random)
    wanted = student[1] @ student[0]
    for _ in range(20):
        ema_update(teacher, student, 0.05)
    with torch.no_grad():
        found = teacher[1] @ teacher[0]
        away = float((found - (1 - 0.95**20) * wanted).norm() / ((1 - 0.95**20) * wanted).norm())
    return Trap(
        "with LoRA the factors A and B are averaged, not B·A, and the teacher's A is drawn anew",
        f"20 updates at rate 0.05 with a student that stays: B·A of the teacher is {away:.2f} of "
        "its size away from the average of B·A",
        "none recorded",
    )


def unsaved_teacher() -> Trap:
    """A resumed run has the initial teacher."""
    golden = update_case("P-U010")
    losses = []
    for forgets in (False, True):
        actor, teacher, optimizer = build(packaged_family("update"), golden)
        assert teacher is not None
        initial, hooks = copy.deepcopy(teacher.state_dict()), TraceHooks()
        for number, batch in enumerate(batches(golden, golden.tensors())):
            if forgets and number == 2:
                teacher.load_state_dict(initial)
            settings = replace(settings_of(golden), teacher_update_rate=0.5)
            run_reference_updates(actor, teacher, optimizer, settings, 1.0, [batch], hooks=hooks)
        losses.append(hooks.trace.micro_batches(2, 0)[0]["aggregate"].item())
    return Trap(
        "a checkpoint holds no teacher: a resumed run begins with the initial one again",
        f"rate 0.5, resumed after two updates: the third loss is {losses[1]:.3f} instead of "
        f"{losses[0]:.3f}",
        "P-U010",
    )


@torch.no_grad()
def trust_region_mode() -> Trap:
    """The live half of a trust-region teacher drops activations."""
    torch.manual_seed(0)
    models = [build_model(packaged_family("update"), "A") for _ in range(2)]
    for model in models:
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
    teacher = TrustRegionTeacher(models[0].eval(), models[1].train(), 0.5)
    ids = torch.arange(12).view(1, 12)
    first, second = (teacher(input_ids=ids, use_cache=False).logits for _ in range(2))
    apart = float((first - second).norm() / first.norm())
    assert apart > 0
    return Trap(
        "the live half of a trust-region teacher answers in training mode",
        f"with dropout 0.1 and mix 0.5 two answers to one prompt differ by {100 * apart:.1f} %",
        "P-U012 without dropout",
    )


def failing_settings() -> Trap:
    """Settings that the check lets through."""
    golden = update_case("P-U001")
    batch, _ = next(batches(golden, golden.tensors()))
    kinds, moved = [], False
    for changes, own_teacher in (
        ({"full_logit_distillation": False, "alpha": 0.5}, True),
        ({"teacher_regularization": "trust-region"}, False),
        ({"teacher_update_rate": 0.05}, False),
    ):
        actor, teacher, optimizer = build(packaged_family("update"), golden)
        before = copy.deepcopy(actor.state_dict())
        run = Actor(
            actor, optimizer, settings_of(golden, **changes), teacher if own_teacher else None
        )
        kinds.append(raised(lambda run=run: run.update_policy(dict(batch), 1.0)))
        moved = any(not torch.equal(before[n], t) for n, t in actor.state_dict().items())
    after = "after the student has moved" if moved else "before anything moved"
    return Trap(
        "settings pass the check and fail at the first loss",
        f"sampled tokens with alpha 0.5: {kinds[0]}; trust region without a teacher: {kinds[1]}; "
        f"an average without a teacher: {kinds[2]}, {after}",
        "P-U001",
    )


def empty_batch() -> Trap:
    """A batch in which nothing counts is stepped all the same."""
    golden = update_case("P-U025")
    before = build_model(packaged_family("update"), "A").state_dict()
    after = recorded_trace(golden, golden.tensors()).named("optimizer")
    gone = max(float((after[n] - before[n]).abs().max()) for n in after)
    return Trap(
        "a batch without any teacher signal is stepped all the same",
        f"loss 0, gradient 0, and AdamW's weight decay moves weights by up to {gone:.1e}",
        "P-U025",
    )


def holes_in_packed_rows() -> Trap:
    """The default path loses the teacher behind a tool's answer."""
    return Trap(
        "packed rows (the default): behind a hole in the mask the teacher is certain of all tokens",
        f"loss {logged('P-U045'):.3f} instead of {logged('P-U039'):.3f}",
        "P-U045, P-U039",
    )


def logged_entropy() -> Trap:
    """The bonus is subtracted in place from what is logged."""
    trace = recorded_trace(update_case("P-U040"), update_case("P-U040").tensors())
    own = [v.item() for place, v in trace.items() if place.name == "aggregate"]
    return Trap(
        "an entropy bonus changes the logged loss of the distillation, in place",
        f"`actor/pg_loss` {logged('P-U040'):.3f}, the loss is {sum(own) / len(own):.3f}",
        "P-U040",
    )


def idle_cap() -> Trap:
    """On-policy the old log-probs are the present ones, and the ratio is 1."""
    golden, trained = update_case("P-U001"), []
    for is_clip in (None, 2.0):
        actor, teacher, optimizer = build(packaged_family("update"), golden)
        settings = settings_of(golden, is_clip=is_clip)
        given = batches(golden, golden.tensors())
        run_reference_updates(actor, teacher, optimizer, settings, 1.0, given, hooks=TraceHooks())
        trained.append(actor.state_dict())
    alike = all(torch.equal(trained[0][name], tensor) for name, tensor in trained[1].items())
    return Trap(
        "`is_clip` acts in no run with one mini-batch and one epoch, the shipped setting",
        "weights after an update with `is_clip=2` and without: "
        f"{'the same bits' if alike else 'other bits'}",
        "P-U001",
    )


def not_a_number() -> Trap:
    """A micro-batch without tokens makes the logged loss NaN, and the step is taken."""
    return Trap(
        "`seq-mean-*` of a micro-batch in which nothing counts is NaN",
        f"logged loss {logged('P-U026')}, gradient norm "
        f"{update_case('P-U026').entry['results'][0]['metrics']['actor/grad_norm'][0]:.3f}, "
        "and the step is taken",
        "P-U026",
    )


def stalled_average() -> Trap:
    """A teacher in bfloat16 stays behind."""
    family = packaged_family("update")
    entry = family.manifest["direct_calls"]
    tensors = read_verified(family.folder / entry["file"], entry["sha256"], "direct calls")
    name = "ema_bfloat16_teacher.rate_0.05.calls_20.model.embed_tokens.weight"
    share = float((tensors[name] == tensors[f"{name}.before"]).float().mean())
    return Trap(
        "a teacher held in bfloat16 does not follow a slow average",
        f"after 20 updates at rate 0.05 {100 * share:.0f} % of the embedding has not moved",
        "direct calls of the updates",
    )


UPDATE_TRAPS = (
    mean_of_means,
    indivisible_micro_batch,
    idle_cap,
    not_a_number,
    empty_batch,
    holes_in_packed_rows,
    logged_entropy,
    lora_factors,
    unsaved_teacher,
    stalled_average,
    trust_region_mode,
    failing_settings,
)
