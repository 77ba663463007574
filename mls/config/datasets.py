"""The schema of the ``datasets`` block: one section for each source of labelled images.

    datasets:
      scenes: {source: scenes, train: 4096}                      # generated
      coco: {source: coco}                                       # downloaded, 19 GB
      coco-2k: {source: coco, subset: {images: 2000}}            # downloaded image by image
      photos: {source: folder, root: /data/photos}               # your own copy

`mls.config.catalog` knows the archives, licences and image counts of each source; docs/datasets.md shows them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mls.config.section import Section, values_of
from mls.config.values import Count, Name, Seed, Share, Side, at_most

ImageSet = Annotated[str, Field(pattern=r"^[0-9]{4}/[A-Za-z0-9][A-Za-z0-9_-]*$")]
Annotations = Literal["labels", "boxes", "boxes and masks", "index masks"]
"""What a data set says about its images: classes; their boxes; each object's pixels too; the class of each pixel."""
Images = Annotated[Count, at_most(10**7, "as many scenes take a week to draw")]
ValShare = Annotated[float, Field(gt=0, lt=1)]


class ScenesDataset(Section):
    """Generated multi-object scenes with boxes, masks and labels; nothing is downloaded."""

    source: Literal["scenes"]
    train: Images = 4096
    val: Images = 512
    test: Images = 1024
    size: Annotated[int, Field(ge=32, le=512)] = 64
    """Side of the square images, pixels."""
    seed: Seed = 7
    format: Literal["jpeg", "raw"] = "jpeg"
    """``raw`` stores decoded pixels instead of image files: faster to read, larger."""
    annotations: ClassVar[Annotations] = "boxes and masks"
    multi_label: ClassVar[bool | None] = True


class _Local(Section):
    """Keys of every source that is read from files."""

    root: str | None = None
    """Folder of your own copy: absolute, or below ``$MLS_DATA``. Nothing is downloaded into it. Without ``root``, the
    folder is ``$MLS_DATA/<dataset name>``, and missing files are downloaded into it."""
    max_excluded: Share = 0.01
    """Largest share of images that may fail to decode, and of objects that may have no area; above it, the data stage
    fails."""
    short_side: Side | None = None
    """Shrink images (with their annotations and masks) whose shorter side is longer than this, pixels. A crop of a
    given share then shows fewer, already smoothed pixels, so this is part of the id."""
    format: Literal["jpeg", "raw"] = "jpeg"
    """``jpeg`` stores the source's own files, byte for byte (shrunk images as JPEG of quality 95). ``raw`` stores
    decoded pixels, uint8 RGB: nothing to decode later, but 10 to 20 times the size."""
    val_share: ValShare = 0.1
    """Share of train that becomes val, where the source has no val of its own."""
    seed: Seed = 0
    """Seed of the draw of val."""
    annotations: ClassVar[Annotations] = "labels"
    multi_label: ClassVar[bool | None] = True
    """Whether an image may have several labels; None if only the data set's files tell."""


class CocoSubset(Section):
    """A part of COCO, fetched image by image: ``{images: 2000, seed: 0}`` or ``{ids: FILE}``."""

    images: Annotated[int, Field(ge=2)] | None = None
    """Number of images drawn from ``train_split`` with ``seed``; val is held out of them."""
    test: Count = 500
    """Number of images drawn from ``test_split`` with ``seed``."""
    seed: Seed = 0
    ids: str | None = None
    """Text file with one COCO image id per line, from either split; ``#`` begins a comment."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.images is None) == (self.ids is None):
            raise ValueError("give either images (a number, with seed) or ids (a file)")
        if self.ids is not None and self.model_fields_set & {"test", "seed"}:
            raise ValueError("test and seed have no effect with ids: leave them out")
        return self


class CocoDataset(_Local):
    """COCO 2017 in its official layout.

    A random ``val_share`` of ``train_split``, drawn with ``seed``, becomes val and the rest becomes train;
    ``test_split``, whose annotations are public, becomes test.
    """

    source: Literal["coco"]
    annotations = "boxes and masks"
    train_split: Name = "train2017"
    test_split: Name = "val2017"
    val_share: ValShare = 0.04
    subset: CocoSubset | None = None
    unlabeled: bool = False
    """Add the 123,403 images of unlabeled2017 to pretraining [ORL's COCO+]; no other stage reads them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train_split == self.test_split:
            raise ValueError(f"train_split and test_split are both {self.train_split!r}")
        if self.subset and self.unlabeled:
            raise ValueError("subset and unlabeled can't be combined: unlabeled2017 is only available whole")
        return self


class VocDataset(_Local):
    """PASCAL VOC in its official layout, any of its years.

    Image sets are ``<year>/<name>``: ``2012/train`` is ``VOC2012/ImageSets/Main/train.txt``. Without ``val_sets``, a
    random ``val_share`` of train becomes val.
    """

    source: Literal["voc"]
    annotations = "boxes"
    train_sets: Annotated[list[ImageSet], Field(min_length=1)] = ["2007/trainval"]
    val_sets: list[ImageSet] = []
    test_sets: Annotated[list[ImageSet], Field(min_length=1)] = ["2007/test"]
    val_share: ValShare = 0.04

    def sets(self) -> list[str]:
        """The image sets of all splits."""
        return [*self.train_sets, *self.val_sets, *self.test_sets]

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in self.sets():
            if self.sets().count(name) > 1:
                raise ValueError(f"image set {name!r} is used twice in train_sets, val_sets and test_sets")
        return self


class CityscapesDataset(_Local):
    """Cityscapes: ``leftImg8bit/`` and ``gtFine/``, or their two archives, which need an account.

    A random ``val_share`` of train becomes val. The official val, on which papers report, becomes test: the official
    test has no public labels.
    """

    source: Literal["cityscapes"]
    annotations = "index masks"


class ClassificationDataset(_Local):
    """The seven single-label sets of the paper's Table 5, with their official splits.

    If a set has no val, a random ``val_share`` of train becomes val.
    """

    source: Literal["flowers102", "pets", "dtd", "aircraft", "cars", "cub200", "indoor67"]
    multi_label = False


class FolderDataset(_Local):
    """Your own images, with a ``labels.csv`` or without labels.

    Columns of ``labels.csv`` are ``file``, ``split`` (train, val, test) and either one 0/1 column per class
    (multi-label) or one column ``label`` (single-label). Without val rows, a random ``val_share`` of train becomes val.
    """

    source: Literal["folder"]
    labels: bool = True
    """False: there is no ``labels.csv``. Every JPEG, PNG, WebP and GIF at any depth below the root is a train image,
    which only pretraining can use."""
    multi_label = None

    @model_validator(mode="after")
    def _splits(self) -> Self:
        if not self.labels and (unused := sorted(self.model_fields_set & {"val_share", "seed"})):
            raise ValueError(f"{', '.join(unused)} without effect: a folder without labels has no val")
        return self


LocalDataset = CocoDataset | VocDataset | CityscapesDataset | ClassificationDataset | FolderDataset
"""Data sets that are read from files, identified by published checksums or by ``data.lock``."""

DATASETS: dict[str, type[ScenesDataset | LocalDataset]] = {
    source: section for section in (ScenesDataset, *get_args(LocalDataset)) for source in values_of(section, "source")
}
"""Source -> its section."""

Dataset = Annotated[ScenesDataset | LocalDataset, Field(discriminator="source")]
