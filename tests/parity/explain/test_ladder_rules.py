"""Rules that name a stage from several rungs, on results written down by hand."""

import pytest

from sdpo.parity.explain.ladder_rules import SINGLE_TOKEN, inferred_stage
from sdpo.parity.explain.rungs import Feature, RungResult, RungRow

HOLDS, DEPARTS = RungResult.HOLDS, RungResult.DEPARTS
STAGE_OF = {Feature.TAIL: "support", Feature.TEMPERATURE: "log_probs"}


def rows(result: RungResult, *features: Feature, factor: float | None = None) -> list[RungRow]:
    """All rungs hold but those of some features."""
    return [
        {
            "stage": STAGE_OF.get(feature, "divergence"),
            "feature": feature,
            "result": result if feature in features else HOLDS,
            "factor": factor if feature in features else None,
        }
        for feature in Feature
    ]


def test_no_departure_names_no_stage():
    assert inferred_stage(rows(HOLDS)) is None


def test_gradients_alone_name_the_gradient():
    assert inferred_stage(rows(RungResult.ONLY_GRADIENT_DEPARTS, Feature.TAIL)) == "gradient"


def test_without_a_rule_the_first_rung_that_departs_names_its_stage():
    assert inferred_stage(rows(DEPARTS, Feature.TAIL)) == "support"


@pytest.mark.parametrize(
    ("stage", "features", "factor"),
    [
        ("aggregate", SINGLE_TOKEN, 2.0),
        ("aggregate", (Feature.TEMPERATURE, Feature.TEMPERATURE_SAMPLED), 0.5),
        ("log_probs", SINGLE_TOKEN, None),
        ("log_probs", (Feature.SAMPLED, Feature.RATIOS), None),
        ("support", (Feature.TEMPERATURE,), None),
        ("support", (Feature.RENORMALISED_SAME_RANKING, Feature.TAIL_SAME_RANKING), None),
        ("support", (Feature.RENORMALISED_SAME_RANKING, Feature.RENORMALISED), None),
        ("support", (Feature.RENORMALISED_WHOLE,), None),
    ],
)
def test_each_rule_names_its_stage(stage, features, factor):
    assert inferred_stage(rows(DEPARTS, *features, factor=factor)) == stage


def test_values_without_gradients_are_of_the_aggregate():
    assert inferred_stage(rows(RungResult.ONLY_LOSS_DEPARTS, *SINGLE_TOKEN)) == "aggregate"
