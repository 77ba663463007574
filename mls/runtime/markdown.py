"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def pipe_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of an aligned pipe table.

    Args:
        rows: the header, then the others; the first column is aligned to the left, all others to the right.
    """
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    header, *others = (
        f"| {' | '.join([label.ljust(first), *(text.rjust(w) for text, w in zip(texts, widths, strict=True))])} |"
        for label, *texts in rows
    )
    return [header, f"|{'|'.join(['-' * (first + 2), *('-' * (w + 1) + ':' for w in widths)])}|", *others]
