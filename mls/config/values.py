"""The types of values in an experiment file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WrapValidator


def ascending(pair: list[float]) -> list[float]:
    """Check that a range does not start above its end."""
    if len(pair) == 2 and pair[0] > pair[1]:
        raise ValueError("the smaller value comes first")
    return pair


def at_most(limit: int, why: str) -> AfterValidator:
    """Check that a number, or each of a list, stays below what any machine can hold; ``why`` is for the message."""

    def check(value: Any) -> Any:
        if max(value if isinstance(value, list) else [value], default=0) > limit:
            raise ValueError(f"should be at most {limit:,}: {why}")
        return value

    return AfterValidator(check)


def check_pixels(batch_size: int, crop: int) -> None:
    """Reject a batch of views that takes more memory than machines have.

    Raises:
        ValueError: says how many pixels it has.
    """
    if (pixels := batch_size * crop**2) > MOST_PIXELS:
        raise ValueError(
            f"batch_size {batch_size} x augment.crop {crop} x {crop} are {pixels:,} pixels; "
            f"a batch should have at most {MOST_PIXELS:,} (103 GB as float32)"
        )


def once(values: list[Any]) -> list[Any]:
    """Check that nothing is listed twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} is listed twice")
    return values


def one_or_two(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Explain in one line what a `Shares` may be; pydantic has a line for each member of the union.

    Two equal shares become one: they mean the same, so they must give the same id.
    """
    try:
        shares = validate(value)
    except ValidationError:
        raise ValueError("a number from 0 to 1, or a list of two: for the first view and for the second") from None
    return shares[0] if isinstance(shares, list) and shares[0] == shares[1] else shares


MOST_PIXELS = 2**33

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
"""Files are named after it or, in figures of a table and a task, after two, and a file's name has at most 255 bytes."""
Count = Annotated[int, Field(ge=1, le=10**9)]
Index = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""What torch's generators take."""
BatchSize = Annotated[int, Field(ge=2), at_most(65_536, "no machine holds more images at once")]
Side = Annotated[int, Field(ge=16), at_most(4096, "a batch of larger images does not fit in memory")]
"""Side of an image, pixels."""
Channels = Annotated[int, Field(ge=1), at_most(65_536, "a layer between two such widths takes 17 GB")]
"""Width of a layer."""
Repeats = Annotated[int, Field(ge=1), at_most(1000, "each repeat is a job of its own")]
Processes = Annotated[int, Field(ge=0), at_most(1024, "no machine has more cores")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "bf16"]

Grid = AfterValidator(lambda values: sorted(set(values)))
"""Sorts candidates and drops repeats: their order means nothing, so it must not change an id."""
Ascending = AfterValidator(ascending)
ShareRange = Annotated[list[Share], Field(min_length=2, max_length=2), Ascending]
PositiveRange = Annotated[list[Positive], Field(min_length=2, max_length=2), Ascending]
Shares = Annotated[Share | Annotated[list[Share], Field(min_length=2, max_length=2)], WrapValidator(one_or_two)]
"""A share for both views, or one for each."""
Drops = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=8)]
"""When the learning rate is divided by 10, as shares of the schedule."""
