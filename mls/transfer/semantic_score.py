"""Metrics of the class of each pixel: intersection over union and accuracy, as mmsegmentation counts them.

    metrics = pixel_metrics(IndexMasks(store, "test"), results)     # {"mIoU": 71.2, "mAcc": 78.9, "aAcc": 95.1, ...}

Pixels of all images are counted together. Pixels that the truth ignores are left out; a pixel without a prediction is
an error of its true class.

Shape legend: H x W pixels, K classes, P = 256 predictions: classes, and `IGNORE` for none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mls.config.transfers import SemanticTransfer
from mls.data.image_store import IGNORE, ImageStore
from mls.runtime.errors import MlsError
from mls.transfer.index_masks import IndexMasks
from mls.transfer.instances import decode_mask


def score_pixels(task: SemanticTransfer, store: ImageStore, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of results on test, see `pixel_metrics`."""
    return pixel_metrics(IndexMasks(store, "test"), results)


def pixel_metrics(truth: IndexMasks, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare results with the truth of all its images.

    Args:
        truth: of the evaluated images.
        results: ``image_id`` is the row, ``category_id`` the class index + 1, ``segmentation`` a run-length code.

    Returns:
        Percent: ``mIoU``, the mean over the classes that occur in truth or prediction; ``mAcc``, the mean over those
        that occur in the truth; ``aAcc``, the share of correct pixels; ``per_class``, name -> ``{"IoU", "Acc"}``. A
        metric is None if its class, or every class, does not occur.

    Raises:
        MlsError: a result has an unknown image or class, a size that is not its image's, or a pixel that another result
            already has.
    """
    of_row: dict[int, list[dict[str, Any]]] = {row: [] for row in truth.rows}
    for result in results:
        if result["image_id"] not in of_row or not 1 <= result["category_id"] <= len(truth.classes):
            raise MlsError(
                f"the results name image {result['image_id']} with category {result['category_id']}; evaluated are "
                f"{len(truth)} images, and categories 1 to {len(truth.classes)}"
            )
        of_row[result["image_id"]].append(result)
    confusion_KP = np.zeros((len(truth.classes), IGNORE + 1), dtype=np.int64)
    for row, found in of_row.items():
        true_HW = truth.of(row).numpy()
        pairs = true_HW.astype(np.int64) * (IGNORE + 1) + _prediction(row, found, true_HW.shape)
        counts = np.bincount(pairs.reshape(-1), minlength=(IGNORE + 1) ** 2).reshape(IGNORE + 1, IGNORE + 1)
        confusion_KP += counts[: len(truth.classes)]  # leaves out the row of ignored pixels
    return _metrics(confusion_KP, truth.classes)


def _prediction(row: int, found: list[dict[str, Any]], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the predicted class indices of an image, uint8 (H, W), `IGNORE` where there is none."""
    prediction_HW = np.full(size, IGNORE, dtype=np.uint8)
    for result in found:
        code = result["segmentation"]
        if tuple(code["size"]) != size:
            raise MlsError(f"a result for image {row} has the size {code['size']}, but the image has {list(size)}")
        shape_HW = decode_mask(code, *size).astype(bool)
        taken = prediction_HW[shape_HW & (prediction_HW != IGNORE)]
        if len(taken):
            raise MlsError(
                f"results for image {row} overlap: category {result['category_id']} claims {len(taken)} pixels of "
                f"others, the first of category {int(taken[0]) + 1}; each pixel has one class"
            )
        prediction_HW[shape_HW] = result["category_id"] - 1
    return prediction_HW


def _metrics(confusion_KP: NDArray[np.int64], names: list[str]) -> dict[str, Any]:
    """Return the metrics of a confusion matrix of pixels: true classes by predictions."""
    hit_K = np.diagonal(confusion_KP).astype(np.float64)
    true_K = confusion_KP.sum(axis=1)
    # the union; predictions on ignored pixels are not in it, since their row was left out
    either_K = true_K + confusion_KP.sum(axis=0)[: len(names)] - hit_K
    iou_K, acc_K = (
        [100 * float(hit / of) if of else None for hit, of in zip(hit_K, of_K, strict=True)]
        for of_K in (either_K, true_K)
    )
    every = int(true_K.sum())
    return {
        "mIoU": _mean(iou_K),
        "mAcc": _mean(acc_K),
        "aAcc": 100 * float(hit_K.sum()) / every if every else None,
        "per_class": {name: {"IoU": iou, "Acc": acc} for name, iou, acc in zip(names, iou_K, acc_K, strict=True)},
    }


def _mean(values: list[float | None]) -> float | None:
    """Return the mean of the defined values; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
