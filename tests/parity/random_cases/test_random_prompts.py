"""Random teacher prompts: what is varied, and that a planted departure of the fork shows."""

import pytest

from sdpo.fixtures import packaged_family
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.live_fork.checkout import find_checkout
from sdpo.parity.random_cases.compare_sides import FamilyComparison
from sdpo.parity.random_cases.random_prompts import RandomPrompt, random_prompt

pytest.importorskip("transformers", reason="the recorded tokenizer is loaded by it")


@pytest.fixture(scope="module")
def sample() -> list[RandomPrompt]:
    tokenizer = load_tokenizer(packaged_family("reprompt"))
    return [random_prompt(seed, tokenizer) for seed in range(200)]


def compared(cases) -> FamilyComparison:
    comparison = FamilyComparison("reprompt")
    for seed, case in enumerate(cases):
        comparison.add(seed, case)
    return comparison


@pytest.mark.parametrize(
    ("feature", "least"),
    [
        (lambda case: "<think>" in str(case.transcribed().get("response_texts")), 30),
        (lambda case: any(case.transcribed().get("demonstration", [])), 60),
        (lambda case: any(case.transcribed().get("feedback", [])), 30),
    ],
)
def test_prompts_have_demonstrations_feedback_and_thinking(sample, feature, least):
    built = []
    for case in sample:
        try:
            built.append(feature(case))
        except (ValueError, LookupError, TypeError):
            continue  # wrong on purpose
    assert sum(built) >= least


def test_the_stand_in_gives_the_values_of_the_transcription(stand_in, sample):
    stand_in()
    find_checkout()
    # the stand-in does not tell which row a demonstration is of
    comparison = compared(sample[:60])
    assert {name for found in comparison.differences for name in found.names} <= {"demonstration"}
    assert comparison.refused.total() > 5


def test_a_planted_departure_shows_in_the_messages(stand_in, sample):
    stand_in(**{"trainer/ppo/ray_trainer": ("reference.build_messages(", "changed(")})
    find_checkout()
    first = compared(sample[:20]).differences[0].names
    assert first[0].startswith("NameError of the fork")
