"""The schema of an experiment file: every key that can change a number, typed and range-checked.

One experiment is one file. Defaults are the paper's recipe (MLS, ICCV 2023; shown as [paper]) or,
where the paper is silent, its lineage's (MoCo-v2 on COCO as in DenseCL and ORL; [lineage]).
``params.yaml`` and ``experiments/*.yaml`` override them for small machines. What backbones are judged by is in
``mls.experiment.tasks`` and ``mls.experiment.transfers``, the views of an image in ``mls.experiment.views``, data sets
in ``mls.experiment.datasets``. Reading and checking a file is in ``mls.experiment.load``; what runs follows in
``mls.experiment.plan``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mls.experiment.datasets import Dataset
from mls.experiment.section import Count, Name, Positive, Section, Share
from mls.experiment.tasks import ProbeTask
from mls.experiment.transfers import TransferTask
from mls.experiment.views import Augment

# ------------------------------------------------------------------------------------- pretraining


class Backbone(Section):
    """A ResNet with torchvision's parameter names."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Multiplies every channel count; 1.0 is torchvision's network."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """``imagenet``: 7x7 stride 2 and max pooling; ``small``: 3x3 stride 2 alone, for images <= 96 px."""


class Optimizer(Section):
    """SGD with a cosine schedule to zero, no warm-up [lineage]; lr and weight decay [paper].

    ``sgd`` decays every parameter, as MoCo does. ``lars`` and ``adamw`` leave biases and batch norm
    undecayed (and LARS unscaled), as their users do.
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: Positive = 0.3
    """Learning rate for the global batch; never rescaled."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD and LARS; AdamW's beta1 (its beta2 is 0.999)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """The learning rate rises linearly from 0 over so many epochs, then falls as a cosine over the rest."""


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


class Pretrain(Section):
    """Defaults of every run; each entry of ``runs`` overrides some of them."""

    dataset: Name | None = None
    """Its train images; needed by methods that train."""
    method: Literal["mls", "moco", "densecl", "byol", "slotcon", "none", "weights", "imagenet"] = "mls"
    backbone: Backbone = Backbone()
    epochs: Count = 400
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Global, over all ranks."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the networks (autocast); losses and labels are always float32."""
    channels_last: bool = True
    """Memory layout of the images and the convolutions: faster; changes the last digits."""
    compile: bool = False
    """``torch.compile`` both encoders: faster on GPUs after a minute or two of compiling; changes the last digits."""
    resident: Literal["no", "cpu", "cuda"] = "no"
    """Keep the decoded train images in memory: ``cpu`` saves decoding them each epoch and changes no bit; ``cuda``
    cuts the crops on the GPU too, within one level of the pixels that a CPU makes. At short side 256 (see
    ``datasets``), COCO takes 31 GB."""
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()
    moco: Moco = Moco()
    mls: Mls = Mls()
    densecl: Densecl = Densecl()
    byol: Byol = Byol()
    slotcon: Slotcon = Slotcon()
    weights: Weights | None = None
    imagenet: Imagenet = Imagenet()


# ----------------------------------------------------------------------------- tables, execution


class Paper(Section):
    """Numbers of the paper, printed to the right of the measured ones: never bold, never averaged."""

    table: str
    """Its number in the paper, in quotes; ``mls.report.paper`` holds the numbers."""
    rows: dict[str, str] = {}
    """Row of this table -> row of the paper's; those of the paper that none claims follow as rows of their own."""
    columns: dict[str, str] = {}
    """Column of this table -> the paper's column of the same metric: the difference is printed too, marked where the
    protocol is not the paper's. Without it the paper's columns are printed as they are."""


class Table(Section):
    """Rows are runs (or sweep points), columns are ``<task>.<metric>``."""

    rows: list[str] | None = None
    """Default: every run and sweep point, in file order."""
    columns: Annotated[list[str], Field(min_length=1)]
    baseline: str | None = None
    """A row; every other row's difference from it is printed too, paired by seed."""
    paper: Paper | None = None
    """Which table of the paper stands beside it."""
    plot: str | None = None
    """A dotted key of ``pretrain``, a number: the columns are drawn against each row's value of it [paper, Fig. 5].
    Rows whose method does not read it are no points, nor is a ``baseline`` of another method; that is a line across."""
    not_implemented: list[str] = []
    """Further columns, printed as such in every row: of the paper's table, and of no task here."""


class Execution(Section):
    """How it runs, never what comes out: nothing here is part of an id."""

    threads: Count = 2
    """Of each training, probing and transfer job. Results repeat byte for byte at equal threads."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that prepare images for one training job; 0 prepares them in the job itself. ``auto``: beside a GPU
    as many as there are cores for each rank, 16 at most; beside training on the CPU as many as its threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU where this machine has one. On a cluster whose login node has none, ``cuda`` asks for them."""
    gpus: Count = 1
    """GPUs of one pretraining on each of its machines, a process each, by torchrun; other jobs take one. Their number
    changes the last digits, like threads. ``moco.bn_splits`` must be a multiple of it, or 1."""
    nodes: Count = 1
    """Machines of one pretraining; more than one only within a Slurm job (docs/scaling.md)."""
    checkpoint_every: Count = 500
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Count = 2
    """How many are kept: if the last can't be read, the one before it is used."""
    max_nonfinite: Annotated[int, Field(ge=0)] = 10
    """Steps with a loss or gradient that is not finite which a pretraining may skip, over all its resumptions; one
    more and it fails."""
    trackers: list[Literal["tensorboard", "dvclive"]] = []
    """Where else the curves go while they grow, under ``work/<id>/``; needs the extra ``.[trackers]``."""


class Experiment(Section):
    """The whole file."""

    experiment: Name
    """Names the folder under ``results/``."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Repeats of pretraining."""
    datasets: dict[Name, Dataset]
    pretrain: Pretrain = Pretrain()
    runs: Annotated[dict[Name, dict[str, object]], Field(min_length=1)]
    """The rows of the tables; each overrides ``pretrain``."""
    sweep: dict[Name, dict[str, Annotated[list[object], Field(min_length=1)]]] = {}
    """Per run: dotted keys of ``pretrain`` and their values; the grid of them becomes runs."""
    probe: dict[Name, ProbeTask] = {}
    transfer: dict[Name, TransferTask] = {}
    tables: Annotated[dict[Name, Table], Field(min_length=1)]
    draw: list[str] = []
    """Runs (or sweep points) whose Fig. 3 and Fig. 4 are drawn, of their first seed; Fig. 4 of generated scenes alone,
    since photos are not published."""
    execution: Execution = Execution()
