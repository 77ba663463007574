"""The pictures of a folder most similar to one picture, as a page with thumbnails: ``mls similar``.

The page holds the thumbnails themselves. It is for looking, not for publishing.
"""

from __future__ import annotations

import base64
import io
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mls.config.experiment import Execution
from mls.pipeline.artifact import open_artifact, state
from mls.pipeline.plan import ARTIFACTS
from mls.probe.embed import Embedded, features_of
from mls.probe.features import load_pretrained
from mls.report.page import render
from mls.runtime.errors import MlsError
from mls.runtime.paths import store

SIDE = 200
"""Longer side of a thumbnail, pixels."""


def similar(picture: Path, known: Embedded, count: int, out: Path, execution: Execution) -> list[tuple[str, float]]:
    """Write the page; return the nearest pictures with their cosines, the nearest first.

    Args:
        picture: any picture; if it is one of the folder's, it is its own nearest and is left out.
        known: features of the folder.
        count: of pictures on the page.
        out: the page.
        execution: device and threads.

    Raises:
        MlsError: the backbone is not here, or the picture does not decode.
    """
    if not picture.is_file():
        raise MlsError(f"{picture} is not a file")
    places = [ARTIFACTS / "pretrain" / known.pretrain, store() / "pretrain" / known.pretrain]
    made = next((place for place in places if state(place) == "done"), None)
    if made is None:
        raise MlsError(
            f"the backbone of these features, pretrain {known.pretrain}, is neither in {places[0]} nor in {places[1]}"
        )
    backbone = load_pretrained(open_artifact(made))
    found, query_1D = features_of(backbone, picture.parent, [picture.name], known.image_size, execution)
    if not found:
        raise MlsError(f"{picture} does not decode")
    cosine_N = unit(known.features_ND) @ unit(query_1D)[0]
    order_N = np.argsort(-cosine_N, kind="stable")
    others = (n for n in order_N if not same(known.root / known.files[n], picture))
    nearest = [(known.files[n], float(cosine_N[n])) for n in islice(others, count)]
    shown = [
        {"name": name, "cosine": f"{cosine:.3f}", "image": thumbnail(known.root / name)} for name, cosine in nearest
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    render("similar.html", out, picture=picture.name, image=thumbnail(picture), shown=shown, pretrain=known.pretrain)
    return nearest


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths; a row of zeros stays."""
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)


def same(one: Path, other: Path) -> bool:
    """Whether both are one file."""
    return one.exists() and one.samefile(other)


def thumbnail(path: Path) -> str:
    """A small JPEG as a data URL; empty if the picture is not there any more."""
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((SIDE, SIDE))
    except Exception:  # PIL's readers raise many kinds
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
