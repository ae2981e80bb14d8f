"""Trainer adapters: what they record is what happened, and what they cannot see they refuse."""

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.adapters.sdpo_rl import SdpoRl
from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer, OwnTrainerFactors
from sdpo.parity.trainers.adapters.trl import TRL
from sdpo.parity.trainers.recording.hooks import Watch
from sdpo.parity.trainers.recording.quiet_packages import quiet
from sdpo.parity.trainers.recording.scripted_world import Script
from sdpo.parity.trainers.recording.weights import effective_weights
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.tiny_model import completion_ids, tiny_model, tiny_tokenizer
from sdpo.parity.trainers.scenarios.training_record import TrainerRun

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SCENARIO = {scenario.id: scenario for scenario in SCENARIOS}
PLAIN, ACCUMULATED, OFF_POLICY, CONSECUTIVE = (SCENARIO[n] for n in ("T01", "T03", "T05", "T07"))
FEEDBACK, FULL, LORA, BFLOAT16, MIXED = (SCENARIO[n] for n in ("T08", "T15", "T17", "T18", "T25"))

PEER = pytest.mark.skipif(
    importlib.util.find_spec("sdpo_rl") is None, reason="sdpo-rl is not installed"
)
ADAPTERS = [
    pytest.param(OwnTrainer, id="sdpo"),
    pytest.param(TRL, id="trl"),
    pytest.param(SdpoRl, id="sdpo-rl", marks=PEER),
]


