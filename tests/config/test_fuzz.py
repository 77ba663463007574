"""Whatever stands in an experiment file: loading and planning it give a plan, or one error for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mls.config.load import load, parse_yaml
from mls.pipeline.plan import make_plan
from mls.runtime.errors import MlsError

TEXT = (Path(__file__).parents[2] / "experiments" / "micro.yaml").read_text(encoding="utf-8")
MICRO = parse_yaml(TEXT, "micro.yaml")

WORDS = (
    *("", " ", "a" * 300, "..", "a/b", "mls", "scenes", "linear", "linear.mAP", "moco.queue_size", "CON", "é"),
    *("\u202ea", "\0", "a\nb", "\ud800", "null", "<<", "=", "[topk=1]", "weights", "detectron2", "coco", "voc"),
    *("knn", "retrieval"),
)
NUMBERS = (0, -1, 1, 2, 7, 10**6, 10**9, 2**31, 2**63, 2**64, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300, -1.5, 1e16)
SCALARS = st.one_of(st.sampled_from(WORDS), st.sampled_from(NUMBERS), st.none(), st.booleans(), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested mapping, the whole included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, child in items for place in places(child, (*where, key)))]


PLACES = places(MICRO)[1:]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Micro with one to three places replaced, removed, renamed, repeated or nested."""
    raw = deepcopy(MICRO)
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        inner: Any = raw
        try:
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]]
        except (KeyError, IndexError, TypeError):  # another mutation has removed it
            continue
        change(inner, place[-1], draw)
    return raw


def change(inner: Any, key: Any, draw: st.DrawFn) -> None:
    """Apply one mutation to a member of a mapping or list."""
    match draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "repeat", "nest"))):
        case "replace":
            inner[key] = draw(VALUES)
        case "remove":
            del inner[key]
        case "rename" if isinstance(inner, dict):
            inner[draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)))] = inner.pop(key)
        case "repeat" if isinstance(inner, list):
            inner.append(deepcopy(inner[key]))
        case _:
            for _ in range(draw(st.sampled_from((1, 2, 40)))):
                inner[key] = draw(st.sampled_from(([inner[key]], {"a": inner[key]})))


SNIPPETS = (
    *(
        "&a ",
        "*a",
        "<<: *a",
        "!!set {a}",
        "!!binary QQ==",
        "!!python/object:os.system x",
        "!!timestamp 2001-99-99",
        "!!int x",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "- ",
        ": ",
        "? ",
        "|\n",
        ">\n",
        "'",
        '"',
        "#",
        "\t",
        "%YAML 1.1\n---\n",
        "---\n",
        "...\n",
        "@",
        "`",
    ),
    *(
        "[" * 2000,
        "{a: " * 500,
        "9" * 5000,
        "0x" + "f" * 5000,
        "2001-99-99",
        "12:30:45",
        "~",
        "\\",
        "\ufeff",
        "\x07",
        "\x85",
    ),
    *(
        "&a [*a]",
        "a: &a [x, x]\nb: &b [*a, *a]\n",
        "experiment: twice\n",
        "yes",
        ".inf",
        ".nan",
        "-.inf",
        "1e999",
        "_",
        "0o9",
    ),
)


@st.composite
def torn(draw: st.DrawFn) -> str:
    """Micro's text with one to three pieces inserted, removed or repeated."""
    text = TEXT
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        match draw(st.sampled_from(("insert", "insert", "remove", "repeat", "line"))):
            case "insert":
                text = text[:start] + draw(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=4))) + text[start:]
            case "remove":
                text = text[:start] + text[start + draw(st.integers(1, 60)) :]
            case "repeat":
                text = text[: start + draw(st.integers(1, 60))] + text[start:]
            case _:
                lines = text.splitlines(keepends=True) or [""]
                at = draw(st.integers(0, len(lines) - 1))
                text = "".join([*lines[:at], draw(st.sampled_from(SNIPPETS)), "\n", *lines[at:]])
    return text


def planned_or_refused(path: Path) -> None:
    try:
        make_plan(load(path), {})
    except MlsError as error:
        text = str(error)
        assert text.strip() and len(text) < 20_000
        text.encode()  # can be printed


def budget(examples: int) -> Callable[[Any], Any]:
    """The same examples in every run, without time limits."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@budget(150)
@given(raw=mutated())
def test_odd_values_are_planned_or_refused(tmp_path_factory: Any, raw: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.yaml"
    path.write_text(json.dumps(raw), encoding="utf-8")
    planned_or_refused(path)


@budget(150)
@given(text=torn())
def test_torn_files_are_planned_or_refused(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    planned_or_refused(path)
