"""No two random streams of a stage coincide, apart from those that are known to."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from numpy.random import Generator

from mls.runtime import streams
from mls.transfer.draws import Purpose

N = (0, 1, 2, 3, 4, 117_266)
"""Values of a word: an epoch, a step, a row, a class."""

Streams = dict[Callable[..., Generator], list[tuple[int, ...]]]
VIEWS: list[tuple[int, ...]] = [(*words, view) for words in itertools.product(N, N) for view in (0, 1)]
REDRAWN: list[tuple[int, ...]] = [(*words, 1, attempt) for words in itertools.product(N, N) for attempt in (1, 2, 9)]
SAMPLED: list[tuple[int, ...]] = [(*words, purpose) for words in itertools.product(N, N) for purpose in Purpose]
ONE, TWO, THREE = ([*itertools.product(N, repeat=count)] for count in (1, 2, 3))

STAGES: dict[str, Streams] = {
    "data: scenes": {streams.scene: [(split, index) for split in range(3) for index in N]},
    "data: a subset of COCO": {streams.subset: [(0,), (1,)], streams.held_out: [()]},
    "pretrain": {streams.views: VIEWS + REDRAWN, streams.order: ONE, streams.shuffle: ONE},
    "probe: finetune": {streams.views: VIEWS, streams.order: ONE, streams.mixture: ONE},
    "probe: low-shot SVM": {streams.few_images: THREE},
    "transfer: torchvision": {streams.order_and_flips: ONE, streams.sampled: SAMPLED},
    "transfer: detectron2": {streams.order_and_flips: ONE, streams.side: TWO, streams.sampled: SAMPLED},
    "transfer: semantic": {streams.order_and_flips: ONE, streams.crop_and_colour: TWO, streams.sampled: SAMPLED},
    "figures": {streams.queries: [()], streams.views: VIEWS},
}
KNOWN = {
    "data: a subset of COCO": [{("subset", 0), ("held_out",)}],
    "transfer: detectron2": [{("order_and_flips", epoch), ("side", epoch, 0)} for epoch in N],
    "figures": [{("queries",), ("views", 0, 0, 0)}],
}
"""The docstrings of these streams say so."""


@pytest.mark.parametrize("seed", [0, 1000, 2**32 + 5])
@pytest.mark.parametrize("stage", STAGES)
def test_only_the_known_streams_of_a_stage_coincide(stage: str, seed: int) -> None:
    made = defaultdict(set)
    for stream, calls in STAGES[stage].items():
        for words in calls:
            state = stream(seed, *words).bit_generator.state["state"]["state"]
            made[state].add((stream.__name__, *words))
    assert [same for same in made.values() if len(same) > 1] == KNOWN.get(stage, [])


def test_every_stream_is_drawn_here_and_belongs_to_a_stage() -> None:
    """Otherwise the test above would not know of it. The bootstrap has one stream, of no seed."""
    root = Path(streams.__file__).parents[1]
    texts = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    assert {name for name, text in texts.items() if "default_rng(" in text} == {
        "probe/bootstrap.py",
        "runtime/streams.py",
    }
    used = {name for text in texts.values() for name in re.findall(r"\bstreams\.(\w+)\(", text)}
    assert used == {stream.__name__ for stage in STAGES.values() for stream in stage}


FIRST = [688132, 870260, 944904, 391020, 663395, 787949, 451030, 870260, 688132, 679996, 679996, 944904]
"""Of the seeds that the streams were first written with: (7, 1, 2), (7, 1), 7, (7, 1, 2, 1), ..."""


def test_a_stream_has_the_numbers_it_always_had() -> None:
    """First draws, so that no experiment's numbers change."""
    drawn = [
        streams.scene(7, 1, 2),
        streams.subset(7, 1),
        streams.held_out(7),
        streams.views(7, 1, 2, 1),
        streams.views(7, 1, 2, 1, 3),
        streams.order(7, 1),
        streams.shuffle(7, 1),
        streams.order_and_flips(7, 1),
        streams.side(7, 1, 2),
        streams.crop_and_colour(7, 1, 2),
        streams.few_images(7, 1, 2, 3),
        streams.queries(7),
    ]
    assert [int(rng.integers(10**6)) for rng in drawn] == FIRST