def load(model: Any, weights: dict[str, torch.Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def response_logits(model: Any, inputs: dict[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
    names = ("input_ids", "attention_mask", "position_ids")
    given = {n: inputs[prefix + n] for n in names if prefix + n in inputs}
    width = inputs["responses"].shape[1]
    return model(**given, use_cache=False).logits[:, -width - 1 : -1]


def check_consistent(run: TrainerRun, scenario: Scenario, folder: Path) -> None:
    """Each recorded value follows from the recorded values before it, through the model itself."""
    model, weights = tiny_model(scenario, folder), run.initial
    for step in (step for update in run.updates for step in update.steps):
        load(model, weights)
        model.zero_grad()
        for micro in step.micro_batches:
            logits = response_logits(model, micro.inputs)
            torch.testing.assert_close(logits, micro.logits["student"], rtol=0, atol=1e-5)
            logits.backward(micro.logits["gradient"])
        found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert found.keys() == step.gradient.keys() == step.parameters.keys()
        for name, gradient in step.gradient.items():
            assert found[name] is not None
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        norm = torch.cat([g.flatten() for g in step.gradient.values()]).norm().item()
        assert step.grad_norm == pytest.approx(norm, rel=1e-5)
        weights = step.parameters


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(ACCUMULATED, id=ACCUMULATED.id, marks=pytest.mark.slow),
        pytest.param(OFF_POLICY, id=OFF_POLICY.id),
    ],
)
def test_gradients_follow_from_the_recorded_gradients_at_the_logits(kind, scenario, tmp_path):
    run = kind().run(scenario, tmp_path)
    check_consistent(run, scenario, tmp_path)
    shape = [[len(step.micro_batches) for step in update.steps] for update in run.updates]
    assert shape == ([[4]] if scenario is ACCUMULATED else [[2, 2]])
    rows = [row for step in run.updates[0].steps for m in step.micro_batches for row in m.rows]
    assert sorted(rows) == list(range(8))
    assert not same(run.initial, run.updates[-1].steps[-1].parameters)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_claimed_stages_are_shown(kind, tmp_path):
    # off-policy, where all of them occur, with the same feedback for a whole group
    scenario = replace(
        SCENARIO["T21"], num_iterations=2, id="all", self_distillation=PLAIN.self_distillation
    )
    adapter = kind()
    run = adapter.run(scenario, tmp_path)
    (update,) = run.updates
    micro = update.steps[0].micro_batches[0]
    values = {name.split(".")[0] for name in micro.values}
    shown = {"config"} if run.settings else set()
    shown |= values | update.prompt.keys() | ({"gradient"} if "gradient" in micro.logits else set())
    shown |= {"accumulate"} if update.steps[0].gradient else set()
    shown |= {"optimizer"} if update.steps[0].parameters else set()
    shown |= {"teacher_update"} if update.teacher else set()
    assert shown >= set(kind.stages)
    assert all(len(rows) == 8 for rows in update.prompt.values())
    assert all(row is not None for row in update.prompt["teacher_tokens"])
    check_places(adapter)


def check_places(adapter: Any) -> None:
    """Reports can point at the trainer and at the code of its stages."""
    assert adapter.location.file.endswith("trainer.py")
    assert adapter.locations.keys() <= set(adapter.stages)
    assert {"teacher_prompt", "divergence", "accumulate"} <= adapter.locations.keys()
    for place in adapter.locations.values():
        line = Path(place.file).read_text(encoding="utf-8").splitlines()[place.line - 1]
        assert line.lstrip().startswith(("def ", "class ", "@")), place


@pytest.mark.parametrize("kind", ADAPTERS)
def test_effective_weights_of_a_lora_teacher(kind, tmp_path):
    run = kind().run(replace(LORA, generations=LORA.generations[:2]), tmp_path)
    assert all(".lora_" in name for name in run.initial)
    plain = dict(tiny_model(PLAIN, tmp_path / "plain").named_parameters())
    assert len(run.initial_teacher) == 4
    for name, initial in run.initial_teacher.items():
        torch.testing.assert_close(initial, plain[name].detach())
    last = run.updates[-1].teacher
    assert all(not torch.equal(last[n], w) for n, w in run.initial_teacher.items())


def test_our_lora_teacher_averages_effects_or_factors(tmp_path):
    # in the first update B leaves zero while A stands still, so that both averages are the same
    scenario = replace(LORA, generations=LORA.generations[:2])
    gap = {kind: 0.0 for kind in (OwnTrainer, OwnTrainerFactors)}
    for kind in gap:
        first, second = kind().run(scenario, tmp_path / kind.name).updates
        student = with_weights(scenario, tmp_path, second.steps[0].parameters)
        for name, before in first.teacher.items():
            distance = (second.teacher[name] - (0.95 * before + 0.05 * student[name])).abs()
            assert distance.isfinite().all()
            gap[kind] = max(gap[kind], distance.max().item())
    assert gap[OwnTrainer] < 1e-6 < 1e-5 < gap[OwnTrainerFactors]


def with_weights(scenario: Scenario, folder: Path, weights: Any) -> dict[str, torch.Tensor]:
    model = tiny_model(scenario, folder)
    load(model, weights)
    return effective_weights(model)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_autocast_reaches_the_logits(kind, tmp_path):
    run = kind().run(BFLOAT16, tmp_path)
    logits = run.updates[0].steps[0].micro_batches[0].logits["student"].float()
    assert torch.equal(logits, logits.bfloat16().float())


def test_the_teacher_of_ours_answers_with_the_recorded_weights(tmp_path):
    run = OwnTrainer().run(CONSECUTIVE, tmp_path)
    model, teacher = tiny_model(CONSECUTIVE, tmp_path), run.initial_teacher
    for update in run.updates:
        load(model, teacher)
        micro = update.steps[0].micro_batches[0]
        logits = response_logits(model, micro.inputs, "teacher_")
        torch.testing.assert_close(logits, micro.logits["teacher"], rtol=0, atol=1e-5)
        teacher = update.teacher


@PEER
def test_the_teacher_of_sdpo_rl_answers_with_the_weights_of_the_student(tmp_path):
    # deepcopy keeps TRL's patched `forward`, which holds the student
    run = SdpoRl().run(CONSECUTIVE, tmp_path)
    model, first = tiny_model(CONSECUTIVE, tmp_path), run.updates[0]
    micro = run.updates[1].steps[0].micro_batches[0]
    distance = {}
    for name, weights in (("teacher", first.teacher), ("student", first.steps[-1].parameters)):
        load(model, weights)
        logits = response_logits(model, micro.inputs, "teacher_")
        distance[name] = (logits - micro.logits["teacher"]).abs().max().item()
    assert distance["student"] < 1e-5 < 1e-2 < distance["teacher"]


@pytest.mark.parametrize(
    ("kind", "scenario", "missing"),
    [
        pytest.param(TRL, FEEDBACK, "privileged_context", id="trl-feedback"),
        pytest.param(TRL, MIXED, "trust-region", id="trl-trust-region"),
        pytest.param(SdpoRl, FULL, "distillation_topk=None", id="sdpo-rl-full", marks=PEER),
        pytest.param(SdpoRl, MIXED, "trust-region", id="sdpo-rl-trust-region", marks=PEER),
    ],
)
def test_what_a_trainer_cannot_express_is_not_covered(kind, scenario, missing, tmp_path):
    with pytest.raises(NotCoveredError, match=missing):
        kind().run(scenario, tmp_path)


# --- hooks that fail must not look like coverage --------------------------------------------


def test_a_hook_that_does_not_fire_is_an_error(tmp_path):
    class Bypassed(TRL):
        def build(self, parts):
            trainer, settings = super().build(parts)
            trainer._clip_grad_norm = lambda model: torch.nn.utils.clip_grad_norm_(
                model.parameters(), 1.0
            )
            return trainer, settings

    with pytest.raises(CandidateError, match=r"clip_grad_norm_ did not fire.*trl 1\.") as caught:
        Bypassed().run(PLAIN, tmp_path)
    assert caught.value.stage == "config"


def test_a_loss_that_goes_past_the_hooks_is_an_error(tmp_path):
    class Elsewhere(TRL):
        def observe(self, trainer, recorder):
            super().observe(trainer, recorder)
            import trl.experimental.sdpo.sdpo_trainer as module

            name = "compute_topk_self_distillation_loss"
            inner = getattr(module, name).__wrapped__
            recorder.watch.replace(module, name, inner)

    with pytest.raises(CandidateError, match=r"compute_topk_self\w+ did not fire"):
        Elsewhere().run(PLAIN, tmp_path)


def test_a_hooked_function_that_is_gone_is_an_error(tmp_path):
    with Watch("torch") as watch, pytest.raises(CandidateError, match=r"no such function.*torch"):
        watch.function(torch, "soft_min_max", lambda *_: None)


def test_hooks_are_taken_away(tmp_path):
    module = importlib.import_module("trl.experimental.sdpo.sdpo_trainer")
    before = dict(vars(module))
    TRL().run(PLAIN, tmp_path)
    assert dict(vars(module)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "no-such-package"}, r"not installed: pip install 'sdpo\[train\]'"),
        ({"versions": "<1"}, r"trl 1\S+ is installed, but its adapter was written for trl<1"),
    ],
)
def test_a_missing_or_other_package_is_an_error(change, message, tmp_path):
    with pytest.raises(CandidateError, match=message):
        type("Other", (TRL,), change)().run(PLAIN, tmp_path)


