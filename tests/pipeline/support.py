"""Stage functions for tests."""

from __future__ import annotations

from mls.pipeline.runner import Context


def write(context: Context) -> None:
    """Fill an artifact with two files."""
    (context.out / "weights.bin").write_bytes(b"w" * 100)
    (context.out / "sub").mkdir()
    (context.out / "sub" / "metrics.json").write_text('{"a": 1}')


def never(context: Context) -> None:
    """Fail the test: the artifact must not be made again."""
    raise AssertionError("must not run")
