"""The 47 recorded actor updates, the direct calls and the errors, on both sides.

Budget kind: bitwise for the transcription where this machine's kernels give the recorded bits, by
the measurement of `update_canaries.py`; for ours, at the tokens that count, and on other machines
the bounds in `update_cases.py`.

Ours leaves out, by design: entropy bonus (P-U040), KL to a reference policy (P-U042), packed rows
with holes (P-U045, P-U046: a quirk of the reference), autocast (P-U047).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.fixtures.loader import read_verified
from sdpo.fixtures.models import build_model
from sdpo.parity.cases.stage_trace import Moment, Place
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded import updates as library
from sdpo.parity.recorded.golden_updates import recorded_trace
from sdpo.parity.recorded.updates import own_config
from sdpo.reference import forward
from sdpo.reference.forward import MODEL_INPUTS, forward_micro_batch, logit_outputs
from sdpo.reference.update import (
    Actor,
    TrustRegionTeacher,
    UpdateSettings,
    ema_update,
    rollout_metrics,
)
from sdpo.update import ema_teacher as our_teacher
from sdpo.update.actor_update import actor_update
from tests.helpers.recorded import update_cases as cases
from tests.helpers.recorded.update_canaries import (
    plain_average,
    plain_outputs,
    rows_alone_have_the_same_bits,
    update_has_recorded_bits,
)

ALL = [case.id for case in cases.family()]
TENSORS = 3932
NOT_RECORDED_BY_OURS = ("old_log_probs_used", "entropy")
DIFFERENT = {"P-U026": (*NOT_RECORDED_BY_OURS, "mb1.loss")}
OURS_BIT_EQUAL = ["P-U024", "P-U025", "P-U031", "P-U032", "P-U034", "P-U035"]
AUTOCAST = "P-U047"
WITH_ENTROPY = "P-U040"
SIDES = ("student", "teacher")


@pytest.mark.parametrize("case_id", ALL)
def test_the_transcription_reproduces_the_recorded_update(case_id):
    exact, run = update_has_recorded_bits(case_id), cases.run_reference(case_id)
    expected = [result["metrics"].keys() for result in cases.case(case_id).entry["results"]]
    assert [metrics.keys() for metrics in run.metrics] == expected
    if case_id == AUTOCAST and not exact:
        assert {comparison.status for comparison in by_budget(case_id, run)} <= {
            Status.MATCH,
            Status.PASS,
        }
        return
    assert cases.tensor_differences(case_id, run, exact=exact) == []
    assert cases.metric_differences(case_id, run, exact=exact) == []


def by_budget(case_id: str, run: cases.Run) -> list[Comparison]:
    """A run judged as an audit judges it: by the recording's own distance from float64.

    The float64 run chooses other entries of the vocabulary; their log-probs are as far from it as
    those of the sampled tokens.
    """
    golden, tensors = cases.case(case_id), cases.recorded(case_id)
    truth = library.run_reference(cases.family(), golden, tensors, torch.float64)
    recorded = recorded_trace(golden, tensors)
    errors = library.float32_errors(recorded, truth)
    errors |= {f"support.{side}": errors[f"log_probs.{side}"] for side in SIDES}
    return library.compare_update(golden, recorded, truth, run.trace, errors)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("aggregate", "aggregate"),
        ("importance", "importance"),
        ("support.teacher", "support"),
        ("lm_head.weight", "teacher_update"),
    ],
)
def test_autocast_is_judged_by_a_budget_that_finds_a_scaled_value(name, stage):
    run = cases.run_reference(AUTOCAST)
    place = Place(*Moment(), stage, name)
    run.trace[place] = run.trace[place] * 1.5
    found = [
        c.stage for c in by_budget(AUTOCAST, run) if c.status not in (Status.MATCH, Status.PASS)
    ]
    assert found == [stage]


def test_every_recorded_tensor_is_compared():
    assert len(ALL) == 47
    assert sum(len(cases.outputs(case_id)) for case_id in ALL) == TENSORS


@pytest.mark.parametrize("case_id", ALL)
def test_ours_agrees_with_the_recorded_update(case_id):
    run = cases.run_ours(case_id)
    if case_id == AUTOCAST:
        statuses = {comparison.status for comparison in by_budget(case_id, run)}
        assert statuses <= {Status.MATCH, Status.PASS, Status.NOT_COVERED}
        return
    exact = case_id in OURS_BIT_EQUAL and ours_could_have_recorded_bits(case_id)
    skip = DIFFERENT.get(case_id, NOT_RECORDED_BY_OURS)
    assert cases.tensor_differences(case_id, run, exact=exact, counted_only=True, skip=skip) == []
    # an entropy bonus changes the logged loss of the reference, in place
    losses = [] if case_id in ("P-U026", WITH_ENTROPY) else ["actor/pg_loss"]
    names = ["actor/grad_norm", *losses]
    assert cases.metric_differences(case_id, run, exact=exact, names=names) == []


def ours_could_have_recorded_bits(case_id: str) -> bool:
    """Whether the transcription has them, and cutting a product's rows out changes none here."""
    differences = cases.tensor_differences(case_id, cases.run_reference(case_id), exact=True)
    return not differences and rows_alone_have_the_same_bits(case_id)


