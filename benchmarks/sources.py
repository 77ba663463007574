"""How far details here are from the official code: LARS, blur, masks, the best epoch in place of the last, ranks.

    python benchmarks/sources.py                                    # all five, with the photos of $MLS_DATA/coco-tiny
    python benchmarks/sources.py lars epochs ranks                  # these need no photos

``lars``: the first 30 steps of SlotCon in experiments/peers-lr.yaml, with a quarter of its batch; the trust ratio of
timm's LARS against SlotCon's, of every scaled tensor in every step. ``blur``: Pillow's box blur, which MoCo's code
calls, against our Gaussian, on 224-px squares of photos. ``masks``: resizing by OpenCV's nearest rule, which
mmsegmentation uses (torch's ``nearest`` is the same), against ours. ``epochs``: a small network, from random weights,
on generated scenes; test mAP of the best epoch less that of the last. ``ranks``: losses of torchvision's heads in 20
steps of 16 generated scenes, after 60 of training; the mean of 8 ranks' means against the mean of all. Everything is
seeded. Lines go to benchmarks/results/sources.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageFilter
from pycocotools.coco import COCO
from timm.optim.lars import Lars
from torch.nn import functional as F
from torchvision.models.detection import roi_heads
from torchvision.transforms.v2 import InterpolationMode, functional

from mls.config.experiment import Backbone, Execution
from mls.config.load import check, read_yaml
from mls.config.probes import FinetuneProbe
from mls.config.transfers import TorchvisionDetector
from mls.data import build_store
from mls.data.augment import blur
from mls.data.eval_view import square
from mls.data.image_store import ImageStore
from mls.data.loader import TwoViews, batches
from mls.methods.method import build_method
from mls.metrics import mean_average_precision
from mls.models.backbone import build_backbone, save_backbone
from mls.pipeline.plan import Plan, make_plan, read_lock
from mls.pipeline.provenance import code
from mls.pipeline.runner import Context
from mls.probe.classifier import Classifier
from mls.probe.features import outputs_of, prepared
from mls.probe.finetune import ClassifierTraining, LabelledBatch, Views
from mls.runtime.device import set_up
from mls.train.finetune import finetune
from mls.train.loop import Trainer
from mls.transfer.interface import Given
from mls.transfer.torchvision import TorchvisionDetection

RESULTS = Path(__file__).resolve().parent / "results" / "sources.csv"
CPU = torch.device("cpu")
SCENES = {"source": "scenes", "train": 512, "val": 8, "test": 512, "size": 32}
SEEDS = (0, 1, 2)
EPOCHS = 40
"""Of each small fine-tuning."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("measured", nargs="*", choices=[[], *MEASURED], default=list(MEASURED))
    parser.add_argument("--coco", type=Path, default=Path(os.environ.get("MLS_DATA", "data")) / "coco-tiny")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.measured:
            for row in MEASURED[name](args.coco, Path(folder)):
                write({"measured": name, **row, "torch": torch.__version__, "code": (code()["revision"] or "")[:10]})


def prepare(folder: Path, scenes: dict[str, Any]) -> tuple[Plan, ImageStore]:
    """Plan SlotCon's run on generated scenes, and make these."""
    raw = read_yaml(Path("experiments/peers-lr.yaml"))
    raw["datasets"] = {"scenes": scenes}
    raw["pretrain"] |= {"batch_size": 32, "resident": "no"}
    plan = make_plan(check(raw, Path("peers-lr.yaml")), read_lock(Path("data.lock")))
    out = folder / f"{scenes['size']}"
    out.mkdir()
    execution = plan.loaded.experiment.execution
    build_store.run(Context(plan.stage("data")[0], "scenes", out, out, execution, {}, plan))
    return plan, ImageStore(out)


