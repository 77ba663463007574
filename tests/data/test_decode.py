"""Decoded pixels equal those of PIL's own conversion; damaged files are rejected with a reason."""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mls.data.decode import decode, prove
from mls.data.listing import MAX_PIXELS
from mls.runtime.errors import MlsError
from tests.data.support import NOISY, PHOTO, PIXELS, H, W, X, encoded, output_of, palette, png


def decoded(data: bytes) -> NDArray[np.uint8]:
    """Decode with `decode` and `prove`, which must agree."""
    image_CHW = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), "x")
    assert image_CHW.dtype == torch.uint8 and image_CHW.shape[0] == 3
    assert torch.equal(prove(data, "x"), image_CHW)
    return image_CHW.permute(1, 2, 0).numpy()


def by_pil(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def with_alpha(mode: str) -> Image.Image:
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray((X * 4).astype(np.uint8)))
    return image


def rotated(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PHOTO, kind, exif=exif, **options)


SAME_AS_PIL: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded(PHOTO, "PNG"),
    "PNG grey": lambda: encoded(PHOTO.convert("L"), "PNG"),
    "PNG 1 bit": lambda: encoded(PHOTO.convert("1"), "PNG"),
    "PNG grey, alpha": lambda: encoded(with_alpha("L"), "PNG"),
    "PNG RGBA": lambda: encoded(with_alpha("RGB"), "PNG"),
    "PNG palette": lambda: encoded(palette(), "PNG"),
    "PNG palette of 4 bits": lambda: encoded(PHOTO.quantize(9), "PNG"),
    "PNG palette, transparent colour": lambda: encoded(palette(), "PNG", transparency=3),
    "PNG palette, alpha": lambda: encoded(palette(), "PNG", transparency=bytes(range(64))),
    "PNG grey, transparent colour": lambda: encoded(PHOTO.convert("L"), "PNG", transparency=100),
    "JPEG": lambda: encoded(PHOTO, "JPEG"),
    "JPEG, no subsampling": lambda: encoded(PHOTO, "JPEG", quality=95, subsampling=0),
    "JPEG grey": lambda: encoded(PHOTO.convert("L"), "JPEG"),
    "JPEG progressive": lambda: encoded(PHOTO, "JPEG", progressive=True),
    "JPEG with restarts": lambda: encoded(PHOTO, "JPEG", restart_marker_rows=1),
    "JPEG CMYK": lambda: cmyk(),
    "JPEG YCCK": lambda: ycck(),
    "JPEG with a thumbnail": lambda: with_thumbnail(encoded(PHOTO, "JPEG")),
    "JPEG with trailing bytes": lambda: encoded(PHOTO, "JPEG") + b"\xff\xd9 trailing \xff\xd8\xff\xd9" * 9,
    "MPO": lambda: encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)]),
    "WebP": lambda: encoded(PHOTO, "WEBP"),
    "WebP lossless, alpha": lambda: encoded(with_alpha("RGB"), "WEBP", lossless=True, exact=True),
    "GIF": lambda: encoded(palette(), "GIF"),
    "GIF interlaced": lambda: encoded(palette(), "GIF", interlace=True),
    **{f"{kind} turned {i}": partial(rotated, kind, i) for kind, i in itertools.product(("JPEG", "PNG"), range(1, 9))},
}


def inked(key: int = 90) -> NDArray[np.uint8]:
    return np.stack([*np.moveaxis(255 - PIXELS, -1, 0), np.full((H, W), key)], -1).astype(np.uint8)


def cmyk() -> bytes:
    """As PIL writes it: ink inverted, with Adobe's marker, transform 0."""
    return encoded(Image.fromarray(inked(), "CMYK"), "JPEG", quality=95)


def ycck() -> bytes:
    """As Photoshop writes it: ink as YCbCr, key inverted, with Adobe's marker, transform 2."""
    ink = np.asarray(Image.fromarray(inked()[..., :3].copy()).convert("YCbCr"))
    stored = np.dstack([ink, 255 - inked()[..., 3]])  # what is in the file; PIL inverts when it writes
    data = encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=95)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    return data[:place] + b"\x02" + data[place + 1 :]


