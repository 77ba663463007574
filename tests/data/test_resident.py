"""Resident images: the same bits with ``cpu``, crops within one level with ``cuda``, which cuts them in batches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mls.data.build_store
import mls.train.pretrain
from mls.config.experiment import Pretrain
from mls.config.load import check
from mls.config.views import Interpolation
from mls.data.augment import crop, crop_boxes, draw
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews, ViewBatch
from mls.data.resident import Resident
from mls.data.writer import Record, write_store
from mls.methods.mls import MLS
from mls.pipeline.plan import make_plan, payload
from mls.pipeline.runner import Context, run_stage
from mls.runtime.device import set_up
from mls.runtime.errors import MlsError
from mls.train.loop import Trainer
from mls.train.pairs import pair_of

SIZES = [(60, 40), (33, 81), (64, 64), (120, 50)]
CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """Four JPEGs and four PNGs, half of them train."""
    rng = np.random.default_rng(0)
    records = []
    for kind in ("jpeg", "png"):
        for i, (width, height) in enumerate(SIZES):
            noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
            split = "train" if i % 2 else "val"
            records.append(Record(f"{kind}{i}", split, file.getvalue(), width, height, [0], []))
    write_store(tmp_path, sorted(records, key=lambda r: (r.split, r.name)), ["a"], True, [])
    return ImageStore(tmp_path)


def config(**changes: object) -> Pretrain:
    return Pretrain.model_validate({"batch_size": 2, "epochs": 3, "augment": {"crop": 16}, **changes})


def crops(batch: ViewBatch) -> torch.Tensor:
    assert batch.crops_VBCHW is not None
    return batch.crops_VBCHW


@pytest.mark.parametrize("threads", [1, 3])
def test_resident_images_give_the_same_bits(store: ImageStore, threads: int) -> None:
    decoded, kept = TwoViews(store, config(), 0), TwoViews(store, config(resident="cpu"), 0, threads=threads)
    for step in range(decoded.steps):
        assert torch.equal(crops(decoded[step]), crops(kept[step]))


def test_only_train_images_are_kept(store: ImageStore) -> None:
    rows = store.split("train")
    kept = Resident(store, rows, 1)
    assert kept._pixels_N.numel() == sum(3 * w * h for w, h in (store.size(int(r)) for r in rows))
    for row in rows:
        assert torch.equal(kept.decode(int(row)), store.decode(int(row)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "at_once"), [(16, 2**25), (48, 2**14), (224, 1)])
def test_crops_in_batch_equal_torchvisions_within_a_level_or_two(
    store: ImageStore, side: int, at_once: int, interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mls.data.resident.AT_ONCE", at_once)
    rows = np.repeat(np.arange(len(store)), 20)
    sizes_N2 = np.array([store.size(int(row)) for row in rows], dtype=np.int64)
    boxes_N4 = crop_boxes(draw(0, side, np.arange(len(rows)), 0), sizes_N2, [0.05, 1.0])
    boxes_N4[:3, 2:] = 1  # a single pixel
    images = Resident(store, np.arange(len(store)), 1)
    ours = images.crops(torch.from_numpy(rows), torch.from_numpy(boxes_N4), side, interpolation)
    each = zip(rows, boxes_N4, strict=True)
    theirs = torch.stack([crop(store.decode(int(row)), box, side, interpolation) for row, box in each])
    difference = (ours.int() - theirs.int()).abs()
    assert ours.shape == theirs.shape and ours.dtype == torch.uint8
    assert int(difference.max()) <= (1 if interpolation == "bilinear" else 2)
    assert abs(float((ours.int() - theirs.int()).float().mean())) < 0.05
    if interpolation == "bicubic":
        assert float((difference > 0).float().mean()) < 0.02 and float((difference > 1).float().mean()) < 1e-4
        plain = torch.stack([crop(store.decode(int(row)), box, side) for row, box in zip(rows, boxes_N4, strict=True)])
        assert float((plain != theirs).float().mean()) > 0.3, "the two filters differ"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_batch_without_crops_takes_those_of_the_resident_images(
    store: ImageStore, interpolation: Interpolation
) -> None:
    plain = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "crop": 16, "interpolation": interpolation}
    with_crops = TwoViews(store, config(augment=plain), 0)
    without = TwoViews(store, config(resident="cuda", augment=plain), 0)
    batch = without[1]
    assert batch.crops_VBCHW is None
    kept = Resident(store, without.rows, 1)
    ours = pair_of(batch, without, without.config, 1, CPU, kept)
    theirs = pair_of(with_crops[1], with_crops, with_crops.config, 1, CPU)
    one_level = (1.01 if interpolation == "bilinear" else 2.01) / 255 / 0.224
    assert torch.allclose(ours.query_BCHW, theirs.query_BCHW, atol=one_level)
    assert torch.allclose(ours.key_BCHW, theirs.key_BCHW, atol=one_level)
    own, row = crops(with_crops[1])[0, 0], int(with_crops[1].rows_B[0])
    assert torch.equal(own, crop(store.decode(row), with_crops[1].boxes_VB4[0, 0].numpy(), 16, interpolation))
    with pytest.raises(ValueError, match="needs resident images"):
        pair_of(batch, without, without.config, 1, CPU)


def test_images_that_do_not_fit_are_rejected_before_memory_is_allocated(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(MlsError, match=r"pretrain.resident: .* GiB of memory are free; set short_side"):
        TwoViews(store, config(resident="cpu"), 0)


def experiment(kept: str) -> dict[str, Any]:
    return {
        "experiment": "x",
        "datasets": {"scenes": {"source": "scenes", "train": 8, "val": 2, "test": 2, "size": 32}},
        "pretrain": {
            "dataset": "scenes",
            "backbone": {"name": "resnet18", "width": 0.1, "stem": "small"},
            "epochs": 1,
            "batch_size": 4,
            "resident": kept,
            "augment": {"crop": 16},
            "moco": {"queue_size": 4, "bn_splits": 1},
            "mls": {"topk": 1},
        },
        "runs": {"mls": {}},
        "probe": {"linear": {"kind": "linear", "dataset": "scenes"}},
        "tables": {"main": {"columns": ["linear.mAP"]}},
        "execution": {"device": "cpu", "workers": 0, "threads": 1},
    }


def test_only_what_changes_pixels_is_in_the_id() -> None:
    ids = {
        kept: make_plan(check(experiment(kept), Path("x.yaml")), {}).stage("pretrain")[0].id
        for kept in ("no", "cpu", "cuda")
    }
    assert ids["no"] == ids["cpu"] != ids["cuda"]
    plans = [make_plan(check(experiment(kept), Path("x.yaml")), {}).stage("pretrain")[0] for kept in ("no", "cpu")]
    assert payload(plans[0]) == payload(plans[1])


def test_only_another_interpolation_is_in_the_id() -> None:
    ids = []
    for keys in ({}, {"interpolation": "bilinear"}, {"interpolation": "bicubic"}):
        raw = experiment("no")
        raw["pretrain"]["augment"] |= keys
        ids.append(make_plan(check(raw, Path("x.yaml")), {}).stage("pretrain")[0].id)
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("kept", ["cpu", "cuda"])
def test_resident_images_train_like_decoded_ones(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cuda`` runs on the CPU here; everything but the device is as on a GPU."""
    monkeypatch.chdir(tmp_path)
    losses = {}
    for choice in ("no", kept):
        raw = experiment(choice)
        raw["pretrain"] = {**raw["pretrain"], "epochs": 3, "precision": "fp32"}
        plan = make_plan(check(raw, Path("x.yaml")), {})
        (data,), (job,) = plan.stage("data"), plan.stage("pretrain")
        run_stage(plan, data, mls.data.build_store.run)
        execution = plan.loaded.experiment.execution
        device = set_up(execution.device, execution.threads, 0)
        work = tmp_path / choice
        work.mkdir()
        views = TwoViews(ImageStore(data.path), job.config, 0)
        context = Context(job, "run", work, work, execution, {}, plan)
        trainer = Trainer(context, job.config, MLS(job.config), views, device)
        trainer.run()
        losses[choice] = [row["loss"] for row in trainer.curves.rows]
    assert len(losses["no"]) == 3
    if kept == "cpu":
        assert losses["no"] == losses["cpu"]
    else:
        assert np.allclose(losses["no"], losses["cuda"], atol=0.15)  # a level of a pixel, in batches of four


def test_cuda_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(check(experiment("cuda"), Path("x.yaml")), {})
    run_stage(plan, plan.stage("data")[0], mls.data.build_store.run)
    with pytest.raises(MlsError, match="resident is 'cuda', but this run is on the CPU"):
        run_stage(plan, plan.stage("pretrain")[0], mls.train.pretrain.run)
