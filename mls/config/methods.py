"""The methods that give a backbone: the block of params of each, and the list of them.

    METHODS["byol"].reads       # the params of ``pretrain`` that can change its result
    TRAINED                     # methods that train, and therefore read a dataset

How one is added: docs/extending.md. The methods themselves are in ``mls.methods``, which planning does not import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mls.config.section import Count, Positive, Section, Share, alternatives


class Moco(Section):
    """MoCo-v2: what the contrastive base reads, and MLS with it."""

    queue_size: Count = 4096
    """D, entries of each dictionary [paper; Fig. 5a]. More than a quarter of the train images makes an image its
    own negative."""
    temperature: Positive = 0.2
    """tau, of InfoNCE and of the multi-label loss alike [paper]."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """m, of the key encoder's moving average [paper]."""
    projection_dim: Count = 256
    """d_z [paper text; its Fig. 3 looks like 128]."""
    bn_splits: Count = 8
    """Groups of the global batch whose batch norm statistics are their own, keys shuffled between the groups
    [lineage: MoCo's shuffled batch norm, DenseCL's 8 GPUs on COCO; the paper is silent]. Whatever the number of
    ranks, the result is that of the groups: a rank computes its share of them. 1: one group without shuffling,
    plain batch norm on one device, SyncBN on several; query and key then see each other's statistics."""


class Mls(Section):
    """The multi-label term (Eq. 6-10). It reads ``moco`` too: MLS is MoCo-v2 plus one loss."""

    topk: Count = 20
    """k, positive pseudo-labels per image [paper; Table 8]."""
    weight: Annotated[float, Field(ge=0)] = 0.5
    """lambda of Eq. 10 [paper; Fig. 5b]."""
    terms: Literal["bce", "bce_pos", "knn", "none"] = "bce"
    """Which loss [Table 6]: Eq. 9; its positive half; the mean log-softmax of the k neighbours; nothing (MoCo-v2)."""
    label_space: Literal["backbone", "projection", "truth"] = "backbone"
    """Where neighbours are looked up [Table 7]: g in Q_g, or z in Q_z. ``truth`` is no self-supervision but its upper
    bound, for study: the entries whose images share most ground-truth classes."""
    logit_space: Literal["backbone", "projection"] = "projection"
    """What is classified by which dictionary [Table 7]: z by Q_z, or g (normalised) by Q_g."""
    reduction: Literal["mean", "sum", "balanced", "positives"] = "mean"
    """Of ``bce`` and ``bce_pos`` over the dictionary: divided by D as Eq. 9 says; not divided; mean of the
    positives plus mean of the negatives; divided by k. Always the mean over the batch. ``knn`` reads it not."""
    bias: Literal["none", "prior"] = "none"
    """Added to every logit of ``bce`` and ``bce_pos``, after the temperature: nothing [paper, Eq. 9]; or
    log(k / (D - k)), with which a classifier that knows nothing says k / D, as RetinaNet's and SigLIP's do."""
    centre: bool = False
    """Subtract the dictionary's mean from the classifiers of Eq. 8, as DINO centres its teacher: negatives then push
    from their differences alone, not from what all images have in common. ``knn`` is not changed by it. The paper does
    not centre."""
    enqueue: Literal["after", "before", "split"] = "after"
    """Which dictionary the term sees: the one before this batch's keys; the one with them (the image's own key
    included); labels with them and logits without, as the ancestor's code does. InfoNCE's negatives are always
    the one before. The paper is silent."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of InfoNCE alone [the paper names it as one cure of instability, without a number]."""
    ramp_epochs: Annotated[float, Field(ge=0)] = 0.0
    """After that, epochs over which lambda rises linearly to ``weight``."""


class Densecl(Section):
    """DenseCL (arXiv 2011.09157): MoCo-v2 whose InfoNCE is shared with one of matched places. It reads ``moco`` too;
    its authors' values there on COCO: queue_size 65536, momentum 0.999, projection_dim 128."""

    weight: Share = 0.5
    """lambda: ``(1 - lambda)`` of the global and lambda of the dense InfoNCE [paper, Eq. 3]."""