def lars(_: Path, folder: Path) -> list[dict[str, object]]:
    """Divide SlotCon's trust ratio by timm's: |g| + d |w| by |g + d w|, for decay d."""
    plan, store = prepare(folder, SCENES | {"size": 64})
    job = plan.find("pretrain", "slotcon-lars")[0]
    execution = Execution(threads=1, workers=0, device="cpu")
    device, found, original = set_up("cpu", 1, 0), [], Lars.step

    def recorded(optimizer: Lars, *given: Any) -> None:
        for group in optimizer.param_groups:
            decay = group["weight_decay"]
            for p in group["params"] if group["always_adapt"] else []:
                if p.grad is not None and p.norm() > 0:
                    w = p.detach()
                    theirs, ours = (p.grad + decay * w).norm(), p.grad.norm() + decay * w.norm() + group["eps"]
                    found.append(float(ours / theirs) - 1)
        original(optimizer, *given)

    context = Context(job, "slotcon-lars", folder, folder, execution, {}, plan)
    views = TwoViews(store, job.config, 0, threads=execution.threads)
    trainer = Trainer(context, job.config, build_method(job.config), views, device)
    with patch.object(Lars, "step", recorded):
        for _step, batch in zip(range(30), batches(views, 0, 0), strict=False):
            trainer._train_step(batch)
    percent = 100 * np.array(found)
    return [row("SlotCon's trust ratio above timm's, percent", percent, len(found))]


def blurs(coco: Path, _: Path) -> list[dict[str, object]]:
    """Blur squares of photos both ways, with the standard deviations of MoCo-v2's views."""
    sigma_N = np.random.default_rng(0).uniform(0.1, 2.0, len(photos := sorted(coco.glob("*2017/*.jpg"))))
    found = []
    for photo, sigma in zip(photos, sigma_N, strict=True):
        image = Image.open(photo).convert("RGB")
        image_CHW = square(functional.pil_to_tensor(image), 224, 256)
        theirs = functional.to_pil_image(image_CHW).filter(ImageFilter.GaussianBlur(radius=float(sigma)))
        ours_CHW = blur(image_CHW[None] / 255, torch.tensor([sigma]), radius=6)[0] * 255
        found.append((functional.pil_to_tensor(theirs).float() - ours_CHW).abs().flatten())
    return [row("difference of two blurs, levels of 255", torch.cat(found).numpy(), len(photos))]


def masks(coco: Path, _: Path) -> list[dict[str, object]]:
    """Resize index masks by both rules, by the factors of mmsegmentation's views."""
    annotations = COCO(coco / "annotations" / "instances_val2017.json")
    rng, found = np.random.default_rng(0), []
    for image in annotations.loadImgs(sorted(annotations.getImgIds())):
        mask_HW = np.zeros((image["height"], image["width"]), np.uint8)
        for one in annotations.loadAnns(annotations.getAnnIds(image["id"], iscrowd=False)):
            mask_HW[annotations.annToMask(one) > 0] = one["category_id"]
        size = [int(side * rng.uniform(0.5, 2.0) + 0.5) for side in mask_HW.shape]
        ours, theirs = (
            functional.resize(torch.from_numpy(mask_HW)[None], size, interpolation=rule)
            for rule in (InterpolationMode.NEAREST_EXACT, InterpolationMode.NEAREST)
        )
        found.append(100 * float((ours != theirs).float().mean()))
    return [row("pixels of a mask that differ, percent", np.array(found), len(found))]