def test_ours_gives_an_empty_micro_batch_the_loss_zero():
    """Intended difference at `aggregate`: the reference logs NaN and steps all the same."""
    run = cases.run_ours("P-U026")
    losses = torch.stack([cases.recorded("P-U026")[f"u0.mb{i}.loss"] for i in range(4)])
    assert losses.isnan().tolist() == [False, True, False, False]
    assert run.tensors["u0.mb1.loss"] == 0
    assert run.metrics[0]["actor/pg_loss"] == pytest.approx(losses.nansum().item() / 4, rel=3e-6)


@pytest.mark.parametrize(("padded", "packed"), [("P-U039", "P-U045")])
def test_ours_has_the_hole_quirk_where_rows_count_as_packed_and_nowhere_else(padded, packed):
    """Packed rows give the teacher's log-prob 0 after a hole."""
    ids = [cases.recorded(case_id)["u0.in.input_ids"] for case_id in (padded, packed)]
    assert torch.equal(*ids)
    mask = cases.recorded(packed)["u0.mb0.loss_mask"] != 0
    for case_id, expected in ((padded, []), (packed, [[0, 4], [1, 1]])):
        zeros = (cases.run_ours(case_id).tensors["u0.mb0.teacher_log_probs"] == 0) & mask
        assert zeros.nonzero().tolist() == expected
    ours, skip = cases.run_ours(padded), NOT_RECORDED_BY_OURS
    differences = cases.tensor_differences(packed, ours, exact=False, counted_only=True, skip=skip)
    assert cases.first_stage(packed, differences) == "log_probs"


@pytest.fixture(scope="module")
def direct() -> dict[str, Tensor]:
    entry = cases.family().manifest["direct_calls"]
    return read_verified(cases.family().folder / entry["file"], entry["sha256"], "direct calls")


@pytest.fixture(scope="module")
def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    return build_model(cases.family(), "A"), build_model(cases.family(), "A", "teacher")


def expect(
    actual: Tensor, expected: Tensor, canary: Tensor, bound: tuple[float, float] = cases.PER_TOKEN
) -> None:
    """The recorded bits, if the canary, the same value in plain torch, has them here."""
    if cases.same(canary, expected):
        assert cases.same(actual, expected)
    assert cases.within(actual, expected, bound)


