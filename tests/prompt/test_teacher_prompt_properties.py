"""Properties of the teacher prompt on random batches, and both implementations on the same ones."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sdpo.fixtures import PACKAGED
from sdpo.prompt import demonstrations, teacher_prompt
from sdpo.prompt.teacher_batch import Attempts, teacher_batch
from sdpo.reference import teacher_prompt as reference
from sdpo.settings.stage_settings import PromptSettings
from tests.helpers.char_tokenizer import CHOICE, SETTINGS, TEMPLATES, rewards, user

REAL_TOKENIZER = AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")


def choose(scores: torch.Tensor, uids: Any, **changes: Any) -> list[int | None]:
    texts = [f"t{row}" for row in range(len(scores))]
    found = demonstrations.demonstration(texts, scores, uids, **{**CHOICE, **changes})
    assert all(x is None or x.text == f"t{x.row}" for x in found)
    return [x and x.row for x in found]


TEXT = st.text(st.sampled_from("ab {}<é"), max_size=6)
ROW = st.tuples(
    st.sampled_from("uvw"),
    st.sampled_from([0.0, 0.5, 1.0, float("nan")]),
    TEXT | st.just("<think>a</think> b"),
    st.none() | TEXT | st.just(" \n"),
)
ROWS = st.lists(ROW, min_size=1, max_size=6)
BATCHES = settings(max_examples=50, deadline=None, derandomize=True)


@BATCHES
@given(ROWS, st.booleans(), st.booleans())
def test_invariants_of_a_batch(rows: Any, only_without: bool, own: bool):
    uids, scores, texts, raw = map(list, zip(*rows, strict=True))
    feedbacks = demonstrations.feedback(raw, len(rows), include_environment_feedback=True)
    choice = {**CHOICE, "dont_reprompt_on_self_success": not own}
    shown = demonstrations.demonstration(texts, rewards(*scores), uids, **choice)
    switch: dict[str, Any] = {"environment_feedback_only_without_solution": only_without}
    mask = teacher_prompt.distillation_mask(shown, feedbacks, **switch)
    questions = [user(f"q{row}") for row in range(len(rows))]
    options: dict[str, Any] = {**switch, **TEMPLATES}
    built = teacher_prompt.teacher_prompt(questions, shown, feedbacks, **options)
    for row, peer in enumerate(shown):
        if peer is not None:
            assert uids[peer.row] == uids[row]
            assert scores[peer.row] >= 0.5
            assert own or peer.row != row
        unchanged = built[row] == questions[row]
        assert unchanged == (mask[row] == 0)


@BATCHES
@given(ROWS, st.randoms(use_true_random=False))
def test_permuting_rows_keeps_who_has_a_demonstration(rows: Any, random: Any):
    """Order decides which success is shown, never whether one is; one success leaves no choice."""
    uids, scores, _, _ = map(list, zip(*rows, strict=True))
    order = list(range(len(rows)))
    random.shuffle(order)
    before = choose(rewards(*scores), uids)
    after = choose(rewards(*(scores[i] for i in order)), [uids[i] for i in order])
    for place, row in enumerate(order):
        peer, original = after[place], before[row]
        assert (peer is None) == (original is None)
        rivals = [i for i in order if uids[i] == uids[row] and scores[i] >= 0.5 and i != row]
        if peer is not None and len(rivals) == 1:
            assert order[peer] == original


def encode(texts: list[str]) -> torch.Tensor:
    rows = [REAL_TOKENIZER(text)["input_ids"] + [420] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [421] * (width - len(row)) for row in rows])


@pytest.mark.filterwarnings("ignore::sdpo.prompt.demonstrations.RepromptWarning")
@BATCHES
@given(
    ROWS,
    st.fixed_dictionaries(
        {name: st.booleans() for name, value in SETTINGS.items() if isinstance(value, bool)}
    ),
    st.integers(1, 60),
    st.sampled_from(["left", "right"]),
    st.data(),
)
def test_random_batches_against_the_reference(
    rows: Any, switches: dict[str, bool], limit: int, side: str, data: Any
):
    uids, scores, texts, raw = map(list, zip(*rows, strict=True))
    responses = encode(texts)
    bits = st.lists(st.integers(0, 1), min_size=responses.numel(), max_size=responses.numel())
    response_mask = torch.tensor(data.draw(bits)).view_as(responses)
    token_rewards = torch.zeros(responses.shape)
    token_rewards[:, -1] = torch.tensor(scores)
    raw_prompt = [[{"role": "system", "content": "s"}, *user(text)] for text in texts]
    options = {**SETTINGS, **switches, "max_reprompt_len": limit, "reprompt_truncation": side}
    sides = REAL_TOKENIZER.padding_side, REAL_TOKENIZER.truncation_side
    attempts = Attempts(raw_prompt, responses, response_mask, token_rewards, uids, raw)
    actual = teacher_batch(attempts, REAL_TOKENIZER, PromptSettings(**options))
    assert (REAL_TOKENIZER.padding_side, REAL_TOKENIZER.truncation_side) == sides
    reference.set_tokenizer_sides(REAL_TOKENIZER, options)
    expected = reference.build_teacher_batch(
        responses,
        response_mask,
        token_rewards,
        raw_prompt,
        uids,
        {"feedback": raw},
        REAL_TOKENIZER,
        loss_mode="sdpo",
        self_distillation=options,
    )
    assert expected is not None
    for name, tensor in actual.tokens._asdict().items():
        assert torch.equal(tensor, expected.tensors[f"teacher_{name}"]), name
    for stage in ("response_texts", "feedback", "demonstration", "teacher_prompt"):
        assert actual.trace[stage] == expected.trace[stage], stage
    assert torch.equal(actual.distillation_mask, expected.tensors["self_distillation_mask"])
    assert actual.metrics == expected.metrics
