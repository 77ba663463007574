"""The schema of the ``datasets`` block: one section a source, each a way to come by images with labels.

    datasets:
      scenes: {source: scenes, train: 4096}                      # generated
      coco: {source: coco}                                       # downloaded, 19 GB
      coco-2k: {source: coco, subset: {images: 2000}}            # downloaded image by image
      photos: {source: folder, root: /data/photos}               # a copy that exists

Where sources come from, their licences and counts: ``mls.config.catalog`` and docs/datasets.md.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from mls.config.section import Annotations, Count, Name, Section, Share, values_of

ImageSet = Annotated[str, Field(pattern=r"^[0-9]{4}/[A-Za-z0-9][A-Za-z0-9_-]*$")]
Split = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


class ScenesDataset(Section):
    """Generated multi-object scenes with boxes, masks and labels; needs nothing but this package."""

    source: Literal["scenes"]
    train: Count = 4096
    val: Count = 512
    test: Count = 1024
    size: Annotated[int, Field(ge=32, le=512)] = 64
    """Side of the square images, pixels."""
    seed: Seed = 7
    format: Literal["jpeg", "raw"] = "jpeg"
    """``raw``: kept as decoded pixels, not as an image file; faster to read, larger."""
    annotations: ClassVar[Annotations] = "boxes and masks"
    multi_label: ClassVar[bool | None] = True


class _Local(Section):
    """What all sources share that are read from files."""

    root: str | None = None
    """Folder of a copy that exists: absolute, or below ``$MLS_DATA``. Nothing is downloaded into it. Without it, the
    folder is ``$MLS_DATA/<dataset name>``, and what is missing there is downloaded."""
    max_excluded: Share = 0.01
    """Share of images that may fail to decode before the stage stops."""
    short_side: Annotated[int, Field(ge=16)] | None = None
    """Images whose shorter side is longer are shrunk to it, pixels; annotations and masks with them. It changes what
    a crop of a given share shows (fewer, already smoothed pixels), hence the id."""
    format: Literal["jpeg", "raw"] = "jpeg"
    """``jpeg``: the source's own files, byte for byte (shrunk ones as JPEG of quality 95). ``raw``: decoded pixels,
    uint8 RGB: nothing to decode later, but 10 to 20 times the size."""
    annotations: ClassVar[Annotations] = "labels"
    multi_label: ClassVar[bool | None] = True
    """Whether an image may have several labels; None where its files decide."""


class CocoSubset(Section):
    """Some images of COCO, fetched one by one: ``{images: 2000, seed: 0}`` or ``{ids: FILE}``."""

    images: Annotated[int, Field(ge=2)] | None = None
    """So many of ``train_split`` (val included), drawn with ``seed``."""
    test: Count = 500
    """So many of ``test_split``, likewise."""
    seed: Seed = 0
    ids: str | None = None
    """Text file with one COCO image id a line (``#`` begins a comment), of either split."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.images is None) == (self.ids is None):
            raise ValueError("give either images (a number, with seed) or ids (a file)")
        if self.ids is not None and self.model_fields_set & {"test", "seed"}:
            raise ValueError("with ids, test and seed say nothing: leave them out")
        return self


class CocoDataset(_Local):
    """COCO 2017 in its official layout.

    ``train_split`` becomes train, less a seeded ``val_share`` that becomes val; ``test_split``
    (whose annotations are public) becomes test.
    """

    source: Literal["coco"]
    annotations = "boxes and masks"
    train_split: Name = "train2017"
    test_split: Name = "val2017"
    val_share: Split = 0.04
    seed: Seed = 0
    subset: CocoSubset | None = None
    unlabeled: bool = False
    """Add the 123,403 images of unlabeled2017 [COCO+ of ORL]: only pretraining reads them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train_split == self.test_split:
            raise ValueError(f"train_split and test_split are both {self.train_split!r}")
        if self.subset and self.unlabeled:
            raise ValueError("subset and unlabeled do not go together: unlabeled2017 comes whole")
        return self


class VocDataset(_Local):
    """PASCAL VOC in its official layout, any of its years.

    Image sets are ``<year>/<name>``: ``2012/train`` is ``VOC2012/ImageSets/Main/train.txt``. Without
    ``val_sets``, a seeded ``val_share`` of train becomes val.
    """

    source: Literal["voc"]
    annotations = "boxes"
    train_sets: Annotated[list[ImageSet], Field(min_length=1)] = ["2007/trainval"]
    val_sets: list[ImageSet] = []
    test_sets: Annotated[list[ImageSet], Field(min_length=1)] = ["2007/test"]
    val_share: Split = 0.04
    seed: Seed = 0

    def sets(self) -> list[str]:
        """The image sets of all splits."""
        return [*self.train_sets, *self.val_sets, *self.test_sets]

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in self.sets():
            if self.sets().count(name) > 1:
                raise ValueError(f"image set {name!r} is there twice, in train_sets, val_sets and test_sets together")
        return self


class CityscapesDataset(_Local):
    """Cityscapes: ``leftImg8bit/`` and ``gtFine/``, or the two archives of these names (which need an account).

    A seeded ``val_share`` of train becomes val; the official val, which papers report, becomes test
    (the official test has no public labels).
    """

    source: Literal["cityscapes"]
    annotations = "index masks"
    val_share: Split = 0.1
    seed: Seed = 0


class ClassificationDataset(_Local):
    """The seven single-label sets of the paper's Table 5, with their official splits.

    Where a set has no val, a seeded ``val_share`` of train becomes it.
    """

    source: Literal["flowers102", "pets", "dtd", "aircraft", "cars", "cub200", "indoor67"]
    multi_label = False
    val_share: Split = 0.1
    seed: Seed = 0


class FolderDataset(_Local):
    """Images and a ``labels.csv`` of one's own.

    Columns: ``file``, ``split`` (train, val, test) and either one 0/1 column per class
    (multi-label) or one column ``label`` (single-label). Without val rows, a seeded
    ``val_share`` of train becomes val.
    """

    source: Literal["folder"]
    multi_label = None
    val_share: Split = 0.1
    seed: Seed = 0


LocalDataset = CocoDataset | VocDataset | CityscapesDataset | ClassificationDataset | FolderDataset
"""Read from files, downloaded or not; identified by published checksums or ``data.lock``."""

SOURCES: dict[str, type[ScenesDataset | LocalDataset]] = {
    source: section for section in (ScenesDataset, *get_args(LocalDataset)) for source in values_of(section, "source")
}
"""The section of each source."""

Dataset = Annotated[ScenesDataset | LocalDataset, Field(discriminator="source")]
