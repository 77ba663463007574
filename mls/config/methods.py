"""The methods that produce a backbone: each one's block of params, and the registry `METHODS`.

    METHODS["byol"].reads       # the params of ``pretrain`` that can change its result
    TRAINED                     # methods that train, and therefore read a data set

docs/extending.md shows how to add one. The methods themselves are in ``mls.methods``, which planning does not import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mls.config.section import Section, alternatives
from mls.config.values import Channels, Count, Momentum, NonNegative, Positive, Share, at_most


class Moco(Section):
    """MoCo-v2, the contrastive base of MLS and DenseCL."""

    queue_size: Annotated[Count, at_most(2**20, "as many of ResNet-50's features take 8.6 GB")] = 4096
    """D, entries of each dictionary [paper; Fig. 5a]. If it exceeds a quarter of the train images, images meet their
    own earlier keys as negatives."""
    temperature: Positive = 0.2
    """tau of InfoNCE and of the multi-label loss [paper]."""
    momentum: Momentum = 0.995
    """m of the key encoder's moving average [paper]."""
    projection_dim: Channels = 256
    """d_z, width of the projection [paper text; its Fig. 3 looks like 128]."""
    bn_splits: Count = 8
    """Number of groups that the global batch is split into for batch norm: each group has its own statistics, and keys
    are shuffled between groups [lineage: MoCo's shuffled batch norm, DenseCL's 8 GPUs on COCO; the paper is silent].
    The result does not depend on the number of ranks: each rank computes its share of the groups. 1 means no groups
    and no shuffling: plain batch norm on one device, SyncBN on several; query and key then share statistics."""


class Mls(Section):
    """The multi-label loss (Eq. 6-10). MLS is MoCo-v2 plus this loss, so it reads ``moco`` too."""

    topk: Count = 20
    """k, number of positive pseudo-labels per image [paper; Table 8]."""
    weight: NonNegative = 0.5
    """lambda of Eq. 10 [paper; Fig. 5b]."""
    terms: Literal["bce", "bce_pos", "knn", "none"] = "bce"
    """Which loss [Table 6]. ``bce``: Eq. 9; ``bce_pos``: its positive half; ``knn``: the mean log-softmax of the k
    neighbours; ``none``: no loss, which leaves MoCo-v2."""
    label_space: Literal["backbone", "projection", "truth"] = "backbone"
    """Where neighbours are looked up [Table 7]. ``backbone``: g in Q_g; ``projection``: z in Q_z; ``truth``: the
    entries whose images share the most ground-truth classes, an oracle upper bound for study, not self-supervised."""
    logit_space: Literal["backbone", "projection"] = "projection"
    """What is classified [Table 7]. ``projection``: z by Q_z; ``backbone``: g (normalised) by Q_g."""
    reduction: Literal["mean", "sum", "balanced", "positives"] = "mean"
    """How ``bce`` and ``bce_pos`` are reduced over the dictionary. ``mean``: the sum divided by D, as in Eq. 9;
    ``sum``: the plain sum; ``balanced``: mean of the positives plus mean of the negatives; ``positives``: the sum
    divided by k. The result is averaged over the batch. ``knn`` ignores this key."""
    bias: Literal["none", "prior"] = "none"
    """Added to every logit of ``bce`` and ``bce_pos``, after the temperature. ``none``: nothing [paper, Eq. 9];
    ``prior``: log(k / (D - k)), so that an uninformed classifier predicts k / D, as in RetinaNet and SigLIP."""
    centre: bool = False
    """Subtract the dictionary's mean from the classifiers of Eq. 8, as DINO centres its teacher. Negatives then push
    apart only what differs between images, not what all of them share. ``knn`` is not affected. The paper does not
    centre."""
    enqueue: Literal["after", "before", "split"] = "after"
    """When this batch's keys enter the dictionary that the loss sees. ``after``: after the loss; ``before``: before it,
    so that each image's own key is an entry; ``split``: labels see the new keys and logits do not, as in the code that
    MLS grew out of. InfoNCE's negatives never include the new keys. The paper is silent."""
    warmup_epochs: NonNegative = 0.0
    """Epochs with InfoNCE only [the paper names this as one cure of instability, without a number]."""
    ramp_epochs: NonNegative = 0.0
    """Epochs after the warm-up over which lambda rises linearly to ``weight``."""


DEFAULT_POSITIVES = Mls().topk
"""k of the label agreement for methods without positives of their own: the paper's. Another changes their logs."""


class Densecl(Section):
    """DenseCL (arXiv 2011.09157): MoCo-v2 with a second InfoNCE between matching places of the two views.

    It reads ``moco`` too. Its authors' values there for COCO: queue_size 65536, momentum 0.999, projection_dim 128.
    """

    weight: Share = 0.5
    """lambda: the loss is (1 - lambda) x global InfoNCE + lambda x dense InfoNCE [paper, Eq. 3]."""


