"""Pairs of scripts: what differs between the two, and what does not."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.relations.catalogue import RELATION_NAMES
from sdpo.parity.trainers.probes.relation_pairs import EVEN, PAIRS, all_scripts
from sdpo.parity.trainers.scenarios.tiny_model import EXCHANGED, completion_ids


def rows_of(scenario):
    return [row for generation in scenario.generations for row in generation.rollouts]


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_belongs_to_a_relation_and_has_two_scripts(name):
    assert name in RELATION_NAMES
    for pair in PAIRS[name]:
        assert pair.right is None or pair.right != pair.left


@pytest.mark.parametrize("name", ["micro-batch split", "process split", "gradient accumulation"])
def test_a_split_has_the_same_eight_rows_in_other_sizes(name):
    for pair in PAIRS[name]:
        assert pair.right is not None
        assert rows_of(pair.left) == rows_of(pair.right)
        sizes = [s.micro_batch_size * s.accumulation * s.processes for s in (pair.left, pair.right)]
        assert sizes == [8, 8]
        assert pair.left.micro_batch_size == 8 > pair.right.micro_batch_size


@pytest.mark.parametrize(
    "name", ["padding side", "extra padding", "logit shift", "vocabulary order"]
)
def test_a_disguise_changes_nothing_else(name):
    for pair in PAIRS[name]:
        assert pair.right is not None
        assert replace(pair.right, disguise="") == pair.left


def test_even_rows_have_equally_many_tokens():
    (even, _) = PAIRS["micro-batch split"]
    lengths = {len(ids) for ids in completion_ids(even.left.generations[0])}
    assert len(lengths) == 1
    assert sum(row.reward for row in EVEN[:4]) == sum(row.reward for row in EVEN[4:]) == 2


def test_rows_in_another_order_keep_the_order_of_the_successes():
    rows, groups = PAIRS["row order"]
    for pair in (rows, groups):
        assert pair.right is not None
        left, right = rows_of(pair.left), rows_of(pair.right)
        assert sorted(map(str, left)) == sorted(map(str, right))
        assert left != right
    successes = [[r for r in rows_of(s) if r.reward] for s in (rows.left, rows.right)]
    assert successes[0] == successes[1]


def test_two_entries_of_the_head_change_places():
    (pair,) = PAIRS["vocabulary order"]
    head = torch.arange(426.0)[:, None]
    placed = pair.place({"lm_head.weight": head, "other": head})
    first, second = EXCHANGED
    assert placed["lm_head.weight"][[first, second], 0].tolist() == [second, first]
    assert torch.equal(placed["other"], head)


def test_the_scripts_are_those_of_all_pairs():
    count = sum(1 + (pair.right is not None) for pairs in PAIRS.values() for pair in pairs)
    assert len(all_scripts()) == count
