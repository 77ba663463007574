"""The decoder of all stages: the data stage proves each image with it, and later stages read with it.

    image_CHW = decode(bytes_N, "train2017/000000391895.jpg")     # uint8 RGB, or MlsError
    image_CHW = prove(data, "train2017/000000391895.jpg")         # the same, after a full check of the file

Only JPEG, PNG, WebP and GIF are read: BMP, TIFF, AVIF, HEIC and the like are rejected by name. Every picture becomes
8-bit RGB:

| file | rule |
|---|---|
| grey, 1-bit, palette | the same value in all channels; the palette's colour |
| alpha, transparent colour (PNG, WebP) | dropped: the colour stored under it shows |
| transparent colour (GIF) | the file's background colour shows |
| 16 bits a channel (PNG) | the high byte |
| CMYK and YCCK (JPEG) | ink inverted, as Adobe writes it, then R = C K / 255 and so on; ICC profiles are not applied |
| EXIF orientation | applied (JPEG, PNG); a WebP that is not upright is rejected: the decoder would not turn it |
| several frames | rejected; of a JPEG with several pictures (MPO: stereo, bursts) the first is taken |
| bytes after the end | ignored |
| more than `MAX_PIXELS` | rejected by its header, before memory is allocated |
| empty, cut short, damaged | rejected, as far as the format can tell, see `prove` |

Shape legend: N encoded bytes, C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

import io
import re

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from mls.data.listing import MAX_PIXELS
from mls.runtime.errors import MlsError

READ = ("JPEG", "PNG", "WEBP", "GIF")
OTHERS = {b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\0\0\1\0": "ICO", b"\0\0\0\x0cjP": "JPEG 2000"}
"""First bytes of formats that are rejected by name."""
ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""


def decode(data_N: Tensor, name: str) -> Tensor:
    """Decode an image that `prove` has accepted; some other files, damaged PNGs, would abort the process.

    Args:
        data_N: the encoded file, uint8 (N,).
        name: used in errors.

    Returns:
        uint8 (3, H, W), RGB, EXIF orientation applied. Not always contiguous: a JPEG's pixels lie
        as (H, W, 3) in memory.

    Raises:
        MlsError: the bytes are not an image of these formats, or are cut short.
    """
    try:
        image: Tensor = decode_image(data_N, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        # torchvision puts its build machine's file and line before the reason
        reason = re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])
        raise MlsError(f"{name} does not decode: {reason}") from error
    if image.dtype == torch.uint16:  # 16-bit PNG: the high byte is the 8-bit picture
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    if image.ndim != 3:
        raise MlsError(f"{name} does not decode: it holds {image.shape[0]} frames, not one picture")
    return image


def prove(data: bytes, name: str) -> Tensor:
    """Check a whole file once, so that every later stage can rely on it; return what `decode` returns.

    Detected: wrong checksums (PNG), a missing end (all formats), and a JPEG whose data stop early although it has an
    end marker, which decoders silently fill with grey (except within the very last block). Not detectable: bytes
    changed within the data of a JPEG or WebP, which have no checksums; ``data.lock`` guards against those.

    Raises:
        MlsError: the image can't be used; says why. The reason goes into ``excluded.json``.
    """
    if reason := _header_reason(data):
        raise MlsError(f"{name} does not decode: {reason}")
    image_CHW = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), name)
    if data.startswith(b"\xff\xd8") and (row := _first_lost_row(data, image_CHW)) is not None:
        raise MlsError(f"{name} does not decode: it is cut short: its data end in row {row}, before its end marker")
    return image_CHW


def _header_reason(data: bytes) -> str | None:
    """Say why a file must not be given to the decoder, or None.

    torchvision's PNG decoder aborts the process when libpng meets damage, so PIL checks PNGs first: all checksums,
    then all pixels. It checks GIFs too, since torchvision's decoder accepts damaged ones.
    """
    if not data:
        return "the file is empty"
    try:
        with Image.open(io.BytesIO(data), formats=READ) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"{width} x {height} is more than {MAX_PIXELS:,} pixels"
            if image.format in ("JPEG", "MPO"):
                return None
            if getattr(image, "is_animated", False):
                return "it holds several frames, not one picture"
            if image.format == "WEBP":
                turn = image.getexif().get(ORIENTATION, 1)
                return None if turn == 1 else f"it is a WebP to be turned (EXIF orientation {turn}); save it upright"
            image.verify()
        with Image.open(io.BytesIO(data), formats=READ) as image:
            image.load()
    except UnidentifiedImageError:
        known = next((kind for start, kind in OTHERS.items() if data.startswith(start)), None)
        known = "AVIF or HEIC" if data[4:8] == b"ftyp" else known
        return f"it is {known or 'unknown or damaged'}; only JPEG, PNG, WebP and GIF are read"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # PIL's own, higher limit
        return f"it is more than {MAX_PIXELS:,} pixels"
    except Exception as error:  # PIL's readers raise SyntaxError, struct.error, OSError, EOFError and more
        return f"damaged ({error})"
    return None


_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
"""A JPEG's markers, except restarts, which belong to a scan's data (as does an escaped 0xff: 0xff 0x00)."""
_FILLER = bytes(range(1, 255)) * 8 + b"\xff\xd9"


def _first_lost_row(data: bytes, image_CHW: Tensor) -> int | None:
    """Return the first row of the stored picture whose pixels are not in a JPEG file, or None if all are there.

    A decoder that meets the end marker too early warns on stderr, if at all, and goes on with zeros. So filler bytes
    are put before the marker: if they change a pixel, the decoder was still waiting for data. That costs two
    decodings, so it is skipped unless something hints at a cut: zeros to the end of the only scan make one corner
    (which one depends on the orientation) mid grey, 128 in all channels, or for CMYK 128 x 128 / 255 = 64. One photo
    in a hundred has such a corner.
    """
    corners_C4 = image_CHW[:, [0, 0, -1, -1], [0, -1, 0, -1]].int()
    hint = any(bool(((corners_C4 - zeros).abs() <= 1).all(dim=0).any()) for zeros in (128, 64))
    if data.count(b"\xff\xda") == 1 and not hint:  # each scan begins so, and pixel data can't hold it
        return None
    end = _end_marker(data)
    if end is None:
        return None
    try:
        given, filled = (
            np.asarray(Image.open(io.BytesIO(data[:end] + rest), formats=READ)) for rest in (b"\xff\xd9", _FILLER)
        )
    except OSError:  # the decoder read the filler, which is not image data
        return 0
    rows = np.flatnonzero((given != filled).reshape(len(given), -1).any(axis=1))
    return int(rows[0]) if len(rows) else None


def _end_marker(data: bytes) -> int | None:
    """Return where a JPEG's own end marker begins (embedded thumbnails have theirs), or None."""
    place = 2
    while marker := _MARKER.search(data, place):
        if marker[1] == b"\xd9":
            return marker.start()
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return None
