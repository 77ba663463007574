"""A large JSON object is read element by element, with the checks of `parse`."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mls.data.strict_json import Document, parse

SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=12,
)


def read(document: Document, key: str) -> list[Any] | None:
    places = document.places(key)
    return None if places is None else [document.at(place) for place in places]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.text(max_size=3), st.lists(VALUES, max_size=4) | VALUES, max_size=4),
    st.sampled_from([None, 0, 3, "\t"]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_arrays_are_those_of_the_parsed_object(raw: dict[str, Any], indent: Any, escaped: bool, encoding: str) -> None:
    text = json.dumps(raw, indent=indent, ensure_ascii=escaped)
    document = Document(text.encode(encoding))
    assert {key: read(document, key) for key in raw} == {
        key: value if isinstance(value, list) else None for key, value in raw.items()
    }
    assert document.places("not there") is None


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", '{"a"', '{"a":', '{"a": [', '{"a": [1', '{"a": [1,', '{"a": [1]', '{"a": [1],', '{"a": [1],}'),
        *(
            '{"a": [1,]}',
            '{"a": [,1]}',
            '{"a": [1 2]}',
            '{"a": [1]} {}',
            "{1: 2}",
            '{"a": [1}',
            '{"a": 1]',
            '{"a" [1]}',
        ),
        *('{"a": [NaN]}', '{"a": [1], "a": [2]}', '{"a": [{"b": 1, "b": 2}]}', '{"a": [1' + "0" * 30 + "]}"),
        *('{"a": [' + "[" * 100_000, '{"a": Infinity}'),
    ],
)
def test_what_parse_refuses_is_refused_with_its_words(text: str) -> None:
    with pytest.raises(ValueError) as by_parse:
        parse(text.encode())
    with pytest.raises(ValueError) as by_document:
        Document(text.encode())
    assert str(by_document.value) == str(by_parse.value)


@pytest.mark.parametrize("text", ["[]", "[1, 2]", "3", '"text"', "null"])
def test_only_an_object_is_a_document(text: str) -> None:
    with pytest.raises(ValueError, match="must be one object"):
        Document(text.encode())


def test_every_prefix_is_refused() -> None:
    text = b'{"a": [1, {"b": [2, "c"]}], "d": {"e": null}, "f": [ ] }'
    assert read(Document(text), "a") == [1, {"b": [2, "c"]}]
    for end in range(len(text)):
        with pytest.raises(ValueError, match="not valid JSON"):
            Document(text[:end])


def test_progress_is_told_and_may_stop_the_reading() -> None:
    told: list[int] = []
    content = json.dumps({"a": list(range(2500))}).encode()
    Document(content, told.append)
    assert len(told) == 2 and 0 < told[0] < told[1] < len(content)

    def stop(place: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Document(content, stop)
