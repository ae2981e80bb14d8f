"""Shapes, agreement and ratios of the loss benchmark."""

from argparse import Namespace

import pandas as pd
import pytest

from sdpo.benchmark.performance import fused_loss as module
from sdpo.benchmark.performance.fused_loss import check_agreement, shapes, summary

SHAPE = {"vocabulary": 9, "hidden": 2, "topk": 3, "tokens": 4, "active": 1.0}


def row(contender: str, loss: float = 1.0, **more: float) -> dict:
    seconds = {"wall_s": 1.0, "cpu_s": 1.0, "memory_gib": 1.0, "round": 0}
    return {**SHAPE, **seconds, "contender": contender, "loss": loss, **more}


def chosen(**changes) -> Namespace:
    usual = {"vocabulary": [9], "hidden": 2, "topk": [3], "tokens": [4], "active": [1.0]}
    rest = {"device": "cpu", "dtype": "float32", "memory": 100.0, "repeats": 1, "threads": 1}
    return Namespace(**{**usual, **rest, "contenders": ["fused", "trl"], **changes})


def test_shapes_begin_with_all_rows_and_few_tokens():
    groups = list(shapes(chosen(tokens=[8, 4], active=[0.5, 1.0])))
    pairs = [[(shape.active, shape.tokens) for shape in group] for group in groups]
    assert pairs == [[(1.0, 4), (1.0, 8)], [(0.5, 4), (0.5, 8)]]


def test_a_contender_with_another_loss_is_named():
    check_agreement([row("fused"), row("trl", 1.00005)], 1e-4)
    with pytest.raises(SystemExit, match=r"trl: loss is 1\.1, fused 1\.0"):
        check_agreement([row("fused"), row("trl", 1.1)], 1e-4)
    with pytest.raises(SystemExit, match="trl: loss is nan"):
        check_agreement([row("fused"), row("trl", float("nan"))], 1e-4)


def test_ratios_are_formed_within_a_round():
    """Ours takes half of the peer's time in both rounds, though the machine slowed down."""
    rows = [row("fused", wall_s=1.0), row("trl", wall_s=2.0)]
    rows += [row("fused", wall_s=4.0, round=1), row("trl", wall_s=8.0, round=1)]
    table = summary(pd.DataFrame(rows)).set_index("contender")
    assert table.loc["fused", "time/best peer"] == "0.50 (0.50 to 0.50)"
    assert table.loc["fused", "wall_s"] == 2.5


def test_a_contender_that_would_need_too_much_memory_is_left_out(monkeypatch):
    """2 GiB for four tokens are 4 GiB for eight."""
    asked = []

    def measured(name, shapes, chosen, repeats=1):
        asked.append((name, shapes[0].tokens))
        yield row(name, memory_gib=2.0, tokens=shapes[0].tokens)

    monkeypatch.setattr(module, "_measured", measured)
    module.rounds(chosen(tokens=[4, 8], memory=3.0))
    assert asked == [("fused", 4), ("trl", 4), ("fused", 8)]
