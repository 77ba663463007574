"""Index masks (the class of each pixel) of a split's images: the store's own, or drawn from its instances.

    masks = IndexMasks(store, "train+val")
    masks.classes                           # ["disc", "star", ..., "background"]
    mask_HW = masks.of(masks.rows[0])       # uint8; 255: the pixel is ignored

| store | classes | images |
|---|---|---|
| with index masks (Cityscapes) | its own | those with a mask; others are used neither for training nor for testing |
| with instances' masks (COCO, scenes) | its own and, last, ``background`` | all; other pixels are background |

Where instances overlap, the smaller one lies on top; otherwise it could vanish under the larger one. Pixels of crowd
regions are ignored even if an instance lies there: a crowd's outline also covers other things. Instances without a mask
are skipped (some of COCO's are too small for a polygon).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mls.data.image_store import IGNORE, ImageStore
from mls.runtime.errors import MlsError
from mls.transfer.instances import decode_mask, has_mask

BACKGROUND = "background"


class IndexMasks:
    """Index masks by image."""

    def __init__(self, store: ImageStore, splits: str) -> None:
        """Index some splits; no mask is read yet.

        Args:
            store: holds the images.
            splits: a split's name, or two names joined by ``+``.

        Raises:
            MlsError: the splits hold no image or no mask; there are too many classes for an index mask.
        """
        self.store = store
        self.rows = [int(row) for split in splits.split("+") for row in store.split(split)]
        """Rows of the images with an index mask: ascending within a split, one split after the other."""
        if not self.rows:
            raise MlsError(f"split {splits!r} of this dataset is empty; the task 'semantic' trains and tests on images")
        self.classes = [*store.classes] if store.has_masks else [*store.classes, BACKGROUND]
        """Class names; a mask holds their indices."""
        if len(self.classes) > IGNORE:
            raise MlsError(f"{len(self.classes)} classes do not fit into index masks, which hold at most {IGNORE}")
        if store.has_masks:
            masked = set(store.mask_rows)
            self.rows = [row for row in self.rows if row in masked]
            found = bool(self.rows)
        else:
            annotations = store.annotations_of(*splits.split("+"))
            found = any(has_mask(annotation["segmentation"]) for annotation in annotations)
        if not found:
            raise MlsError(
                f"split {splits!r} of this dataset holds no masks; the task 'semantic' needs index masks, or instances "
                "with masks"
            )

    def __len__(self) -> int:
        """Number of images with an index mask."""
        return len(self.rows)

    def of(self, row: int) -> Tensor:
        """Return the class of each pixel of an image, uint8 (H, W), `IGNORE` where there is none.

        Args:
            row: one of `rows`.

        Raises:
            MlsError: the mask does not have its image's size, or holds an unknown class.
        """
        width, height = self.store.size(row)
        if not self.store.has_masks:
            return self._drawn(row, height, width)
        mask_HW = self.store.mask(row)
        if mask_HW.shape != (height, width):
            raise MlsError(
                f"{self.store.name(row)}: its mask has {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, but the image "
                f"has {width} x {height}; correct the source and make the data artifact again"
            )
        unknown = mask_HW[(mask_HW >= len(self.classes)) & (mask_HW != IGNORE)]
        if len(unknown):
            raise MlsError(
                f"{self.store.name(row)}: its mask holds class {int(unknown[0])}, but classes are 0 to "
                f"{len(self.classes) - 1}; correct the source and make the data artifact again"
            )
        return mask_HW

    def _drawn(self, row: int, height: int, width: int) -> Tensor:
        mask_HW = torch.full((height, width), len(self.classes) - 1, dtype=torch.uint8)  # background is the last class
        shapes = []
        for annotation in filter(lambda item: has_mask(item["segmentation"]), self.store.annotations(row)):
            shape_HW = torch.from_numpy(decode_mask(annotation["segmentation"], height, width)).bool()
            value = IGNORE if annotation["iscrowd"] else annotation["category_id"] - 1
            shapes.append((bool(annotation["iscrowd"]), -int(shape_HW.sum()), value, shape_HW))
        # Later shapes hide earlier ones: instances from large to small, then crowds. Equal areas keep their order.
        for _, _, value, shape_HW in sorted(shapes, key=lambda shape: shape[:2]):
            mask_HW[shape_HW] = value
        return mask_HW