class Byol(Section):
    """BYOL (arXiv 2006.07733), on COCO as ORL trains it (arXiv 2106.11952, its code). Of ``moco`` it reads
    ``bn_splits`` (its authors' batch norm is over the whole batch: 1), and ``queue_size`` for the log alone."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """m at the beginning; half a cosine takes it to 1 at the end [ORL on COCO; the paper: 0.996 for 1000 epochs]."""
    hidden_dim: Count = 4096
    """Width of the projector and of the predictor [paper]."""
    projection_dim: Count = 256
    """d, of projection and prediction [paper]."""


class Slotcon(Section):
    """SlotCon (arXiv 2205.15288, values of its code on COCO): pixels are grouped by prototypes, and the groups
    contrasted. Of ``moco`` it reads what BYOL reads."""

    prototypes: Count = 256
    """K [COCO; 2048 on ImageNet]."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """m at the beginning; half a cosine takes it to 1 at the end."""
    hidden_dim: Count = 4096
    """Width of the projector and of the slots' predictor, three layers each."""
    projection_dim: Count = 256
    """d, of pixels, prototypes and slots."""
    student_temperature: Positive = 0.1
    """tau_s, of the student's assignment of pixels."""
    teacher_temperature: Positive = 0.07
    """tau_t, of the teacher's assignment, and of both networks' when they pool slots."""
    slot_temperature: Positive = 0.2
    """tau_c, of the slots' InfoNCE."""
    centre_momentum: Share = 0.9
    """lambda_c, of the moving mean of the teacher's scores, which is subtracted from them."""
    weight: Share = 0.5
    """lambda_g: so much of the grouping loss and ``1 - lambda_g`` of the slots'."""


class Weights(Section):
    """Someone's own weights: torchvision, timm, MoCo, DenseCL or Detectron2 keys; ``.pth`` or ``.safetensors``."""

    file: str
    """Looked up under ``$MLS_WEIGHTS`` (default ``weights/``); never part of an id."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file; this is what identifies the weights."""


class Imagenet(Section):
    """torchvision's supervised weights, from ``$MLS_WEIGHTS`` or torchvision's own download."""

    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = "IMAGENET1K_V1"


class Blocks(Section):
    """The block of each method, under its name."""

    moco: Moco = Moco()
    mls: Mls = Mls()
    densecl: Densecl = Densecl()
    byol: Byol = Byol()
    slotcon: Slotcon = Slotcon()
    weights: Weights | None = None
    imagenet: Imagenet = Imagenet()


# ------------------------------------------------------------------------------------- the list

_ENGINE = ("epochs", "batch_size", "precision", "channels_last", "compile", "resident", "augment", "optimizer")
_DICTIONARY = ("moco.queue_size", "moco.bn_splits")


@dataclass(frozen=True)
class MethodEntry:
    """What the rest of the package has to know of a method."""

    blocks: tuple[str, ...] = ()
    """What it reads of `Blocks`: whole blocks, or keys of one."""
    made_by: str = ""
    """``module:Class`` of what trains it, a `mls.methods.method.Method`; empty where nothing is trained."""
    losses: Mapping[str, str] = field(default_factory=dict)
    """The columns of its log that are losses -> their titles in the figure."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The params of ``pretrain`` that it reads; the others can't change its result."""
        return ("method", "backbone", *(_ENGINE if self.made_by else ()), *self.blocks)


_INFO_NCE = {"info_nce": "InfoNCE"}
METHODS: dict[str, MethodEntry] = {
    "mls": MethodEntry(("moco", "mls"), "mls.methods.mls:MLS", _INFO_NCE | {"multi_label": "multi-label loss"}),
    "moco": MethodEntry(("moco",), "mls.methods.moco:MoCo", _INFO_NCE),
    "densecl": MethodEntry(
        ("moco", "densecl"),
        "mls.methods.densecl:DenseCL",
        _INFO_NCE | {"dense": "InfoNCE of matched cells (DenseCL)"},
    ),
    "byol": MethodEntry((*_DICTIONARY, "byol"), "mls.methods.byol:BYOL", {"prediction": "prediction (BYOL)"}),
    "slotcon": MethodEntry(
        (*_DICTIONARY, "slotcon"),
        "mls.methods.slotcon:SlotCon",
        {"grouping": "grouping (SlotCon)", "slots": "InfoNCE of slots (SlotCon)"},
    ),
    "none": MethodEntry(),
    "weights": MethodEntry(("weights",)),
    "imagenet": MethodEntry(("imagenet",)),
}
"""Every value of ``pretrain.method``."""

TRAINED = tuple(name for name, entry in METHODS.items() if entry.made_by)
"""Methods that train, and therefore read a dataset."""


def known_method(name: str) -> str:
    """Check that there is a method of this name."""
    if name not in METHODS:
        raise ValueError(f"Input should be {alternatives(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(known_method)]