class Watched(ClassifierTraining):
    """A fine-tuning that is scored on test after each epoch."""

    def __init__(self, views: Views, task: FinetuneProbe) -> None:
        backbone = build_backbone(Backbone(name="resnet18", width=0.25, stem="small"))
        super().__init__(Classifier(backbone, len(views.store.classes), task, views.seed), views, CPU)
        self.scores: list[float] = []

    def batches(self, steps: range, workers: int) -> Generator[LabelledBatch]:
        """Yield the batches, and score between two epochs."""
        for step, batch in enumerate(super().batches(steps, workers)):
            if step and step % (len(self.views) // self.batch_size) == 0:
                self.score()
            yield batch

    def score(self) -> None:
        """Add the mAP of test, percent."""
        store, rows = self.views.store, self.views.store.split("test")
        squares = prepared(store, rows, self.task.augment.crop, None, "crop", 1)
        logits_NC = outputs_of(self.model.eval(), squares, len(rows), CPU, "test")
        self.scores.append(100 * mean_average_precision(logits_NC, store.labels(rows)))
        self.model.train()


def epochs(_: Path, folder: Path) -> list[dict[str, object]]:
    """Fine-tune with both schedules and three seeds."""
    store, lines = prepare(folder, SCENES)[1], []
    for schedule in ("cosine", "step"):
        found = []
        for seed in SEEDS:
            set_up("cpu", 1, seed)
            task = FinetuneProbe.model_validate(
                {"kind": "finetune", "dataset": "d", "augment": {"crop": 32, "scale": [0.5, 1.0]}, "lr": 0.05}
                | {"epochs": EPOCHS, "batch_size": 32, "schedule": schedule}
            )
            training = Watched(Views(store, store.split("train"), task, seed), task)
            (work := folder / f"{schedule}-{seed}").mkdir()
            finetune(training, execution=Execution(threads=1, workers=1), work=work, log=print, name=work.name)
            training.score()
            assert len(training.scores) == EPOCHS
            found.append(max(training.scores) - training.scores[-1])
        lines.append(row(f"best epoch on test above the last, {schedule}, points of mAP", np.array(found), len(found)))
    return lines


def ranks(_: Path, folder: Path) -> list[dict[str, object]]:
    """Compare the mean of the means of 8 ranks, of two images each, with the mean over their samples."""
    store, steps, learned = prepare(folder, {**SCENES, "size": 48})[1], 20, 60
    set_up("cpu", 1, 0)
    layout = Backbone(name="resnet18", width=0.25, stem="small")
    save_backbone(build_backbone(layout), folder / "backbone.safetensors")
    sizes = {"image_size": 48, "fpn_channels": 32, "head_channels": 64, "rois": 64, "proposals": 100}
    task = TorchvisionDetector.model_validate(
        {"kind": "instance", "dataset": "d", "epochs": learned * 16 / 512, "warmup_steps": 10, **sizes}
    )
    training = TorchvisionDetection(task, Given(store, layout, folder / "backbone.safetensors", 0, CPU, print))
    (work := folder / "ranks").mkdir()
    finetune(training, execution=Execution(threads=1, workers=1), work=work, log=print, name=work.name)
    apart: dict[str, list[float]] = {"class loss": [], "mask loss": [], "weight of a class": [], "weight of a mask": []}

    def compare(loss: str, mean_B: list[float], count_B: list[int]) -> torch.Tensor:
        """Note by how many percent the ranks' mean is off, and a sample's weight in it, on average over the samples."""
        sum_R2, count_R2 = ((np.array(mean_B) * count_B).reshape(-1, 2), np.array(count_B).reshape(-1, 2))
        official = (sum_R2.sum(1) / np.maximum(count_R2.sum(1), 1)).mean()
        apart[f"{loss} loss"].append(abs(100 * official / (sum_R2.sum() / count_R2.sum()) - 100))
        count_R = count_R2.sum(1)
        apart[f"weight of a {loss}"].append(100 * float(abs(count_R.mean() - count_R).sum() / count_R.sum()))
        return torch.zeros(())

    def of_classes(logits: torch.Tensor, deltas: Any, labels: list[torch.Tensor], *targets: Any) -> Any:
        counts = [len(one) for one in labels]
        pairs = zip(logits.split(counts), labels, strict=True)
        loss = compare("class", [float(F.cross_entropy(one, truth)) for one, truth in pairs], counts)
        return loss, loss

    def of_masks(logits: torch.Tensor, *per_image: list[torch.Tensor]) -> torch.Tensor:
        counts = [len(boxes) for boxes in per_image[0]]
        images = zip(logits.split(counts), *([[one] for one in given] for given in per_image), strict=True)
        return compare("mask", [float(original(*image)) for image in images], counts)

    original = roi_heads.maskrcnn_loss
    with patch.object(roi_heads, "maskrcnn_loss", of_masks), patch.object(roi_heads, "fastrcnn_loss", of_classes):
        for batch in training.batches(range(learned, learned + steps), 1):
            with torch.no_grad():
                training.losses(batch)
    return [row(f"{what} on 8 ranks apart, percent", np.array(found), steps) for what, found in apart.items()]


def row(what: str, values: np.ndarray[Any, Any], count: int) -> dict[str, object]:
    """One line of the results."""
    found = {"mean": values.mean(), "median": np.median(values), "highest": values.max()}
    return {"what": what, **{name: f"{value:.3g}" for name, value in found.items()}, "of": count}


def write(line: dict[str, object]) -> None:
    """Print a line and append it."""
    print(line, flush=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


MEASURED = {"lars": lars, "blur": blurs, "masks": masks, "epochs": epochs, "ranks": ranks}

if __name__ == "__main__":
    main()