@torch.no_grad()
def plain_logits(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("mix", [0.0, 0.05, 0.5, 1.0])
def test_trust_region_mixes(direct, models, mix):
    student, reference = models
    inputs = {name: direct[f"in.{name}"] for name in MODEL_INPUTS}
    teacher = TrustRegionTeacher(reference, student, mix)
    expected = direct[f"trust_region.mix_{mix}.logits"]
    own, live = plain_logits(reference, inputs), plain_logits(student, inputs)
    with torch.no_grad():
        expect(teacher(**inputs, use_cache=False).logits, expected, torch.lerp(own, live, mix))
    sides = direct["trust_region.reference_logits"], direct["trust_region.student_logits"]
    expect(our_teacher.trust_region_logits(*sides, mix), expected, torch.lerp(*sides, mix))


@pytest.mark.parametrize(
    ("label", "temperature", "options", "renamed"),
    [
        ("topk6", 1.0, {"topk": 6}, {"topk_logps": "topk_log_probs"}),
        ("topk6", 0.7, {"topk": 6}, {"topk_logps": "topk_log_probs"}),
        ("all", 0.7, {"all_log_probs": True}, {"all_logps": "all_log_probs"}),
        ("entropy", 1.3, {"entropy": True}, {"entropys": "entropy"}),
    ],
)
def test_forward_options(direct, models, label, temperature, options, renamed):
    batch = {n.removeprefix("in."): t for n, t in direct.items() if n.startswith("in.")}
    prefix = f"forward.{label}.temperature_{temperature}."
    with torch.no_grad():
        student = forward_micro_batch(models[0], batch, temperature, **options)
        options = options | {n: t for n, t in student.items() if n == "topk_indices"}
        teacher = forward_micro_batch(models[1], batch, temperature, **options)
    outputs = student | {f"teacher_{name}": value for name, value in teacher.items()}
    names = [n.removeprefix(prefix) for n in direct if n.startswith(prefix)]
    assert names
    plain = plain_outputs(models, batch, temperature)
    for name in names:
        key = name.replace("logps", "log_probs") if name not in renamed else renamed[name]
        expect(outputs[key], direct[prefix + name], plain[name])


@pytest.mark.parametrize(("rate", "calls"), [(0.05, 5), (0.3, 2), (1.0, 1), (0.0, 1)])
@pytest.mark.parametrize("side", ["reference", "ours"])
def test_repeated_averages(direct, models, side, rate, calls):
    prefix = f"ema.rate_{rate}.calls_{calls}."
    weights = averaged(models[0], torch.float32, rate, calls, side)
    names = [name for name in direct if name.startswith(prefix)]
    assert len(names) == 3
    bound, start = (0.0, calls * cases.TEACHER["SGD"][1]), [m.state_dict() for m in models[::-1]]
    for name in names:
        weight = name.removeprefix(prefix)
        canary = plain_average(start[0][weight], start[1][weight], rate, calls)
        expect(weights[weight], direct[name], canary, bound)


@pytest.mark.parametrize("side", ["reference", "ours"])
def test_a_bfloat16_teacher_stalls_as_recorded(direct, models, side):
    name = "model.embed_tokens.weight"
    recorded = direct[f"ema_bfloat16_teacher.rate_0.05.calls_20.{name}"]
    before = direct[f"ema_bfloat16_teacher.rate_0.05.calls_20.{name}.before"]
    canary = plain_average(before, models[0].state_dict()[name], 0.05, 20)
    expect(averaged(models[0], torch.bfloat16, 0.05, 20, side)[name], recorded, canary)
    assert (recorded == before).float().mean().item() == pytest.approx(0.43, abs=0.005)
    student = models[0].state_dict()[name]
    gaps = [(side.float() - student).square().mean().sqrt() for side in (recorded, before)]
    assert (gaps[0] / gaps[1]).item() == pytest.approx(0.586, abs=0.001)
    assert our_teacher.ema_stalls(torch.bfloat16, 0.05)
    assert not our_teacher.ema_stalls(torch.float32, 0.05)


def averaged(
    student: torch.nn.Module, dtype: torch.dtype, rate: float, calls: int, side: str
) -> dict[str, Tensor]:
    teacher = build_model(cases.family(), "A", "teacher").to(dtype)
    for _ in range(calls):
        if side == "reference":
            ema_update(teacher, student, rate)
        else:
            our_teacher.teacher_update(
                teacher.parameters(), student.parameters(), teacher_update_rate=rate
            )
    return teacher.state_dict()


SIZES = {"ppo_mini_batch_size": 4, "ppo_micro_batch_size_per_gpu": 4}
TOPK = {"distillation_topk": 8, "alpha": 0.5}
ERRORS: dict[str, dict[str, Any]] = {
    "micro-batch size larger than mini-batch size": {"ppo_micro_batch_size_per_gpu": 5},
    "EMA rate above 0 without a teacher module": {"teacher": None},
    "trust region without a teacher module": {
        "teacher": None,
        "teacher_regularization": "trust-region",
    },
    "EMA rate above 0 with the teacher being the actor object itself": {"teacher": "actor"},
    "teacher inputs missing from the batch": {"without": "teacher_input_ids"},
    "fused kernels enabled with top-k distillation": {"use_fused_kernels": True},
    "sampled-token mode with alpha 0.5": {"full_logit_distillation": False},
}


def error_set_up(condition: str) -> tuple[Any, ...]:
    """Actor, teacher, optimizer, batch and settings in which the condition holds."""
    changes = dict(ERRORS[condition])
    golden = cases.case("P-U001")
    actor, own_teacher, optimizer = cases.build(golden)
    chosen = changes.pop("teacher", own_teacher)
    teacher = actor if chosen == "actor" else chosen
    batch, _ = next(cases.updates(golden))
    batch.pop(changes.pop("without", ""), None)
    if zero := changes.pop("zero", ""):
        batch[zero] = torch.zeros_like(batch[zero])
    if changes.pop("rollout_log_probs", False):
        batch["rollout_log_probs"] = batch["old_log_probs"].clone()
    return actor, teacher, optimizer, batch, SIZES | TOPK | changes


@pytest.mark.parametrize("entry", cases.family().manifest["error_cases"], ids=lambda e: e["raises"])
def test_the_transcription_raises_as_recorded(entry):
    actor, teacher, optimizer, batch, settings = error_set_up(entry["condition"])
    before = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
    updater = Actor(actor, optimizer, UpdateSettings(**settings), teacher)
    with pytest.raises(Exception) as caught:  # noqa: PT011, the class is compared below
        updater.update_policy(batch, 1.0)
    assert caught.type.__name__ == entry["raises"]
    changed = any(not torch.equal(before[n], t) for n, t in actor.state_dict().items())
    assert changed == entry["actor_weights_changed_before_the_error"]


FURTHER: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "trust region with the teacher being the actor object itself": (
        {"teacher": "actor", "teacher_regularization": "trust-region"},
        ValueError,
        "of its own",
    ),
    "trust region with fused kernels and sampled tokens": (
        {
            "teacher_regularization": "trust-region",
            "use_fused_kernels": True,
            "full_logit_distillation": False,
            "alpha": 1.0,
        },
        ValueError,
        "mixes logits",
    ),
    "micro-batch too large, and the teacher the actor itself": (
        {
            "teacher": "actor",
            "teacher_regularization": "trust-region",
            "ppo_micro_batch_size_per_gpu": 5,
        },
        ZeroDivisionError,
        "zero",
    ),
    "model inputs missing from the batch": ({"without": "input_ids"}, KeyError, "input_ids"),
    "KL loss without the reference policy's log-probs": (
        {"use_kl_loss": True, "without": "ref_log_prob"},
        KeyError,
        "ref_log_prob",
    ),
    "rollout log-probs and a micro-batch without response tokens": (
        {"zero": "response_mask", "rollout_log_probs": True},
        AssertionError,
        "unmasked token",
    ),
    "no limit of the gradient": ({"grad_clip": None}, AssertionError, "grad_clip"),
}
"""Not recorded: the classes that the fork raised (`test_against_live_fork.py` compares them)."""
ERRORS |= {condition: changes for condition, (changes, _, _) in FURTHER.items()}