class Byol(Section):
    """BYOL (arXiv 2006.07733), on COCO as ORL trains it (arXiv 2106.11952 and its code).

    From ``moco`` it reads ``bn_splits`` (1 for its authors, who normalise over the whole batch), and ``queue_size``,
    which only changes the log.
    """

    momentum: Momentum = 0.99
    """m at the start; it rises to 1 along half a cosine [ORL on COCO; the paper: 0.996 for 1000 epochs]."""
    hidden_dim: Channels = 4096
    """Hidden width of the projector and of the predictor [paper]."""
    projection_dim: Channels = 256
    """d, width of the projection and of the prediction [paper]."""


class Slotcon(Section):
    """SlotCon (arXiv 2205.15288): prototypes group pixels into slots, and slots are contrasted.

    Values are those of its code on COCO. From ``moco`` it reads the same keys as BYOL.
    """

    prototypes: Channels = 256
    """K, number of prototypes [COCO; 2048 on ImageNet]."""
    momentum: Momentum = 0.99
    """m at the start; it rises to 1 along half a cosine."""
    hidden_dim: Channels = 4096
    """Hidden width of the projector and of the slot predictor, three layers each."""
    projection_dim: Channels = 256
    """d, width of pixels, prototypes and slots."""
    student_temperature: Positive = 0.1
    """tau_s of the student's pixel assignment."""
    teacher_temperature: Positive = 0.07
    """tau_t of the teacher's pixel assignment, and of both networks' when they pool slots."""
    slot_temperature: Positive = 0.2
    """tau_c of the InfoNCE between slots."""
    centre_momentum: Share = 0.9
    """lambda_c of the moving mean that is subtracted from the teacher's scores."""
    weight: Share = 0.5
    """lambda_g: the loss is lambda_g x grouping loss + (1 - lambda_g) x slot loss."""


class Weights(Section):
    """Your own weights: a checkpoint that holds a ResNet, see docs/experiments.md for the layouts."""

    file: str
    """A file of torch or safetensors under ``$MLS_WEIGHTS`` (default ``weights/``); never part of an id."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Checksum of the file, which identifies the weights."""
    prefix: str | None = None
    """Which network of the file, where several fit: the start of its tensors' names, such as ``teacher.backbone`` for
    ``teacher.backbone.conv1.weight``."""


class Imagenet(Section):
    """torchvision's supervised weights, from ``$MLS_WEIGHTS`` or torchvision's own download."""

    weights: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] = "IMAGENET1K_V1"


class Blocks(Section):
    """One block for each method, under its name."""

    moco: Moco = Moco()
    mls: Mls = Mls()
    densecl: Densecl = Densecl()
    byol: Byol = Byol()
    slotcon: Slotcon = Slotcon()
    weights: Weights | None = None
    imagenet: Imagenet = Imagenet()


# --------------------------------------------------------------------------------- the registry

_ENGINE = ("epochs", "batch_size", "precision", "channels_last", "compile", "resident", "augment", "optimizer")
_DICTIONARY = ("moco.queue_size", "moco.bn_splits")


@dataclass(frozen=True)
class MethodEntry:
    """What the rest of the package knows about a method."""

    blocks: tuple[str, ...] = ()
    """The part of `Blocks` that it reads: whole blocks, or keys of a block."""
    made_by: str = ""
    """``module:Class`` of the `mls.methods.method.Method` that trains it; empty if nothing is trained."""
    losses: Mapping[str, str] = field(default_factory=dict)
    """Columns of its log that hold losses -> their titles in the figure."""
    local_crops: bool = False
    """Whether it takes ``augment.local_crops`` as further queries."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The params of ``pretrain`` that it reads; other params can't change its result."""
        return ("method", "backbone", *(_ENGINE if self.made_by else ()), *self.blocks)


_INFO_NCE = {"info_nce": "InfoNCE"}
METHODS: dict[str, MethodEntry] = {
    "mls": MethodEntry(("moco", "mls"), "mls.methods.mls:MLS", _INFO_NCE | {"multi_label": "multi-label loss"}, True),
    "moco": MethodEntry(("moco",), "mls.methods.moco:MoCo", _INFO_NCE, True),
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
"""Value of ``pretrain.method`` -> its entry."""

PRETRAIN = "pretrain"
LOGGED = ("info_nce", "alignment", "uniformity", "queue_mean")
"""What a table's column ``pretrain.<name>`` may show: the end of a training's log. It needs no labels."""

TRAINED = tuple(name for name, entry in METHODS.items() if entry.made_by)
"""Methods that train, and therefore read a data set."""


def known_method(name: str) -> str:
    """Check that a method has this name."""
    if name not in METHODS:
        raise ValueError(f"Input should be {alternatives(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(known_method)]
