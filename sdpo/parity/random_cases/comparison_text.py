"""Says what came of random cases: a line for each family, and lines for what differs."""

from collections import defaultdict
from collections.abc import Iterator

from sdpo.parity.random_cases.compare_sides import Difference, FamilyComparison

SHOWN_SEEDS = 5


def comparison_lines(comparison: FamilyComparison) -> Iterator[str]:
    """The lines of a family; what differs is grouped by the values that do."""
    refused = comparison.refused.total()
    classes = ", ".join(f"{count} {name}" for name, count in comparison.refused.most_common())
    yield (
        f"{comparison.family}: {comparison.cases:,} random cases, {comparison.values:,} values; "
        f"both sides refuse {refused}{f' ({classes})' if classes else ''}; "
        f"{len(comparison.differences)} differ"
    )
    groups: defaultdict[str, list[Difference]] = defaultdict(list)
    for difference in comparison.differences:
        groups[difference.names[0]].append(difference)
    for first, differences in sorted(groups.items(), key=lambda group: -len(group[1])):
        seeds = ", ".join(str(difference.seed) for difference in differences[:SHOWN_SEEDS])
        more = ", …" if len(differences) > SHOWN_SEEDS else ""
        yield f"  {len(differences)} at {first} first: seeds {seeds}{more}"
        yield f"    {differences[0].case}"