@pytest.mark.parametrize("condition", FURTHER)
def test_the_transcription_raises_as_the_fork_does(condition):
    _, kind, text = FURTHER[condition]
    actor, teacher, optimizer, batch, settings = error_set_up(condition)
    before = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
    updater = Actor(actor, optimizer, UpdateSettings(**settings), teacher)
    with pytest.raises(kind, match=text):
        updater.update_policy(batch, 1.0)
    assert all(torch.equal(before[name], t) for name, t in actor.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_agg_mode", "mean"), ("is_clip", 0.0), ("compute_dtype", "float16"), ("alpha", 1.1)],
)
def test_settings_that_the_reference_rejects(name, value):
    with pytest.raises(ValueError, match=name):
        UpdateSettings(**SIZES, **{name: value})


def test_a_packed_batch_adds_its_gradients_up_in_the_order_of_the_fork(models, monkeypatch):
    """Rounding alone: three random updates of a hundred, all with an entropy bonus, show it."""
    orders = []

    def noted(*args, order, **options):
        orders.append(order)
        return logit_outputs(*args, order=order, **options)

    monkeypatch.setattr(forward, "logit_outputs", noted)
    batch, _ = next(cases.updates(cases.case("P-U001")))
    options: dict[str, Any] = {"topk": 3, "entropy": True}
    outputs = forward_micro_batch(models[0], batch, 1.0, remove_padding=True, **options)
    assert orders == [("all_log_probs", "log_probs", "entropy", "topk")]
    assert list(outputs) == ["log_probs", "entropy", "topk_log_probs", "topk_indices"]
    padded = forward_micro_batch(models[0], batch, 1.0, outputs=logit_outputs, **options)
    assert list(padded) == ["log_probs", "topk_log_probs", "topk_indices", "entropy"]


