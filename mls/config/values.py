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


def one_or_two(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Explain in one line what a `Shares` may be; pydantic has a line for each member of the union.

    Two equal shares become one: they mean the same, so they must give the same id.
    """
    try:
        shares = validate(value)
    except ValidationError:
        raise ValueError("a number from 0 to 1, or a list of two: for the first view and for the second") from None
    return shares[0] if isinstance(shares, list) and shares[0] == shares[1] else shares


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
BatchSize = Annotated[int, Field(ge=2)]
Side = Annotated[int, Field(ge=16)]
"""Side of an image, pixels."""
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
