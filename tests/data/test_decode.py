"""Every kind of picture comes out as Pillow shows it with EXIF applied, at 8 bits and at more."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stablerep.config import UserError
from stablerep.data import encoded
from stablerep.data.bit_range import BitRange, measure_bit_range, parse_bit_range
from stablerep.data.decode import decoded
from stablerep.data.encoded import EncodedPictures, read_all, resolve_bit_range
from stablerep.data.index import index_folder
from stablerep.data.integrity import count_pixels, is_whole
from tests.data.pictures import encode, random_pixels

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
COLOUR = Image.fromarray(random_pixels(1, 37, 53))
ALPHA = Image.fromarray(np.dstack([random_pixels(2, 37, 53), random_pixels(3, 37, 53)[..., 0]]))


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


# name -> picture, format, options. An upper case ending is no other kind.
KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "a.jpg": (COLOUR, "JPEG", {"quality": 90}),
    "B.JPG": (COLOUR, "JPEG", {"subsampling": 0, "progressive": True}),
    "grey.jpeg": (COLOUR.convert("L"), "JPEG", {}),
    "cmyk.jpg": (COLOUR.convert("CMYK"), "JPEG", {}),
    **{f"turned{n}.jpg": (COLOUR, "JPEG", turned(n)) for n in range(1, 9)},
    "turned.png": (COLOUR, "PNG", turned(6)),
    "turned.webp": (COLOUR, "WEBP", turned(6)),
    "turned.tif": (COLOUR, "TIFF", turned(6)),
    "a.png": (COLOUR, "PNG", {}),
    "palette.png": (COLOUR.convert("P"), "PNG", {}),
    "alpha.png": (ALPHA, "PNG", {}),
    "grey_alpha.png": (ALPHA.convert("LA"), "PNG", {}),
    "one_bit.png": (COLOUR.convert("1"), "PNG", {}),
    "transparent_palette.png": (COLOUR.convert("P"), "PNG", {"transparency": 3}),
    "dot.png": (Image.new("RGB", (1, 1), (9, 8, 7)), "PNG", {}),
    "a.webp": (ALPHA, "WEBP", {"lossless": True}),
    "moving.webp": (COLOUR, "WEBP", {"save_all": True, "append_images": [COLOUR.rotate(180)]}),
    "a.bmp": (COLOUR, "BMP", {}),
    "palette.BMP": (COLOUR.convert("P"), "BMP", {}),
    "a.tiff": (COLOUR, "TIFF", {"compression": "tiff_lzw"}),
    "cmyk.tif": (COLOUR.convert("CMYK"), "TIFF", {}),
    "palette.tif": (COLOUR.convert("P"), "TIFF", {}),
    "a.gif": (COLOUR, "GIF", {}),
    "moving.gif": (COLOUR.convert("P"), "GIF", {"save_all": True, "append_images": [COLOUR.rotate(180).convert("P")]}),
    "a.avif": (COLOUR, "AVIF", {}),
    "a.heic": (COLOUR, "HEIF", {}),
    "lying.jpg": (COLOUR, "PNG", {}),
    "a.ppm": (COLOUR, "PPM", {}),
    "large.jpg": (COLOUR.resize((1500, 1000)), "JPEG", {}),
}


def write_kinds(folder: Path) -> None:
    pillow_heif.register_heif_opener()
    for name, (picture, kind, options) in KINDS.items():
        picture.save(folder / name, kind, **options)


def decode_folder(folder: Path, bit_range: str = "auto", batch_size: int = 8) -> dict[str, NDArray[np.uint8] | None]:
    index = index_folder(folder)
    found = resolve_bit_range(bit_range, index)
    pictures = EncodedPictures(index, found)
    with ThreadPoolExecutor(2) as threads:
        of_batches = (
            read_all([(pictures, n) for n in range(start, min(start + batch_size, len(index)))], threads)
            for start in range(0, len(index), batch_size)
        )
        batches = decoded(of_batches, batch_size=batch_size, num_threads=1, device=CPU, deep=found is not None)
        shown = [None if picture is None else picture.numpy().copy() for batch in batches for picture in batch]
    return {path.name: picture for path, picture in zip(index.files, shown, strict=True)}


def test_every_kind_as_pillow_shows_it(tmp_path: Path) -> None:
    write_kinds(tmp_path)
    shown = decode_folder(tmp_path)
    assert set(shown) == set(KINDS)
    for name, pixels in shown.items():
        with Image.open(tmp_path / name) as photo:
            expected = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
        assert pixels is not None, name
        np.testing.assert_array_equal(pixels, expected, err_msg=name)


def write_16_bit_png(path: Path, values: NDArray[np.uint16]) -> None:
    """Grey or colour; Pillow writes grey ones only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("text", ["1000:3000", "full", "auto"])
def test_more_than_8_bits(tmp_path: Path, text: str) -> None:
    random = np.random.default_rng(0)
    grey, colour = (random.integers(500, 4000, shape, dtype=np.uint16) for shape in ((20, 31), (20, 31, 3)))
    write_16_bit_png(tmp_path / "grey.png", grey)
    write_16_bit_png(tmp_path / "colour.PNG", colour)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    COLOUR.save(tmp_path / "eight.png")  # beside them, and as it is
    shown = decode_folder(tmp_path, text)
    everything = np.concatenate([grey.ravel(), grey.ravel(), colour.ravel()])
    low, high = {"1000:3000": (1000, 3000), "full": (0, 65535), "auto": np.percentile(everything, (0.1, 99.9))}[text]
    for name, values in (("grey.png", grey), ("grey.tif", grey), ("colour.PNG", colour)):
        expected = ((values.astype(float) - low) * 255 / (high - low)).clip(0, 255)
        expected = expected if values.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
        assert shown[name] is not None and np.abs(shown[name] - expected).max() <= 0.5 + 1e-3, name
    np.testing.assert_array_equal(shown["eight.png"], np.asarray(COLOUR))