def test_the_metrics_of_the_rollout_leave_out_what_is_masked():
    """As the fork's masked sums do, whatever padding holds."""
    log_probs, sampler = -torch.rand(2, 3), -torch.rand(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = rollout_metrics(log_probs, sampler, mask)
    padded = torch.where(mask.bool(), sampler, float("nan"))
    assert rollout_metrics(log_probs, padded, mask) == expected


def test_a_packed_batch_without_any_token_is_all_zero(models):
    """The fork sends one token of id 0 through the model, and drops what comes back."""
    batch, _ = next(cases.updates(cases.case("P-U001")))
    empty = batch | {"attention_mask": torch.zeros_like(batch["attention_mask"])}
    outputs = forward_micro_batch(models[0], empty, 1.0, remove_padding=True, topk=3)
    shape = batch["responses"].shape
    assert outputs["log_probs"].shape == shape
    assert outputs["topk_log_probs"].shape == (*shape, 3)
    assert not any(value.any() for value in outputs.values())


@pytest.mark.parametrize(
    ("condition", "error"),
    [
        ("trust region with the teacher being the actor object itself", ValueError),
        ("micro-batch size larger than mini-batch size", ValueError),
        ("EMA rate above 0 without a teacher module", ValueError),
        ("trust region without a teacher module", ValueError),
        ("EMA rate above 0 with the teacher being the actor object itself", ValueError),
        ("teacher inputs missing from the batch", ValueError),
    ],
)
def test_ours_raises_before_anything_changes(condition, error):
    """Intended difference: the reference finds two of these only after the optimizer stepped."""
    actor, teacher, optimizer, batch, settings = error_set_up(condition)
    before = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
    config = own_config(cases.case("P-U001"))
    regularization = settings.get("teacher_regularization", "ema")
    with pytest.raises(error):
        actor_update(
            actor,
            teacher,
            optimizer,
            batch,
            replace(config, teacher_regularization=regularization),
            mini_batch_size=settings["ppo_mini_batch_size"],
            micro_batch_size=settings["ppo_micro_batch_size_per_gpu"],
        )
    assert all(torch.equal(before[name], t) for name, t in actor.state_dict().items())
    assert all(parameter.grad is None for parameter in actor.parameters())
