"""Ranks the known faults that explain a candidate by the diverging cases that each explains.

A fault that explains one case of forty does not stand beside one that explains thirty-nine: below a
quarter of what the first explains (`explanation_beside_share`) it is told apart, as "also". It may
be a second fault that few cases can show, or only resemble the real one.
"""

from collections.abc import Iterable, Mapping, Sequence

from sdpo.parity.explain.explanation_rows import Explanation
from sdpo.parity.truth.tolerances import TOLERANCES


def ranked(cases_by_fault: Mapping[str, Iterable[str]], of: int) -> list[Explanation]:
    """Order faults by the number of their cases, the largest first; equal ones stay as given.

    Args:
        cases_by_fault: the diverging cases whose results each fault gives.
        of: how many cases diverge.
    """
    sorted_cases = {fault: sorted(set(ids)) for fault, ids in cases_by_fault.items()}
    most = max(map(len, sorted_cases.values()), default=0)
    least = TOLERANCES.explanation_beside_share * most
    explanations = [
        Explanation(fault, len(cases), of, len(cases) < least, cases)
        for fault, cases in sorted_cases.items()
    ]
    return sorted(explanations, key=lambda explanation: -explanation.explains)


def united(*searches: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Unite the cases by fault of several searches."""
    cases_by_fault: dict[str, set[str]] = {}
    for search in searches:
        for fault, cases in search.items():
            cases_by_fault.setdefault(fault, set()).update(cases)
    return cases_by_fault


def in_all(tried: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """List the faults that give all departing values of a stage, of one scenario.

    A teacher that was averaged too early is one that was not updated, in the first update.

    Args:
        tried: by stage, of each departing value the faults that give it.
    """
    common = [
        [fault for fault in of_values[0] if all(fault in faults for faults in of_values)]
        for of_values in tried.values()
        if of_values
    ]
    return list(dict.fromkeys(fault for faults in common for fault in faults))


def fewest(alternatives: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Choose few faults that explain every case, each with its cases.

    Args:
        alternatives: of each case the faults that explain it. Scenarios of a trainer differ in one
            setting, so that a single fault explains what shows in one; faults that one scenario
            cannot tell apart another may.
    """
    unexplained, few = [set(faults) for faults in alternatives.values() if faults], []
    while unexplained:
        candidates = sorted(set().union(*unexplained))
        best = max(candidates, key=lambda fault: sum(fault in faults for faults in unexplained))
        few.append(best)
        unexplained = [faults for faults in unexplained if best not in faults]
    return {f: {case for case, faults in alternatives.items() if f in faults} for f in few}