def test_without_transformers_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    message = r"needs 'transformers': pip install 'sdpo\[train\]'"
    with quiet(), pytest.raises(CandidateError, match=message):
        OwnTrainer().run(PLAIN, tmp_path)


def test_an_interrupt_is_the_users(tmp_path):
    class Interrupted(OwnTrainer):
        def build(self, parts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted().run(PLAIN, tmp_path)


class Failing(OwnTrainer):
    def build(self, parts):
        raise SystemExit("out of here")


class Forgetful(OwnTrainer):
    def build(self, parts):
        return super().build(replace(parts, arguments={**parts.arguments, "max_steps": 2}))


class Shuffled(OwnTrainer):
    def build(self, parts):
        return super().build(replace(parts, dataset=parts.dataset.select([1, 0])))


@pytest.mark.parametrize(
    ("kind", "scenario", "message"),
    [
        (Failing, PLAIN, "could not be built: SystemExit: out of here"),
        (Forgetful, CONSECUTIVE, r"each optimizer step.*\[\[1\], \[1\]\]; expected"),
        (Shuffled, ACCUMULATED, "not rows 0-7 of generation 0"),
    ],
    ids=["failing", "forgetful", "shuffled"],
)
def test_a_trainer_that_leaves_the_script_is_an_error(kind, scenario, message, tmp_path):
    with pytest.raises(CandidateError, match=message):
        kind().run(scenario, tmp_path)


def test_a_step_across_generations_is_not_covered(tmp_path):
    with pytest.raises(NotCoveredError, match="accumulation=2 does not divide"):
        TRL().run(replace(PLAIN, accumulation=2), tmp_path)


# --- script ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.id)
def test_every_scenario_can_be_sampled(scenario):
    tokenizer = tiny_tokenizer()
    texts = [[] for _ in scenario.generations]
    for rank in range(scenario.processes):
        script = Script(scenario, tokenizer.pad_token_id, rank)
        for number, prompts in enumerate(script.prompts):
            prompts = prompts[rank * script.rows_per_process : (rank + 1) * script.rows_per_process]
            width = max(map(len, prompts))
            ids = torch.tensor([[421] * (width - len(p)) + p for p in prompts])
            out = script.generate(ids, attention_mask=(ids != 421).long())
            texts[number] += tokenizer.batch_decode(out[:, width:])
    for found, generation in zip(texts, scenario.generations, strict=True):
        for text, rollout in zip(found, generation.rollouts, strict=True):
            answer = text.split("<|im_end|>")[0]
            assert answer == rollout.completion or (
                rollout.truncated and rollout.completion.startswith(answer)
            )


def test_a_truncated_row_is_as_long_as_the_longest():
    (generation,) = SCENARIO["T09"].generations
    rows = completion_ids(generation)
    assert len(rows[3]) == max(map(len, rows))
    assert 420 not in rows[3]
    short = replace(generation.rollouts[3], completion="short")
    with pytest.raises(ValueError, match="row 3 is truncated but has"):
        completion_ids(replace(generation, rollouts=(*generation.rollouts[:3], short)))


def test_the_example_of_an_own_trainer(tmp_path, monkeypatch):
    import audit_my_hf_trainer as example  # pyright: ignore[reportMissingImports]

    mine = example.MyAdapter().run(OFF_POLICY, tmp_path / "mine")
    ours = OwnTrainer().run(OFF_POLICY, tmp_path / "ours")
    assert mine.updates[0].steps[0].micro_batches[0].values.keys() == {"aggregate"}
    assert mine.updates[0].prompt["teacher_prompt"] == ours.updates[0].prompt["teacher_prompt"]
    assert same(mine.updates[0].steps[0].parameters, ours.updates[0].steps[0].parameters)
    assert not same(mine.updates[0].teacher, ours.updates[0].teacher)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
