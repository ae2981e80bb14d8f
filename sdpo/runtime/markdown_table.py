"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """A Markdown table without a newline at its end.

    Args:
        head: titles of the columns.
        rows: cells, shown by `str`.
        left: columns that are aligned to the left; the others, numbers, to the right.
    """
    rules = ["---" if column < left else "--:" for column in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
