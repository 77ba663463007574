"""Train transfers for some steps on as many ranks as there are, with keyed draws, and save the results for a test.

torchrun --standalone --nproc-per-node 2 -m tests.transfer.two_ranks FOLDER KIND ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import boxes

from mls.config.experiment import Backbone, Execution
from mls.config.transfers import Detectron2Detector, SemanticTransfer, TorchvisionDetector
from mls.data.image_store import ImageStore
from mls.models.backbone import build_backbone, save_backbone
from mls.models.batchnorm import synced
from mls.runtime.collectives import join, process_group, rank, sum_over_ranks, world
from mls.runtime.device import set_up
from mls.runtime.errors import DeterministicError
from mls.train import finetune
from mls.transfer.interface import Given, TransferTask, made_by
from tests.transfer.semantic_support import masked_store, tiny_task
from tests.transfer.support import SIDE, make_record, write_records

BACKBONE = Backbone(name="resnet18", width=0.125, stem="small")
STEPS = {"instance": 20, "detection": 3, "semantic": 20, "accumulated": 3, "fpn": 5}
"""Case -> steps: torchvision's detectors, PSPNet (also with two parts a step), Detectron2's Mask R-CNN with FPN."""
EMPTY = (4, 5)
"""Samples of detectors whose objects are dropped."""
PLANS = ([0, 1, 4, 5], [2, 4, 3, 0])
"""Samples of even and odd steps: in even ones the second of two ranks has no object."""


def task_of(kind: str) -> TorchvisionDetector | Detectron2Detector | SemanticTransfer:
    """A tiny task of four images a step."""
    if kind in ("semantic", "accumulated"):
        parts = 2 if kind == "accumulated" else 1
        return tiny_task(batch_size=4, iterations=STEPS[kind], dropout=0.3, accumulate=parts)
    common: dict[str, Any] = {"dataset": "rectangles", "batch_size": 4, "lr": 0.01, "warmup_steps": 2}
    if kind == "fpn":
        from tests.transfer.detectron2_support import task_of as detectron2_task

        return detectron2_task(**common, reference_batch=4, iterations=STEPS[kind], proposals=20)
    sizes = {"image_size": SIDE, "fpn_channels": 8, "head_channels": 16, "rois": 8, "proposals": 20}
    return TorchvisionDetector.model_validate({"kind": kind, "epochs": STEPS[kind] * 4 / 6, **sizes, **common})


def backbone_of(kind: str) -> Backbone:
    """The smallest ResNet that the case can have."""
    return Backbone(name="resnet18") if kind == "fpn" else BACKBONE


def make_data(folder: Path) -> None:
    """Write a store of images of unequal sizes with 1 to 4 objects, one with masks, and two backbones."""
    counts = [(4, SIDE), (1, SIDE + 30), (2, SIDE), (3, SIDE + 50), (1, SIDE), (2, SIDE + 20)]
    train = [make_record("train", i, count, wide=wide) for i, (count, wide) in enumerate(counts)]
    write_records(folder / "objects", [*train, *(make_record("test", i, wide=SIDE + 9 * i) for i in range(5))])
    masked_store(folder / "masked")
    torch.manual_seed(0)
    for kind in STEPS:
        save_backbone(build_backbone(backbone_of(kind)), folder / f"{kind}.safetensors")


def trace(kind: str, folder: Path, how: str = "") -> dict[str, Any]:
    """Predict, train and predict again; return predictions, each step's losses, the model's state, and metrics.

    Args:
        kind: key of `STEPS`.
        folder: has what `make_data` made.
        how: ``official``: with means of the ranks' own means, and each rank's own padding; ``poisoned``: the last
            rank's loss is NaN at step 1, and only the errors of the ranks are returned.
    """
    task = task_of(kind)
    store = ImageStore(folder / ("masked" if task.kind == "semantic" else "objects"))
    device = set_up("cpu", 1, 0)
    given = Given(store, backbone_of(kind), folder / f"{kind}.safetensors", 1000, device, lambda line: None)
    work = folder / f"work-{kind}-{world()}-{how}"
    work.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "CURVE_EVERY", 1)
        if how == "official":
            patch.setattr("mls.transfer.torchvision_ranks.share", torch.ones_like)
            patch.setattr("mls.transfer.torchvision_ranks.largest", list)
        if task.backend == "detectron2":  # its boxes are float32 in any case
            nms = boxes.batched_nms
            patch.setattr(boxes, "batched_nms", lambda xyxy, scores, *how: nms(xyxy, scores.float(), *how))
        transfer = made_by(task)(task, given)
        if task.kind != "semantic":
            scripted(transfer)
        transfer.share_batch()
        transfer.model.double()
        if task.backend == "torchvision":
            transfer.model.register_forward_pre_hook(in_float64)
        predicted = join(transfer.predict(1, "test"))
        execution = Execution(threads=1, workers=1, device="cpu")
        if how == "poisoned":
            return {"errors": join([error_of(transfer, execution, work)])}
        rows = finetune.finetune(transfer, execution=execution, work=work, log=given.log, name="test").curves
        transfer.finish(1, "test")
        state = {name: value.clone() for name, value in transfer.model.state_dict().items()}
        results = join(transfer.predict(1, "test"))
        metrics = transfer.score(results) if rank() == 0 and task.backend == "torchvision" else {}
    metrics.pop("per_class", None)
    return {"predicted": predicted, "rows": rows, "state": state, "metrics": metrics, "world": world()}


def error_of(transfer: TransferTask, execution: Execution, work: Path) -> str:
    """Train with a loss that is not finite on the last rank; return the error."""
    original = transfer.losses

    def losses(batch: Any) -> dict[str, torch.Tensor]:
        poisoned = transfer.draws is not None and transfer.draws.step == 1 and rank() == world() - 1
        return {name: loss * (torch.nan if poisoned else 1.0) for name, loss in original(batch).items()}

    transfer.losses = losses  # type: ignore[method-assign]
    with pytest.raises(DeterministicError) as error:
        finetune.finetune(transfer, execution=execution, work=work, log=transfer.given.log, name="test")
    return str(error.value)


def normed(counts: tuple[int, ...] = (3, 0, 2)) -> list[torch.Tensor]:
    """Normalise maps in three batches, each rank ``counts`` of its own; return outputs, gradients and statistics.

    Two ranks take turns: a batch's maps are the first rank's, then the second's.
    """
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4).double()
    nn.init.normal_(plain.weight)
    norm = synced(nn.Sequential(plain), torch.device("cpu"))
    found: list[list[torch.Tensor]] = []
    for count in counts:
        maps_BCHW = torch.randn(5, 4, 3, 2, dtype=torch.float64)
        weights_BCHW = torch.randn_like(maps_BCHW)
        share = slice(None) if world() == 1 else (slice(0, count), slice(count, 5))[rank()]
        own_BCHW = maps_BCHW[share].requires_grad_()
        out_BCHW = norm(own_BCHW)
        (out_BCHW * weights_BCHW[share]).sum().backward()
        assert own_BCHW.grad is not None
        found += join([out_BCHW.detach()]), join([own_BCHW.grad])
    gradients = [sum_over_ranks(parameter.grad) for parameter in norm.parameters() if parameter.grad is not None]
    return [torch.cat(parts) for parts in found if parts] + gradients + list(norm.buffers())


def scripted(transfer: TransferTask) -> None:
    """Train on the batches of `PLANS`, without the objects of `EMPTY`."""
    original = transfer.load_sample

    def plan(steps: range) -> Iterator[list[tuple[int, bool, int]]]:
        return ([(index, step % 3 == 0, step) for index in PLANS[step % 2]] for step in steps)

    def load_sample(planned: tuple[int, bool, int]) -> Any:
        sample = original(planned)
        if planned[0] not in EMPTY:
            return sample
        if isinstance(sample, dict):
            return {**sample, "instances": sample["instances"][:0]}
        return sample[0], {key: value[:0] for key, value in sample[1].items()}

    transfer.plan, transfer.load_sample = plan, load_sample  # type: ignore[method-assign]


def in_float64(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert a model's images."""
    images, *targets = given
    return ([one.double() for one in images] if isinstance(images, list) else images.double(), *targets)


if __name__ == "__main__":
    with process_group():
        out = Path(sys.argv[1])
        found: dict[str, Any] = {case: trace(case.split()[-1], out, case.rpartition(" ")[0]) for case in sys.argv[2:]}
        found["norm"] = normed()
        if rank() == 0:
            torch.save(found, out / "two.pt")
