"""What the text of a prompt says by itself: its key among captions, and its script."""

from __future__ import annotations

import unicodedata

FULL_STOPS = ".。"


def caption_key(text: str) -> str:
    """The same for captions that say the same: Unicode NFKC, case folded, blanks collapsed, no full stops at the end.

    "A red  shoe." and "a red shoe" have one key; "a red shoe!" has another. The key of a key is itself.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split()).rstrip(FULL_STOPS + " ")


def is_outside_latin(text: str) -> bool:
    """Whether more than half of a text's letters are of another script than Latin. A text without letters is not."""
    if text.isascii():
        return False
    letters = [letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    outside = sum(not (letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")) for letter in letters)
    return 2 * outside > len(letters)