def test_floating_point_tiff(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tiff")
    for text, low, high in (("full", 0, 1), ("0:2", 0, 2)):
        shown = decode_folder(tmp_path, text)["a.tiff"]
        expected = ((np.nan_to_num(values, nan=low).astype(float) - low) * 255 / (high - low)).clip(0, 255)
        assert shown is not None and np.abs(shown[..., 1] - expected).max() <= 0.5


def test_what_is_damaged_is_none_and_takes_nobody_with_it(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(random_pixels(number)).save(tmp_path / f"{number:02}.jpg")
    whole = decode_folder(tmp_path, batch_size=4)
    data = (tmp_path / "03.jpg").read_bytes()
    for number, bad in ((3, data[: len(data) // 2]), (4, b""), (5, b"a letter to a friend"), (11, data[:30])):
        (tmp_path / f"{number:02}.jpg").write_bytes(bad)
    shown = decode_folder(tmp_path, batch_size=4)
    assert [name for name, picture in shown.items() if picture is None] == ["03.jpg", "04.jpg", "05.jpg", "11.jpg"]
    for name, picture in shown.items():
        if picture is not None:
            np.testing.assert_array_equal(picture, whole[name])


def test_damage_that_the_structure_does_not_show(tmp_path: Path) -> None:
    """After an error of DALI's the process may die of it: a process of its own, in which Pillow goes on."""
    for number in range(20):
        Image.fromarray(random_pixels(number)).save(tmp_path / f"{number:02}.jpg")
    data = bytearray((tmp_path / "13.jpg").read_bytes())
    tables = data.index(b"\xff\xc4")
    data[tables + 5 : tables + 21] = bytes([255] * 16)  # Huffman codes that cannot be
    (tmp_path / "13.jpg").write_bytes(data)
    assert is_whole(np.frombuffer(data, np.uint8))
    code = f"""
from pathlib import Path
import numpy as np
from PIL import Image
from tests.data.test_decode import decode_folder
for name, picture in decode_folder(Path({str(tmp_path)!r}), batch_size=3).items():
    expected = None if name == "13.jpg" else np.asarray(Image.open(Path({str(tmp_path)!r}) / name))
    assert expected is picture or np.array_equal(expected, picture), name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Pillow decodes from here on" in done.stderr


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cut_pictures_are_not_whole(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    whole = np.frombuffer(encode(random_pixels(5, 40, 30), kind), np.uint8)
    assert is_whole(whole)
    assert not is_whole(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_size_by_header(tmp_path: Path) -> None:
    write_kinds(tmp_path)
    for quality in ({"lossless": True}, {"quality": 50}, {"lossless": True, "exif": turned(6)["exif"]}):
        COLOUR.save(tmp_path / "b.webp", **quality)
        for path in tmp_path.iterdir():
            data = np.frombuffer(path.read_bytes(), np.uint8)
            with Image.open(path) as photo:
                if is_whole(data):
                    assert count_pixels(data) == photo.width * photo.height, path.name


def test_large_pictures_are_decoded_few_at_a_time(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(random_pixels(number, 100, 100 + number)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "03.png").write_bytes(b"")
    pictures = EncodedPictures(index_folder(tmp_path))
    with ThreadPoolExecutor(2) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "CHUNK_BYTES", 4 * 3 * 100 * 105)
        chunks = list(encoded.read_in_chunks(((pictures, n) for n in range(12)), threads, most=5))
        whole = encoded.read_all(((pictures, n) for n in range(12)), threads)
    assert [len(chunk) for chunk in chunks] == [5, 3, 3, 1]
    assert [each and each.data.tobytes() for chunk in chunks for each in chunk] == [
        each and each.data.tobytes() for each in whole
    ]


def test_damaged_deep_pictures_do_not_stop_the_measuring(tmp_path: Path) -> None:
    values = np.full((8, 8), 700, np.uint16)
    values[:4] = 1700
    for name in ("a.png", "b.png"):
        write_16_bit_png(tmp_path / name, values)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    assert resolve_bit_range("auto", index_folder(tmp_path)) == BitRange(700, 1700)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    with pytest.raises(UserError, match="none of 2 pictures of 16 bits can be decoded"):
        resolve_bit_range("auto", index_folder(tmp_path))


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), values=st.lists(st.floats(-2e6, 2e6), min_size=1))
@settings(max_examples=50, deadline=None)
def test_range_is_monotonic_and_meets_its_ends(low: float, width: float, values: list[float]) -> None:
    range_ = BitRange(low, low + width)
    shades = range_.to_uint8(np.sort(np.array(values)))
    assert (np.diff(shades.astype(int)) >= 0).all()
    assert range_.to_uint8(np.array([low, range_.high])).tolist() == [0, 255]


def test_measured_range_ignores_hot_pixels_and_flat_pictures() -> None:
    values = np.full((100, 100), 1000.0)
    values[:50] = 2000
    values[0, :3] = 65_535
    assert measure_bit_range([values]) == BitRange(1000, 2000)
    assert measure_bit_range([np.full((4, 4), 7.0)]) == BitRange(7, 8)


@pytest.mark.parametrize("text", ["", "12", "5:5", "9:1", "a:b", "0:inf", "nan:1"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--bit-range .*: give auto, full or LOW:HIGH"):
        parse_bit_range(text)
