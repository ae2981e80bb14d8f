"""Sentences of a report, by small made-up runs."""

import pytest
from msgspec import structs

from sdpo.parity.render.sentences import covers, headline, legend, names, searched, summary
from tests.helpers import run_documents


@pytest.mark.parametrize(
    ("stages", "phrase"),
    [
        ([], ""),
        (["tail"], "`tail`"),
        (["tail", "loss"], "`tail` and `loss`"),
        (["support", "tail", "loss"], "`support`, `tail` and `loss`"),
    ],
)
def test_stages_are_put_into_a_phrase(stages, phrase):
    assert names(stages) == phrase


def test_a_divergence_is_named_with_its_first_stage():
    run = run_documents.divergent()
    assert headline(run).startswith(f"departs from the reference, first at `{run.first_stage}`")


def test_an_inferred_first_stage_says_so():
    run = structs.replace(run_documents.divergent(), first_stage_inferred=True)
    assert headline(run).endswith(", inferred")


def test_a_pass_says_what_it_covers_and_what_not():
    sentences = covers(run_documents.passing())
    assert list(sentences) == ["What a PASS covers.", "What it does not cover."]
    assert "speed and memory" in sentences["What it does not cover."]


def test_the_legend_has_the_statuses_that_occur_and_no_other():
    run = run_documents.passing()
    present = {str(row.status) for row in run.stages}
    assert {part.split(":")[0] for part in legend(run).split("; ")} == present


def test_a_search_is_told_only_where_no_fault_explains():
    assert searched(run_documents.passing()) == ""


def test_where_nothing_was_compared_nothing_is_claimed():
    (sentence,) = summary(run_documents.failed())
    assert sentence.startswith("Nothing was compared")
