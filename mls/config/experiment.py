"""The experiment file: its schema, with every key, its type, range, default and source. Start here.

One experiment is one YAML file that holds everything that can change a number:

    experiment: scenes                                       # names the folder under results/
    datasets: {scenes: {source: scenes, train: 4096}}        # mls.config.datasets
    pretrain: {dataset: scenes, epochs: 60, mls: {topk: 5}}  # `Pretrain`; method blocks: mls.config.methods
    runs: {moco-v2: {method: moco}, mls: {}}                 # rows of the tables, each overrides `pretrain`
    sweep: {mls: {mls.topk: [1, 20]}}                        # more runs: mls.config.sweep
    probe: {linear: {kind: linear, dataset: scenes}}         # mls.config.probes
    transfer: {detect: {kind: instance, dataset: scenes}}    # mls.config.transfers
    tables: {main: {columns: [linear.mAP, detect.box_AP]}}   # `Table`
    execution: {threads: 2}                                  # `Execution`: changes no result

Defaults are the paper's recipe (MLS, ICCV 2023; marked [paper]) or, where the paper is silent, its lineage's (MoCo-v2
on COCO as in DenseCL and ORL; marked [lineage]). ``params.yaml`` and ``experiments/*.yaml`` override them for small
machines. `mls.config.load.load` reads and checks a file; `mls.pipeline.plan` turns it into jobs.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mls.config.datasets import Dataset
from mls.config.methods import METHODS, Blocks, MethodName
from mls.config.probes import ProbeConfig
from mls.config.section import Section
from mls.config.transfers import TransferConfig
from mls.config.values import (
    MOST_PIXELS,
    BatchSize,
    Count,
    Index,
    Momentum,
    Name,
    NonNegative,
    Positive,
    Precision,
    Processes,
    Seed,
    check_pixels,
    once,
)
from mls.config.views import Augment

# ------------------------------------------------------------------------------------- pretraining


class Backbone(Section):
    """A ResNet with torchvision's parameter names."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor for every channel count; 1.0 is torchvision's network."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """``imagenet``: 7x7 convolution of stride 2, then max pooling; ``small``: 3x3 convolution of stride 2, without
    pooling, for images of at most 96 px."""


class Optimizer(Section):
    """SGD with a cosine schedule to zero, no warm-up [lineage]; learning rate and weight decay [paper].

    ``sgd`` decays every parameter, as MoCo does. ``lars`` and ``adamw`` do not decay biases and batch norms, as is
    usual for them, and LARS does not scale these either.
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: Positive = 0.3
    """Learning rate for the global batch; never rescaled."""
    momentum: Momentum = 0.9
    """Momentum of SGD and LARS; beta1 of AdamW, whose beta2 is 0.999."""
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 0.0
    """Epochs over which the learning rate rises linearly from 0, before it falls as a cosine over the rest."""


class Pretrain(Blocks):
    """Defaults of every run; each entry of ``runs`` overrides some of them."""

    dataset: Name | None = None
    """Data set whose train images are read; required by methods that train."""
    method: MethodName = "mls"
    backbone: Backbone = Backbone()
    epochs: Count = 400
    batch_size: BatchSize = 256
    """Images per step, over all ranks."""
    precision: Precision = "bf16"
    """Precision of the networks (autocast); losses and labels are always float32."""
    channels_last: bool = True
    """Use the channels-last memory layout for images and convolutions: faster; changes the last digits."""
    compile: bool = False
    """``torch.compile`` both encoders: faster on GPUs after a minute or two of compiling; changes the last digits."""
    resident: Literal["no", "cpu", "cuda"] = "no"
    """Keep the decoded train images in memory. ``cpu`` saves decoding them each epoch and changes no bit. ``cuda`` also
    crops on the GPU, where pixels differ by at most one level from those of a CPU. COCO at short side 256 (see
    ``datasets``) takes 31 GB."""
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_pixels(self.batch_size, self.augment.crop)
        local, method = self.augment.local_crops, METHODS[self.method]
        if (pixels := self.batch_size * local.count * local.size**2) > MOST_PIXELS:
            raise ValueError(f"augment.local_crops: a batch of them has {pixels:,} pixels, more than {MOST_PIXELS:,}")
        if local.count and method.made_by and not method.local_crops:
            able = ", ".join(name for name, entry in METHODS.items() if entry.local_crops)
            raise ValueError(f"augment.local_crops: method {self.method!r} has no use for them, only {able}")
        if self.augment.auto_augment_p and self.resident == "cuda":
            raise ValueError("augment.auto_augment_p: AutoAugment runs on the CPU, so resident can't be 'cuda'")
        return self


