"""Tables of what differs: what all have alike is left out."""

from sdpo.parity.checkouts.checkout_tables import (
    cell,
    functions_table,
    markdown,
    result_text,
    settings_table,
)
from sdpo.parity.checkouts.compare_checkouts import SeenCheckout
from sdpo.parity.checkouts.description import CheckoutDescription, FunctionResult

RECORDED = {"dataclass": {"alpha": "0.0", "is_clip": "None"}, "sdpo_yaml": {"alpha": "0.5"}}
LIKE = {"dataclass": {"alpha": "0.0", "is_clip": "2.0", "new": "'a|b'"}, "sdpo_yaml": {}}
OWN = {"DistillationLossConfig": {"topk": "128.0"}}


def checkout(name, layers, *functions) -> CheckoutDescription:
    has_sdpo = "dataclass" in layers
    return CheckoutDescription(name, "commit c; more", "0.9", has_sdpo, layers, [*functions])


def test_settings_that_all_have_alike_are_left_out():
    lines = list(settings_table(RECORDED, [checkout("pr", LIKE), checkout("main", OWN)]))
    assert lines == [
        "| layer | setting | recorded 0e6d5106 | pr |",
        "|---|---|---|---|",
        "| dataclass | `is_clip` | `None` | `2.0` |",
        "| dataclass | `new` | – | `'a\\|b'` |",
        "| `sdpo.yaml` | `alpha` | `0.5` | – |",
    ]


def test_a_function_is_told_by_what_it_gave():
    assert result_text(FunctionResult("f")) == "no such function"
    assert result_text(FunctionResult("f", 3, 3)) == "3 of 3 bit-equal"
    assert result_text(FunctionResult("f", 3, 1, 0.25, "P-L001", 1)) == (
        "1 of 3 bit-equal, up to 0.25 of the value (P-L001), 1 finite on one side alone"
    )
    assert result_text(FunctionResult("f", 3, problem="E: x")) == "raises `E: x`"


def test_each_function_has_a_line_and_each_checkout_a_column():
    both = [checkout("a", {}, FunctionResult("f", 2, 2)), checkout("b", {}, FunctionResult("f"))]
    assert list(functions_table(both))[-1] == "| f | 2 of 2 bit-equal | no such function |"


def test_a_document_names_the_checkouts_and_their_own_distillation():
    text = markdown(RECORDED, [SeenCheckout(checkout("main", OWN, FunctionResult("f")), None)])
    assert text.startswith("- main: verl 0.9, commit c\n")
    assert "| `topk` | `128.0` |" in text


def test_a_bar_does_not_end_a_cell():
    assert cell("a|b") == "`a\\|b`"