def with_thumbnail(data: bytes) -> bytes:
    """An APP1 segment that holds a whole other JPEG, with its own end marker."""
    content = b"Thumb\0" + encoded(PHOTO.resize((8, 8)), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", SAME_AS_PIL)
def test_pixels_equal_pils(kind: str) -> None:
    """Exactly for lossless formats; within 2 levels for JPEGs, which two versions of libjpeg may round differently."""
    data = SAME_AS_PIL[kind]()
    ours, theirs = decoded(data).astype(int), by_pil(data).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= (2 if kind.startswith(("JPEG", "MPO", "WebP")) else 0)


def test_ink_becomes_the_right_colour() -> None:
    """Both libraries could make the same mistake, so the colours are compared with known ones."""
    expected = PIXELS.astype(float) * (255 - 90) / 255
    for data in (cmyk(), ycck()):
        assert np.abs(decoded(data) - expected).mean() < 3


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_the_high_byte_of_16_bits_is_kept(colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = np.random.default_rng(1).integers(0, 2**16, (H, W, channels), dtype=np.uint16)
    data = png(W, H, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    shown = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, -1)
    assert np.array_equal(decoded(data), shown >> 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_colour_under_full_transparency_shows(kind: str) -> None:
    image = PHOTO.copy()
    image.putalpha(0)
    data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.array_equal(decoded(data), PIXELS)


def test_transparent_gif_shows_the_background_colour() -> None:
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
    image = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (4, 1))).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    shown = decoded(encoded(image, "GIF", transparency=3, background=2))
    assert (shown == [*colours[:3], colours[2]]).all()


def frames(kind: str) -> bytes:
    return encoded(PHOTO, kind, save_all=True, append_images=[PHOTO.rotate(180)])


def cut_with_end(share: float, options: dict[str, Any]) -> bytes:
    """A JPEG that is cut and given a new end marker: libjpeg only warns."""
    data = encoded(NOISY, "JPEG", **options)
    return data[: int(share * len(data))].rstrip(b"\xff") + b"\xff\xd9"


def flipped(data: bytes) -> bytes:
    """A PNG with one changed bit: torchvision's decoder would abort the process."""
    place = data.index(b"IDAT") + (len(data) - data.index(b"IDAT")) // 2
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def gif_of_huge_frame() -> bytes:
    data = bytearray(encoded(palette(), "GIF"))
    place = data.index(b"\x2c\0\0\0\0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "one byte": (lambda: b"\xff", "it is unknown or damaged; only JPEG, PNG, WebP and GIF are read"),
    "garbage": (lambda: bytes(range(256)) * 4, "it is unknown or damaged"),
    "zeros": (lambda: bytes(1000), "it is unknown or damaged"),
    "a page": (lambda: b"<!DOCTYPE html><html>not found</html>", "it is unknown or damaged"),
    "BMP": (lambda: encoded(PHOTO, "BMP"), "it is BMP; only JPEG, PNG, WebP and GIF are read"),
    "TIFF": (lambda: encoded(PHOTO, "TIFF"), "it is TIFF; only"),
    "ICO": (lambda: encoded(PHOTO, "ICO"), "it is ICO; only"),
    "JPEG 2000": (lambda: encoded(PHOTO, "JPEG2000"), "it is JPEG 2000; only"),
    "AVIF": (lambda: b"\0\0\0\x20ftypavif" + bytes(20), "it is AVIF or HEIC; only"),
    "GIF of frames": (lambda: frames("GIF"), "it holds several frames"),
    "PNG of frames": (lambda: frames("PNG"), "it holds several frames"),
    "WebP of frames": (lambda: frames("WEBP"), "it holds several frames"),
    "WebP to be turned": (lambda: rotated("WEBP", 6), "it is a WebP to be turned (EXIF orientation 6)"),
    "JPEG without end": (lambda: encoded(NOISY, "JPEG")[:-2], "Image is incomplete or truncated"),
    "JPEG in half": (lambda: encoded(NOISY, "JPEG")[:1500], "Image is incomplete or truncated"),
    "JPEG header": (lambda: encoded(NOISY, "JPEG")[:30], "damaged ("),
    "PNG in half": (lambda: encoded(NOISY, "PNG")[:3000], "damaged ("),
    "PNG without end": (lambda: encoded(NOISY, "PNG")[:-12], "damaged ("),
    "PNG with a flipped bit": (lambda: flipped(encoded(NOISY, "PNG")), "damaged ("),
    "PNG of too few rows": (lambda: png(W, H, 2, bytes(100)), "damaged ("),
    "WebP in half": (lambda: encoded(NOISY, "WEBP")[:1000], ""),
    "GIF in half": (lambda: encoded(palette(), "GIF")[:1000], "damaged ("),
    "bomb": (lambda: png(60000, 60000, 2, bytes(1000)), f"it is more than {MAX_PIXELS:,} pixels"),
    "small bomb": (lambda: png(8193, 8192, 2, bytes(1000)), f"8193 x 8192 is more than {MAX_PIXELS:,} pixels"),
    "GIF bomb": (gif_of_huge_frame, f"it is more than {MAX_PIXELS:,} pixels"),
    **{
        f"JPEG cut at {share} with an end, {name}": (
            partial(cut_with_end, share, options),
            "it is cut short: its data end in row " if not options.get("progressive") else "",
        )
        for share in (0.4, 0.6, 0.8, 0.95)
        for name, options in (
            ("sequential", {}),
            ("not subsampled", {"subsampling": 0}),
            ("progressive", {"progressive": True}),
            ("turned", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        )
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_damaged_and_unsupported_files_are_rejected_with_a_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(MlsError, match="^a/b does not decode: " + re.escape(reason)) as caught:
        prove(make(), "a/b")
    assert ".cpp" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_decompression_bomb_is_rejected_before_memory_is_allocated() -> None:
    printed = output_of("""
import resource
from tests.data.support import png
from mls.data.decode import prove
from mls.runtime.errors import MlsError
bomb, before = png(40000, 40000, 2, bytes(1000)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    prove(bomb, "x")
except MlsError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""")
    assert int(printed) < 50_000, "KiB; decoded it would be 4.8 GB"


def test_damaged_pngs_never_abort_the_process() -> None:
    """torchvision's decoder would abort on most of these. (The last chunk is empty, so damage to it has no effect.)"""
    printed = output_of("""
import numpy as np
from tests.data.support import NOISY, encoded, palette
from mls.data.decode import prove
from mls.runtime.errors import MlsError
rng, refused = np.random.default_rng(0), 0
for data in (encoded(NOISY, "PNG"), encoded(palette(), "PNG")):
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(8, len(data) - 12)] ^= int(rng.integers(1, 256))
        try:
            prove(bytes(damaged), "x")
        except MlsError:
            refused += 1
print(refused)
""")
    assert int(printed) == 200


@pytest.mark.parametrize("edge", ["bottom", "top", "left", "right", "all"])
def test_a_grey_border_does_not_make_a_whole_jpeg_look_cut(edge: str) -> None:
    """A border of mid grey looks exactly like missing data."""
    pixels = np.asarray(NOISY).copy()
    where: dict[str, Any] = {
        "bottom": np.s_[-17:],
        "top": np.s_[:17],
        "left": np.s_[:, :17],
        "right": np.s_[:, -17:],
        "all": np.s_[:],
    }
    pixels[where[edge]] = 128
    for progressive in (False, True):
        assert prove(encoded(Image.fromarray(pixels), "JPEG", progressive=progressive), "x").shape == (3, H, W)


def test_decode_names_an_empty_file() -> None:
    with pytest.raises(MlsError, match=r"^x does not decode"):
        decode(torch.empty(0, dtype=torch.uint8), "x")


def test_decoding_shows_no_deprecation_warning() -> None:
    """torchvision plans to drop its decoders; the users of a stage can do nothing about it."""
    printed = output_of("""
from tests.data.support import PHOTO, encoded
from mls.data.decode import prove
print(tuple(prove(encoded(PHOTO, "JPEG"), "x").shape))
""")
    assert printed == f"(3, {H}, {W})\n"
