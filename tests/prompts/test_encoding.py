"""Files as Excel and older editors save them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.prompts import read_prompts
from stablerep.prompts.encoding import decode, likely_encoding
from stablerep.prompts.writer import read_classes

TEXTS = {
    "cp932": ["暗い色の靴の写真", "白いバッグ, ﾊﾝﾄﾞ"],
    "euc_jp": ["暗い色の靴の写真", "白いバッグ"],
    "gb2312": ["一张深色鞋子的照片", "白色的包"],
    "big5": ["一張深色鞋子的照片", "白色的包"],
    "cp949": ["어두운 신발 사진", "하얀 가방"],
    "cp1252": ["ein Stiefel für den Händler", "a bag – it’s “white”", "une robe très légère"],
    "utf-16-le": ["a photo of a shoe", "Stiefel für Zürich"],
    "utf-16-be": ["a photo of a shoe", "暗い色の靴"],
}


@pytest.mark.parametrize("ending", ["txt", "csv"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_another_encoding_is_named_and_then_read(encoding: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"p.{ending}"
    lines = TEXTS[encoding] if ending == "txt" else ["prompt;n", *(f'"{text}";1' for text in TEXTS[encoding])]
    path.write_bytes("\r\n".join(lines).encode(encoding))
    with pytest.raises(UserError, match=f"it is probably {encoding}: add --encoding {encoding}$") as error:
        read_prompts(path)
    assert "\n" not in str(error.value)
    assert [prompt.text for prompt in read_prompts(path, encoding)] == TEXTS[encoding]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("given", [False, True])
def test_a_byte_order_mark_says_how(encoding: str, given: bool, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("a shoe\n靴\n".encode(encoding))
    prompts = read_prompts(tmp_path / "p.txt", encoding.removesuffix("-sig") if given else None)
    assert [prompt.text for prompt in prompts] == ["a shoe", "靴"]


def test_a_file_in_another_encoding_than_the_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("für\n".encode("cp1252"))
    with pytest.raises(UserError, match="is no ascii text; it is probably cp1252"):
        read_prompts(tmp_path / "p.txt", "ascii")
    assert decode(b"\x81\xfe", "latin-1") == "\x81þ"
    assert likely_encoding(b"a\x81 \xfe") == "latin-1"  # what cp1252 leaves undefined


@pytest.mark.parametrize("name", ["cp99999", "base64"])
def test_an_unknown_encoding(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--encoding {name} is unknown"):
        GenerateConfig(prompts=tmp_path / "p.txt", out=tmp_path, encoding=name)


def test_the_encoding_of_a_long_file_is_seen_where_it_is_not_ascii() -> None:
    ascii_lines = b"a photo of a shoe\n" * 20_000
    assert likely_encoding(ascii_lines + "暗い色の靴\n".encode("cp932") * 20_000 + b"\x81") == "cp932"
    assert likely_encoding(ascii_lines + "für Zürich\n".encode("cp1252") + ascii_lines) == "cp1252"


def test_classes_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("靴\nバッグ\n".encode("cp932"))
    with pytest.raises(UserError, match=r"--classes .* it is probably cp932: save it as UTF-8"):
        read_classes(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_text("靴\nバッグ\n", encoding="utf-16")
    assert read_classes(tmp_path / "c.txt") == ["靴", "バッグ"]


def test_parquet_knows_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--encoding cp932 is for text files"):
        read_prompts(tmp_path / "p.parquet", "cp932")
