"""The table of relations: each has claims, and the gravest of their statuses counts."""

import pytest

from sdpo.parity.relations.catalogue import EQUAL, NOT_BELOW, RELATIONS, TEACHER, gravest
from sdpo.parity.relations.transformed_cases import MAKERS


def test_each_relation_has_a_maker_of_its_claims():
    assert [relation.name for relation in RELATIONS] == list(MAKERS)


def test_a_row_of_the_table_is_a_relation():
    shift = next(relation for relation in RELATIONS if relation.name == "logit shift")
    assert shift.sentence == "A constant added to all logits of one side changes nothing."
    assert "verl #7856" in shift.pain
    assert (shift.kind, shift.needs_logits) == (EQUAL, True)
    kinds = {relation.name: relation.kind for relation in RELATIONS if relation.kind != EQUAL}
    assert kinds == {"never negative": NOT_BELOW, "teacher gets no gradient": TEACHER}


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["HOLDS", "VIOLATED", "ERROR"], "VIOLATED"),
        (["INHERITED", "ERROR"], "ERROR"),
        (["HOLDS", "INHERITED"], "INHERITED"),
        (["NOT_COVERED", "HOLDS"], "HOLDS"),
    ],
)
def test_the_gravest_status_counts(statuses, status):
    assert gravest(statuses) == status
