"""Which faults explain which cases: counted by hand."""

from sdpo.parity.explain.explanations import fewest, in_all, ranked, united


def test_the_fault_of_most_cases_comes_first_and_equal_ones_stay_in_order():
    explanations = ranked({"A": ["1"], "B": ["2", "1", "2"], "C": ["3"]}, of=4)
    assert [(explanation.fault, explanation.cases) for explanation in explanations] == [
        ("B", ["1", "2"]),
        ("A", ["1"]),
        ("C", ["3"]),
    ]


def test_cases_of_several_searches_are_united():
    assert united({"A": ["1"]}, {"A": ["2"], "B": ["1"]}) == {"A": {"1", "2"}, "B": {"1"}}


def test_a_fault_must_give_all_departing_values_of_a_stage():
    assert in_all({"optimizer": [["A", "B"], ["B", "C"]], "accumulate": []}) == ["B"]
    assert in_all({"optimizer": [["A"], ["B"]]}) == []


def test_few_faults_explain_every_case():
    """B explains two of three; A alone explains the third."""
    found = fewest({"1": ["A", "B"], "2": ["B"], "3": ["A"], "4": []})
    assert found == {"A": {"1", "3"}, "B": {"1", "2"}}
    assert fewest({"1": ["A", "B"], "2": ["B"]}) == {"B": {"1", "2"}}


def test_an_explanation_says_how_many_cases_its_fault_explains():
    (explanation,) = ranked({"A": ["1", "2"]}, of=3)
    assert (explanation.explains, explanation.also) == (2, False)
    assert explanation.share == "2 of 3"
