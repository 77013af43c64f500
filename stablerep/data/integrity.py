"""Whether an encoded picture is whole, by its structure alone: microseconds, where decoding takes milliseconds.

DALI must not see a damaged picture: what nvImageCodec 0.9 does after an error corrupts memory, and the process dies
some pictures later (docs/decisions/0007-damaged-pictures.md). What is not whole goes to Pillow, which decides.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SCAN, END = 0xDA, b"\xff\xd9"
FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive: what libjpeg decodes


def is_whole(data: NDArray[np.uint8]) -> bool:
    """Whether this is a JPEG, PNG or still WebP from its first byte to its last."""
    view = data.data
    head = bytes(view[:32])
    if head.startswith(JPEG):
        return _is_whole_jpeg(view)
    if head.startswith(PNG):
        return _is_whole_png(view)
    return _is_whole_webp(head, len(view))


def is_deep_png(data: NDArray[np.uint8]) -> bool:
    """Whether this is a PNG of 16 bits a channel."""
    head = data[:25].tobytes()
    return head.startswith(PNG) and head[24:] == b"\x10"


def count_pixels(data: NDArray[np.uint8]) -> int:
    """Height times width of a picture that is whole; by its header."""
    view = data.data
    head = bytes(view[:32])
    if head.startswith(PNG):
        return int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
    if head.startswith(JPEG):
        at = 2
        while view[at + 1] not in FRAMES:
            at += 1 if view[at + 1] == 0xFF else 2 + int.from_bytes(view[at + 2 : at + 4], "big")
        return int.from_bytes(view[at + 5 : at + 7], "big") * int.from_bytes(view[at + 7 : at + 9], "big")
    if head[12:16] == b"VP8X":
        return (1 + int.from_bytes(head[24:27], "little")) * (1 + int.from_bytes(head[27:30], "little"))
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    assert head[12:16] == b"VP8 ", "is_whole knows no other"
    return (int.from_bytes(head[26:28], "little") & 0x3FFF) * (int.from_bytes(head[28:30], "little") & 0x3FFF)


def _is_whole_jpeg(view: memoryview) -> bool:
    """Segments that follow each other up to the first scan, with a frame among them, and an end."""
    if bytes(view[-2:]) != END:
        return False
    at, has_frame = 2, False
    while at + 4 <= len(view) and view[at] == 0xFF:
        marker = view[at + 1]
        if marker == SCAN:
            return has_frame
        has_frame |= marker in FRAMES
        at += 1 if marker == 0xFF else 2 + int.from_bytes(view[at + 2 : at + 4], "big")
    return False


def _is_whole_png(view: memoryview) -> bool:
    """Chunks whose checksums are right, up to the last."""
    at = len(PNG)
    while at + 12 <= len(view):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        if bytes(view[at + 4 : at + 8]) == b"IEND":
            return True
        at = end + 4
    return False


def _is_whole_webp(head: bytes, length: int) -> bool:
    animated = head[12:16] == b"VP8X" and head[20] & 2
    is_webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP" and not animated
    return is_webp and int.from_bytes(head[4:8], "little") + 8 <= length
