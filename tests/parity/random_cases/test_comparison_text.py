"""What a comparison says: counts on a line, and differences by the first value that differs."""

from collections import Counter

from sdpo.parity.random_cases.compare_sides import Difference, FamilyComparison
from sdpo.parity.random_cases.comparison_text import comparison_lines


def test_refusals_are_counted_by_their_class():
    refused = Counter(ValueError=2, KeyError=1)
    (line,) = comparison_lines(FamilyComparison("update", 1000, 12345, refused))
    assert line == (
        "update: 1,000 random cases, 12,345 values; both sides refuse 3 "
        "(2 ValueError, 1 KeyError); 0 differ"
    )


def test_differences_are_grouped_by_their_first_value_the_largest_group_first():
    differences = [Difference(1, ("loss", "gradient"), "one")]
    differences += [Difference(seed, ("gradient",), "two") for seed in range(2, 9)]
    first, *further = comparison_lines(FamilyComparison("loss", 20, 9, differences=differences))
    assert first.endswith("both sides refuse 0; 8 differ")
    assert further == [
        "  7 at gradient first: seeds 2, 3, 4, 5, 6, …",
        "    two",
        "  1 at loss first: seeds 1",
        "    one",
    ]