# ----------------------------------------------------------------------------- tables, execution


class Paper(Section):
    """A table of the paper, printed to the right of the measured numbers: never bold, never averaged."""

    table: str
    """Its number in the paper, in quotes; `mls.config.paper` holds the numbers."""
    rows: dict[str, str] = {}
    """Row of this table -> row of the paper's table. Other rows of the paper's table follow below."""
    columns: dict[str, str] = {}
    """Column of this table -> the paper's column of the same metric. Their difference is then printed, and marked if
    the protocol differs from the paper's. Without this key the paper's columns are printed as they are."""


class Table(Section):
    """A table: rows are runs or sweep points, columns are ``<task>.<metric>``."""

    rows: Annotated[list[str], Field(min_length=1), AfterValidator(once)] | None = None
    """Rows; by default every run and sweep point, in file order."""
    columns: Annotated[list[str], Field(min_length=1), AfterValidator(once)]
    baseline: str | None = None
    """A row; every other row's difference from it is printed too, paired by seed."""
    paper: Paper | None = None
    """The paper's table to print beside this one."""
    plot: str | None = None
    """Dotted key of ``pretrain`` with a number as its value: each column is also drawn against it [paper, Fig. 5]. Rows
    whose method ignores the key are not plotted; a ``baseline`` that uses another method is drawn as a horizontal
    line."""
    not_implemented: Annotated[list[str], AfterValidator(once)] = []
    """Columns of the paper's table that no task here computes; they are printed as "not implemented"."""


class Execution(Section):
    """How jobs run, never what they compute: nothing here is part of an id."""

    threads: Annotated[Processes, Field(ge=1)] = 2
    """CPU threads of each training, probing and transfer job. Results repeat byte for byte with equal threads."""
    workers: Processes | Literal["auto"] = "auto"
    """Processes that prepare images for one training job; 0 prepares them in the job itself. ``auto``: on a GPU, as
    many as there are cores per rank, at most 16; on the CPU, as many as ``threads``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` uses a GPU if this machine has one. On a cluster whose login node has none, ``cuda`` requests GPUs."""
    gpus: Annotated[Processes, Field(ge=1)] = 1
    """GPUs that one pretraining or transfer uses on each of its machines, one process each, started by torchrun; other
    jobs use one. Their number changes the last digits of a pretraining, like ``threads``, and a transfer draws other
    random numbers with several than with one. It must divide every ``batch_size`` (a transfer's parts, with
    ``accumulate``), and ``moco.bn_splits`` must be a multiple of it, or 1."""
    nodes: Count = 1
    """Machines that one pretraining or transfer uses; more than one only within a Slurm job (docs/scaling.md)."""
    join_timeout: Count = 600
    """Seconds that a rank waits for the others before the job fails."""
    checkpoint_every: Count = 500
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept: if the last one can't be read, the one before it is used."""
    max_nonfinite: Index = 10
    """Steps with a non-finite loss or gradient that a pretraining may skip, counted over all its resumptions; with one
    more it fails."""
    trackers: list[Literal["tensorboard", "dvclive", "wandb"]] = []
    """Where else the curves are logged during training, under ``work/<id>/``. tensorboard needs ``.[trackers]``, wandb
    ``.[wandb]``; it stays offline (docs/method.md)."""


class Experiment(Section):
    """The whole file."""

    experiment: Name
    """Name of the folder under ``results/``."""
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(once)] = [0]
    """Seeds of pretraining; each run is repeated for every seed."""
    datasets: dict[Name, Dataset]
    pretrain: Pretrain = Pretrain()
    runs: Annotated[dict[Name, dict[str, object]], Field(min_length=1)]
    """Rows of the tables; each overrides keys of ``pretrain``."""
    sweep: dict[Name, object] = {}
    """Run -> more runs like it: either a grid, as dotted keys of ``pretrain`` with lists of values, or a list of
    points, each a mapping of dotted keys to values. `mls.config.sweep` checks it."""
    probe: dict[Name, ProbeConfig] = {}
    transfer: dict[Name, TransferConfig] = {}
    tables: Annotated[dict[Name, Table], Field(min_length=1)]
    draw: list[str] = []
    """Runs (or sweep points) whose Fig. 3 and Fig. 4 are drawn, for their first seed. Fig. 4 is only drawn for
    generated scenes, since photos are not published."""
    execution: Execution = Execution()
