"""The schema of an experiment file: every key that can change a number, typed and range-checked.

One experiment is one file. Defaults are the paper's recipe (MLS, ICCV 2023; shown as [paper]) or,
where the paper is silent, its lineage's (MoCo-v2 on COCO as in DenseCL and ORL; [lineage]).
``params.yaml`` and ``experiments/*.yaml`` override them for small machines. What a method reads is in
``mls.config.methods``, what backbones are judged by in ``mls.config.probes`` and ``mls.config.transfers``,
the views of an image in ``mls.config.views``, data sets in ``mls.config.datasets``. Reading and checking a file
is in ``mls.config.load``; what runs follows in ``mls.pipeline.plan``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mls.config.datasets import Dataset
from mls.config.methods import Blocks, MethodName
from mls.config.probes import ProbeConfig
from mls.config.section import Count, Name, Positive, Section
from mls.config.transfers import TransferConfig
from mls.config.views import Augment

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


class Pretrain(Blocks):
    """Defaults of every run; each entry of ``runs`` overrides some of them."""

    dataset: Name | None = None
    """Its train images; needed by methods that train."""
    method: MethodName = "mls"
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


# ----------------------------------------------------------------------------- tables, execution


class Paper(Section):
    """Numbers of the paper, printed to the right of the measured ones: never bold, never averaged."""

    table: str
    """Its number in the paper, in quotes; ``mls.config.paper`` holds the numbers."""
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
    sweep: dict[Name, object] = {}
    """Per run: dotted keys of ``pretrain`` and lists of their values, of which the grid becomes runs; or a list of
    points, each a mapping of dotted keys to values (``mls.config.sweep`` says what is wrong with either)."""
    probe: dict[Name, ProbeConfig] = {}
    transfer: dict[Name, TransferConfig] = {}
    tables: Annotated[dict[Name, Table], Field(min_length=1)]
    draw: list[str] = []
    """Runs (or sweep points) whose Fig. 3 and Fig. 4 are drawn, of their first seed; Fig. 4 of generated scenes alone,
    since photos are not published."""
    execution: Execution = Execution()
