"""Features of any pictures, from any finished backbone: ``mls embed``.

    embed(artifact, Path("/data/birds"), Path("features.parquet"), image_size=224, execution=execution)

The file has a row for each picture: ``file``, its path below the folder, and ``feature``, its pooled feature, float32.
Its metadata name the folder, the backbone and the size, so that ``mls similar`` needs nothing else.

Shape legend: N pictures, D features, B pictures of a batch, C channels, H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.resnet import ResNet

from mls.config.experiment import Execution
from mls.data.decode import prove
from mls.data.eval_view import square
from mls.data.folder import images_below
from mls.models.backbone import channels_last
from mls.pipeline.artifact import Artifact
from mls.probe.features import BATCH, SEED, load_pretrained, outputs_of
from mls.runtime.device import set_up, workers_of
from mls.runtime.errors import MlsError
from mls.runtime.files import atomic_file
from mls.runtime.locks import say
from mls.train.finetune import read_ahead

ABOUT = b"mls"
"""Key of the file's metadata."""


@dataclass(frozen=True)
class Embedded:
    """The content of such a file."""

    root: Path
    pretrain: str
    """Id of the backbone's artifact."""
    image_size: int
    files: list[str]
    features_ND: NDArray[np.float32]


def embed(artifact: Artifact, root: Path, out: Path, image_size: int, execution: Execution) -> int:
    """Write the features of all pictures below a folder; return their number. What can't be decoded is named.

    Raises:
        MlsError: the folder holds no pictures, or none that decodes.
        Interrupted: a signal came; nothing is written.
    """
    names = list(images_below(root))
    files, features_ND = features_of(load_pretrained(artifact), root, names, image_size, execution)
    if not files:
        raise MlsError(f"{root}: none of {len(names)} pictures decodes")
    vectors = pa.FixedSizeListArray.from_arrays(features_ND.ravel(), features_ND.shape[1])
    about = {"root": str(root.absolute()), "pretrain": artifact.path.name, "image_size": image_size}
    table = pa.table({"file": files, "feature": vectors}).replace_schema_metadata({ABOUT: json.dumps(about)})
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as opened:
        pq.write_table(table, opened)
    return len(files)


def features_of(
    backbone: ResNet, root: Path, names: Sequence[str], image_size: int, execution: Execution
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the pictures that decode, and their features, float32 (N, D)."""
    device = set_up(execution.device, execution.threads, SEED)
    channels_last(backbone.eval().to(device))
    kept: list[str] = []

    def load(name: str) -> tuple[str, Tensor | None]:
        try:
            return name, square(prove((root / name).read_bytes(), name), image_size)
        except (MlsError, OSError) as error:
            say(f"left out: {error}")
            return name, None

    def squares() -> Iterator[Tensor]:
        batches = (names[start : start + BATCH] for start in range(0, len(names), BATCH))
        workers = workers_of(execution.workers, execution.threads, device)
        for batch in read_ahead(batches, load, workers):
            made = [(name, image_CHW) for name, image_CHW in batch if image_CHW is not None]
            kept.extend(name for name, _ in made)
            if made:
                yield torch.stack([image_CHW for _, image_CHW in made])

    features_ND = outputs_of(backbone, squares(), len(names), device, "embed")
    return kept, features_ND[: len(kept)]


def read(file: Path) -> Embedded:
    """Read a file that `embed` wrote.

    Raises:
        MlsError: it is another file.
    """
    try:
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[ABOUT])
        features_ND = np.stack(table["feature"].to_numpy()).astype(np.float32)
        return Embedded(
            Path(about["root"]), about["pretrain"], about["image_size"], table["file"].to_pylist(), features_ND
        )
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise MlsError(f"{file}: not a file that `mls embed` wrote ({error})") from error
