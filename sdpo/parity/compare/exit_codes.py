"""Exit codes of the command line, and which of several counts. Imports nothing."""

from collections.abc import Iterable

EXIT_CODES = {"PASS": 0, "DECLARED": 0, "DIVERGENT": 1, "ERROR": 2, "INCONCLUSIVE": 3}
EXIT_ORDER = (4, 2, 1, 3, 0)


def worst_exit_code(codes: Iterable[int]) -> int:
    """One exit code for several candidates: the worst in the order 4, 2, 1, 3, 0."""
    return min(codes, key=EXIT_ORDER.index)
