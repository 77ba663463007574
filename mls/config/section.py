"""What every block of an experiment file is made of: the strict base class and the types of its values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def ascending(pair: list[float]) -> list[float]:
    """Check that a range's first value is not above its second."""
    if len(pair) == 2 and pair[0] > pair[1]:
        raise ValueError("the least value comes first")
    return pair


def half_a_circle(jitter: list[float]) -> list[float]:
    """Check that hues turn by half of their circle at most: further is the other way round."""
    if len(jitter) == 4 and jitter[3] > 0.5:
        raise ValueError(f"the last, hue, is {jitter[3]:g}; 0.5 is the most")
    return jitter


def one_or_two(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Say in one line what a `Shares` may be, where pydantic has a line for each member of the union.

    Two equal shares are one: they mean the same, so they must give the same id.
    """
    try:
        shares = handler(value)
    except ValidationError:
        raise ValueError("a number from 0 to 1, or a list of two: of the first view and of the second") from None
    return shares[0] if isinstance(shares, list) and shares[0] == shares[1] else shares


def canonical_grid(values: list[Any]) -> list[Any]:
    """Sort candidates and drop repeats: their order means nothing, so it must not change an id."""
    return sorted(set(values))


Ascending = AfterValidator(ascending)
Grid = AfterValidator(canonical_grid)
HalfACircle = AfterValidator(half_a_circle)
Shares = Annotated[
    Share | Annotated[list[Share], Field(min_length=2, max_length=2)],
    WrapValidator(one_or_two),
]
"""A share of both views, or one of each."""


Annotations = Literal["labels", "boxes", "boxes and masks", "index masks"]
"""What a data set tells of its images: classes; where they are; each object's pixels too; the class of each pixel."""


def values_of(section: type[BaseModel], field: str) -> tuple[Any, ...]:
    """The values that a field of literals may have."""
    return get_args(section.model_fields[field].annotation)


def alternatives(names: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


class Section(BaseModel):
    """A block of the file: unknown keys are errors, types are strict, values never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
