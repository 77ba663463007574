"""The classifier that is trained on images (linear, on a ResNet's pooled feature), its loss, schedule and optimiser.

    model = Classifier(backbone, classes=20, task=FinetuneProbe(kind="finetune", dataset="voc07"), seed=1000)
    loss = loss_of(model(images_BCHW), truth_BC, kept_BC, multi_label=True)

Weight decay applies to all trained parameters, including biases and batch norm, as in MoCo's, S3L's and CSRA's code.

Shape legend: B images of a batch, C classes (or the three channels of an image), D features.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.resnet import ResNet

from mls.config.probes import TrainedProbe
from mls.runtime.device import autocast


class Classifier(nn.Module):
    """A ResNet without its classifier, and a linear layer on its pooled feature."""

    def __init__(self, backbone: ResNet, classes: int, task: TrainedProbe, seed: int) -> None:
        """Put a linear layer on the backbone, which is trained, or frozen, in place.

        On a frozen backbone the layer starts as in MoCo and S3L: normal with standard deviation 0.01, zero bias.
        Otherwise it starts as in torch (and S3L's fine-tuning): uniform within 1 / sqrt(D).
        """
        super().__init__()
        self.frozen = task.kind == "sgd"
        self.fixed_statistics = task.kind == "finetune" and task.batchnorm == "frozen"
        self.precision = task.precision
        self.backbone = backbone.requires_grad_(not self.frozen)
        features = backbone.inplanes  # after construction, torchvision leaves the last stage's channels there
        normalised = task.kind == "sgd" and task.batchnorm
        self.norm = nn.BatchNorm1d(features, affine=False) if normalised else nn.Identity()
        self.fc = nn.Linear(features, classes)
        generator = torch.Generator().manual_seed(seed)
        if self.frozen:
            nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
            nn.init.zeros_(self.fc.bias)
        else:
            for parameter in self.fc.parameters():
                nn.init.uniform_(parameter, -(features**-0.5), features**-0.5, generator=generator)

    @property
    def trained(self) -> nn.Module:
        """The part that training changes, which a checkpoint holds."""
        return nn.ModuleList([self.norm, self.fc]) if self.frozen else self

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; what is frozen, or has fixed statistics, stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.fixed_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _NormBase):
                    module.eval()
        return self

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the pooled feature, float32 (B, D)."""
        with autocast(images_BCHW.device, self.precision):
            features_BD = self.backbone(images_BCHW.contiguous(memory_format=torch.channels_last))
        return cast(Tensor, features_BD.float())

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return logits, float32 (B, C), of pooled features."""
        return cast(Tensor, self.fc(self.norm(features_BD)))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits, float32 (B, C), of normalised images."""
        return self.logits(self.features(images_BCHW))


def loss_of(logits_BC: Tensor, truth_BC: Tensor, kept_BC: Tensor, multi_label: bool) -> Tensor:
    """Return the training loss of a batch: a float32 scalar.

    Multi-label: binary cross-entropy, averaged over the kept pairs of image and class (0 if none is kept).
    Single-label: cross-entropy; every image has one class, and nothing is ignored.
    """
    if not multi_label:
        return F.cross_entropy(logits_BC, truth_BC.int().argmax(1))
    kept = kept_BC.to(logits_BC.dtype)
    total = F.binary_cross_entropy_with_logits(logits_BC, truth_BC.to(logits_BC.dtype), kept, reduction="sum")
    return total / kept.sum().clamp(min=1)


def learning_rate(task: TrainedProbe, step: int, steps: int) -> float:
    """Return the learning rate at ``step`` (from 0) of the backbone or, if that is frozen, of the linear layer.

    With W warm-up steps, steps 0 to W - 1 rise evenly as in ``mls.train.schedule``: by (step + 1) / (W + 1).
    ``cosine`` falls to 0 from step W on; ``step`` divides by 10 at its shares of all steps, warm-up included.
    """
    warmup = round(task.warmup_epochs / task.epochs * steps)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if task.schedule == "cosine":
        share = max(0, step - warmup) / max(1, steps - warmup)
        return task.lr * rise * 0.5 * (1 + math.cos(math.pi * share))
    return task.lr * rise * 0.1 ** sum(step >= round(share * steps) for share in task.steps)


def make_optimizer(model: Classifier, task: TrainedProbe) -> torch.optim.SGD:
    """Return SGD; a group's ``times`` is its learning rate in units of the schedule's."""
    groups = [{"params": list(model.fc.parameters()), "times": 1.0}]
    if task.kind == "finetune":
        groups[0]["times"] = task.classifier_lr
        groups.append({"params": list(model.backbone.parameters()), "times": 1.0})
    return torch.optim.SGD(
        groups, lr=task.lr, momentum=task.momentum, nesterov=task.nesterov, weight_decay=task.weight_decay
    )
