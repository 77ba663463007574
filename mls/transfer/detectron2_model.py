"""Detectron2's configuration of the detectors that the paper's lineage fine-tunes, made from its model zoo.

    cfg = make_config(task, backbone, num_classes=80)

It differs from the zoo's files as MoCo's, InfoMin's and DenseCL's detection configs do: every stage is trained with
batch norm over the whole batch, new parts have it too, pixels are RGB in pretraining's normalisation, and the stride is
in the 3x3 convolution, as in torchvision's ResNet. Call `mls.transfer.detectron2_install.require_detectron2` before
importing this module.
"""

from __future__ import annotations

from typing import Any

from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from mls.config.experiment import Backbone
from mls.config.transfers import Detectron2Detector
from mls.data.augment import MEAN, STD
from mls.models.names import to_detectron2

ZOO = {
    ("instance", "fpn"): "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    ("instance", "c4"): "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    ("detection", "fpn"): "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    ("detection", "c4"): "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
}
"""Kind and architecture -> the file of the model zoo that a model starts from."""


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
    """Heads on C4 with a batch norm after the last stage (MoCo, arXiv 1911.05722, appendix A.2)."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


def make_config(task: Detectron2Detector, backbone: Backbone, num_classes: int) -> Any:
    """Return Detectron2's own configuration of a task, from which its model is built.

    SyncBN is written as BN, which is the same in one process; `mls.models.batchnorm.synced` converts it for several.
    """
    cfg = model_zoo.get_config(ZOO[task.kind, task.architecture])
    names = {"SyncBN": "BN", "FrozenBN": "FrozenBN", "none": ""}
    norm, fpn_norm, head_norm = (names[one] for one in (task.norm, task.fpn_norm, task.head_norm))
    model: CfgNode = cfg.MODEL
    model.DEVICE = "cpu"  # the model is built and compared there: GPUs round more coarsely
    model.WEIGHTS = ""
    model.PIXEL_MEAN = [255 * value for value in MEAN]
    model.PIXEL_STD = [255 * value for value in STD]
    model.BACKBONE.FREEZE_AT = task.freeze_at
    model.RESNETS.DEPTH = int(backbone.name.removeprefix("resnet"))
    model.RESNETS.NORM = norm
    model.RESNETS.STRIDE_IN_1X1 = False
    if backbone.name in ("resnet18", "resnet34"):
        model.RESNETS.RES2_OUT_CHANNELS = 64
    model.ROI_HEADS.NUM_CLASSES = num_classes
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = task.rois
    model.RPN.POST_NMS_TOPK_TEST = task.proposals
    if task.architecture == "c4":
        model.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm" if task.extra_norm else "Res5ROIHeads"
    else:
        model.FPN.NORM = fpn_norm
        model.ROI_BOX_HEAD.NUM_CONV, model.ROI_BOX_HEAD.NUM_FC = {"2fc": (0, 2), "4conv1fc": (4, 1)}[task.box_head]
        model.ROI_BOX_HEAD.NORM = head_norm
        model.ROI_MASK_HEAD.NORM = head_norm
    cfg.INPUT.FORMAT = "RGB"
    return cfg


def place(name: str, architecture: str) -> str:
    """Return the model's name for a tensor that torchvision calls ``name``."""
    inside = to_detectron2(name)
    if architecture == "fpn":
        return f"backbone.bottom_up.{inside}"
    return f"roi_heads.{inside}" if inside.startswith("res5.") else f"backbone.{inside}"
