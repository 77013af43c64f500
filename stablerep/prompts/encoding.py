"""Bytes of a text file to text: by its byte order mark, by the encoding that the user names, else UTF-8."""

from __future__ import annotations

import codecs
import itertools
import re

# UTF-32's first: its little endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
BOM = "\ufeff"
SAMPLE = 1 << 16  # bytes, whole lines from the first that is not ASCII; files of prompts have gigabytes
KANA, HANGUL = re.compile("[\u3041-\u30ff]"), re.compile("[\uac00-\ud7a3]")


class EncodingError(ValueError):
    """A text that is not in the encoding it was read in; likely is the one it probably is in."""

    def __init__(self, message: str, likely: str) -> None:
        super().__init__(message)
        self.likely = likely


def is_encoding(name: str) -> bool:
    """Whether Python knows a text encoding of that name (base64 and its like are none)."""
    try:
        "".encode(name)
        return True
    except LookupError:
        return False


def decode(data: bytes, encoding: str | None = None) -> str:
    """The text of a file's bytes, without its byte order mark.

    Without an encoding the mark says which, and where there is none the text must be UTF-8.

    Raises:
        EncodingError: bytes that are no text in that encoding, or text with NUL characters (UTF-16 read as UTF-8).
        UnicodeError: bytes that are not what their mark says.
    """
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if marked and not encoding:
        return data.decode(marked).removeprefix(BOM)
    encoding = encoding or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        raise EncodingError(f"is no {encoding} text", likely_encoding(data)) from error
    if "\0" in text:
        raise EncodingError(f"holds NUL characters as {encoding}", likely_encoding(data))
    return text.removeprefix(BOM)


def likely_encoding(data: bytes) -> str:
    """The encoding that bytes which are no UTF-8 are probably in: a hint for a message, never a decision.

    Every other byte of UTF-16 is often zero. East Asian characters stand side by side; of their encodings Shift-JIS
    alone begins them with 0x81 to 0x9f. Letters of Western Europe stand alone between ASCII ones.
    """
    if 8 * data[:SAMPLE].count(0) > len(data[:SAMPLE]):
        return "utf-16-le" if data[1:SAMPLE:2].count(0) > data[:SAMPLE:2].count(0) else "utf-16-be"
    if first := re.search(b"[\x80-\xff]", data):
        start = data.rfind(b"\n", 0, first.start()) + 1
        end = start + SAMPLE
        data = data[start : data.rfind(b"\n", start, end) + 1 or end] if end < len(data) else data[start:]
    high = [byte for byte in data if byte >= 0x80]
    if 5 * sum(byte < 0xA0 for byte in high) > len(high) and _east_asian(data, "cp932"):
        return "cp932"
    for name, letters, least in (("euc_jp", KANA, 0.1), ("cp949", HANGUL, 0.9)):
        text = _east_asian(data, name)
        if text and len(letters.findall(text)) > least * sum(not letter.isascii() for letter in text):
            return name
    for name in ("gb2312", "big5", "gb18030"):
        if _east_asian(data, name):
            return name
    return "cp1252" if _decoded(data, "cp1252") else "latin-1"


def _east_asian(data: bytes, encoding: str) -> str | None:
    """The text, if most characters that are no ASCII have a neighbour that is none either."""
    text = _decoded(data, encoding) or ""
    foreign = [not letter.isascii() for letter in text]
    pairs = sum(one and other for one, other in itertools.pairwise(foreign))
    return text if 0 < sum(foreign) <= 2 * pairs else None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeError:
        return None
