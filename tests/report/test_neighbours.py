"""What Figures 3 and 4 are drawn from is what the run itself computed, and plain arithmetic on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mls.config.experiment import Pretrain
from mls.config.methods import Mls, Moco
from mls.data.augment import MEAN, STD, crop
from mls.data.image_store import ImageStore
from mls.methods.dictionary import RANDOM
from mls.methods.method import Method
from mls.models.backbone import load_backbone
from mls.pipeline.artifact import open_artifact
from mls.report.neighbours import (
    BINS,
    final_state,
    first_pair,
    initial_state,
    nearest_entries,
    sample_place,
    sample_queries,
    score_query,
    summary,
    topk_of,
)
from tests.report.support import FinishedRun, finished_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FinishedRun]]:
    with finished_runs(tmp_path_factory.mktemp("neighbours")) as made:
        yield made


def store_of(run: FinishedRun) -> ImageStore:
    (source,) = run.plan.inputs(run.job)
    return ImageStore(source.path)


def trained(run: FinishedRun) -> Method[Any]:
    return final_state(run.job.config, open_artifact(run.job.path))


def test_the_first_pair_needs_no_resident_images(runs: dict[str, FinishedRun]) -> None:
    run = next(iter(runs.values()))
    kept = run.job.config.model_copy(update={"resident": "cuda"})
    pairs = [first_pair(store_of(run), config, run.job.seed) for config in (run.job.config, kept)]
    assert torch.equal(pairs[0].query_BCHW, pairs[1].query_BCHW)


@pytest.mark.parametrize("name", ["mls", "moco-v2"])
def test_before_is_the_runs_own_beginning(runs: dict[str, FinishedRun], name: str) -> None:
    run = runs[name]
    torch.manual_seed(123)
    ahead = torch.get_rng_state()
    method = initial_state(run.job.config, run.job.seed)
    assert torch.equal(torch.get_rng_state(), ahead), "the caller's generator moved"
    for key, value in method.state_dict().items():
        assert torch.equal(value, run.initial[key]), key

    untouched = copy.deepcopy(method.state_dict())
    pair = first_pair(store_of(run), run.job.config, run.job.seed)
    assert torch.equal(pair.row_B, run.first.keys.row_N) and torch.equal(pair.boxes_VB4[1], run.first.keys.box_N4)
    for place in (0, 5):
        scores = score_query(method, pair, place)
        g_G, z_d = run.first.g_query_BG[place].detach(), run.first.z_query_Bd[place].detach()
        expected_g, expected_z = run.initial["dictionary.g_DG"].clone(), run.initial["dictionary.z_Dd"].clone()
        expected_g[:8], expected_z[:8] = run.first.keys.g_NG, run.first.keys.z_Nd
        assert np.allclose(scores.cosines_D["backbone"], expected_g @ g_G / g_G.norm(), atol=1e-5)
        assert np.allclose(scores.cosines_D["mlp"], expected_z @ z_d, atol=1e-5)
        assert scores.known_D.sum() == run.job.config.batch_size == 8
        assert scores.own == place
    assert all(torch.equal(value, untouched[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", ["mls", "moco-v2"])
def test_after_is_the_runs_end_with_one_more_batch(runs: dict[str, FinishedRun], name: str) -> None:
    run = runs[name]
    method = trained(run)
    assert bool(method.dictionary.known_D.all())  # 9 steps of 8 keys, 20 entries
    pair = first_pair(store_of(run), run.job.config, run.job.seed)
    scores = score_query(method, pair, 2)
    oldest = int(method.dictionary.pointer)
    assert scores.own == (oldest + 2) % 20
    kept = [i for i in range(20) if i not in {(oldest + j) % 20 for j in range(8)}]
    embedded = copy.deepcopy(method).train().embed(pair)
    query_G = torch.nn.functional.normalize(embedded.g_query_BG[2].detach(), dim=0)
    assert np.allclose(scores.cosines_D["backbone"][kept], method.dictionary.g_DG[kept] @ query_G, atol=1e-6)
    assert scores.cosines_D["backbone"][scores.own] == pytest.approx(float(embedded.keys.g_NG[2] @ query_G), abs=1e-6)


def test_the_query_keeps_its_own_key_in_a_small_dictionary() -> None:
    config = Pretrain(batch_size=8, moco=Moco(queue_size=3))
    assert {sample_place(config, seed) for seed in range(40)} == {5, 6, 7}
    assert {sample_place(Pretrain(batch_size=4), seed) for seed in range(40)} == {0, 1, 2, 3}


def test_summary_is_plain_arithmetic() -> None:
    cosine_D = np.array([1.0, -1.0, 0.45, 0.6, 0.1, 0.41, 0.5])
    numbers = summary(cosine_D, 3, own=3)
    assert sum(numbers["counts"]) == len(cosine_D) and len(numbers["counts"]) == len(BINS) - 1
    assert numbers["cut_off"] == 0.5 and numbers["own_key"] == 0.6 and numbers["percentile_50"] == 0.45
    assert numbers["above_0.4"] == 5 and numbers["above_0.5"] == 2
    assert numbers["mean"] == pytest.approx(sum(cosine_D) / 7, abs=1e-6)
    variance = sum((v - sum(cosine_D) / 7) ** 2 for v in cosine_D) / 7
    assert numbers["std"] == pytest.approx(variance**0.5, abs=1e-6)


def test_topk_is_the_runs_or_the_papers() -> None:
    assert topk_of(Pretrain(mls=Mls(topk=5))) == 5
    assert topk_of(Pretrain(method="moco", mls=Mls(topk=5))) == 20
    assert topk_of(Pretrain(method="moco", moco=Moco(queue_size=7))) == 7


def dot(a: Tensor, b: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("name", ["mls", "moco-v2"])
def test_neighbours_are_the_nearest_of_brute_force(runs: dict[str, FinishedRun], name: str) -> None:
    run, store = runs[name], store_of(runs[name])
    rows, boxes = sample_queries(store, 5, 3, run.job.config.augment.scale)
    assert set(rows) <= set(store.split("val")) and len(set(rows)) == 5
    queries = nearest_entries(trained(run), store, rows, boxes)

    state = torch.load(run.job.path / "checkpoint.pt", weights_only=True)["method"]
    backbone = load_backbone(run.job.config.backbone, run.job.path / "backbone.safetensors").eval()
    for row, box, query in zip(rows, boxes, queries, strict=True):
        image_CHW = crop(store.decode(int(row)), box, run.job.config.augment.crop) / 255
        view_CHW = torch.stack([(image_CHW[c] - MEAN[c]) / STD[c] for c in range(3)])
        with torch.no_grad():
            g_G = backbone(view_CHW[None])[0]
        cosines = [dot(g_G, entry_G) / dot(g_G, g_G) ** 0.5 for entry_G in state["dictionary.g_DG"]]
        best = sorted(range(20), key=lambda entry: -cosines[entry])[:4]
        assert [one.entry for one in query.neighbours] == best
        assert query.row == row and query.box == tuple(box)
        for one in query.neighbours:
            assert one.cosine == pytest.approx(cosines[one.entry], abs=1e-5)
            assert one.row == state["dictionary.row_D"][one.entry] and one.row in store.split("train")
            mine, other = (store.labels([r])[0] for r in (query.row, one.row))
            assert one.shared == [c for c, a, b in zip(store.classes, mine, other, strict=True) if a and b]
        for r, (top, left, height, width) in [(query.row, query.box), *((n.row, n.box) for n in query.neighbours)]:
            across, down = store.size(r)
            assert 0 <= top < top + height <= down and 0 <= left < left + width <= across


def test_random_entries_are_never_neighbours(runs: dict[str, FinishedRun]) -> None:
    run, method = runs["mls"], trained(runs["mls"])
    method.dictionary.row_D.fill_(RANDOM)
    method.dictionary.row_D[[4, 11]] = torch.tensor([2, 0])
    rows, boxes = sample_queries(store_of(run), 3, 0, [0.2, 1.0])
    for query in nearest_entries(method, store_of(run), rows, boxes):
        assert {one.entry for one in query.neighbours} == {4, 11}


def test_without_val_images_queries_are_train_images() -> None:
    rows = {"train": np.arange(10, 14), "val": np.array([], dtype=np.int64)}
    store = SimpleNamespace(split=rows.__getitem__, size=lambda row: (40, 30))
    chosen, boxes = sample_queries(store, 9, 0, [0.2, 1.0])  # type: ignore[arg-type]
    assert sorted(chosen) == [10, 11, 12, 13] and boxes.shape == (4, 4)
    again, _ = sample_queries(store, 9, 1, [0.2, 1.0])  # type: ignore[arg-type]
    assert list(again) != list(chosen)
