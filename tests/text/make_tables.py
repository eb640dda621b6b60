"""Write the Unicode tables of the tokenizers: src/lilliput/text/c/lil_text_properties.c and lil_text_maps.c.

    python tests/text/make_tables.py

Hugging Face's tokenizers are made of parts that carry Unicode tables of different ages, and Python's `unicodedata` is
of another age with each version of Python. So the tables are what the installed package `tokenizers` is seen to do with
every code point: facts of the Unicode Character Database, in the versions that this package has.
"""

import unicodedata
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

FOLDER = Path(__file__).resolve().parents[2] / "src" / "lilliput" / "text" / "c"
HANGUL = range(0xAC00, 0xAC00 + 11172)  # decomposed by arithmetic
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
WIDTH = 116
HEADER = """\
/* Written by tests/text/make_tables.py: what Hugging Face's tokenizers {version} does with every code point. */
#include "lil_text_unicode.h"
"""

Test = Callable[[str], bool]


def bert(**switches: bool) -> normalizers.BertNormalizer:
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**{**off, **switches})


CLEAN, CJK, STRIP, LOWER = (
    bert(**{name: True}) for name in ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
)
NFD = normalizers.NFD()


def in_class(pattern: str) -> Test:
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return lambda char: not split.pre_tokenize_str(char)


def word() -> Test:
    """Whether a token that stands alone is not found behind this character."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_tokens([AddedToken("<m>", single_word=True)])
    alone = tokenizer.token_to_id("<m>")
    return lambda char: alone not in tokenizer.encode(char + "<m>").ids


def combining(char: str) -> bool:
    """Whether its canonical combining class is not 0: it changes places with a mark of class 240 (U+0345), or 230."""
    parts = NFD.normalize_str(char)
    if parts != char:
        return all(combining(part) for part in parts)
    return (
        NFD.normalize_str("\u0345" + char) != "\u0345" + char or NFD.normalize_str(char + "\u0301") != char + "\u0301"
    )


def tests() -> dict[str, Test]:
    """The bits of lil_text_unicode.h, from the lowest."""
    punctuation = pre_tokenizers.BertPreTokenizer()
    return {
        "LETTER": in_class(r"\p{L}"),
        "NUMBER": in_class(r"\p{N}"),
        "SPACE": in_class(r"\s"),
        "WORD": word(),
        "REMOVED": lambda char: CLEAN.normalize_str(char) == "",
        "PUNCTUATION": lambda char: len(punctuation.pre_tokenize_str("a" + char + "b")) == 3,
        "CJK": lambda char: CJK.normalize_str(char) != char,
        "MARK": lambda char: STRIP.normalize_str(char) == "",
        "COMBINING": combining,
        "DECOMPOSED": lambda char: STRIP.normalize_str(char) not in ("", char),
    }


def properties() -> list[int]:
    """code point << 11 | bits, wherever the bits change."""
    checks = list(tests().values())
    changes: list[int] = []
    before = -1
    for code in range(0x110000):
        char = chr(code)
        bits = 0 if 0xD800 <= code < 0xE000 else sum(check(char) << bit for bit, check in enumerate(checks))
        if bits != before:
            changes.append(code << 11 | bits)
        before = bits
    return changes


def trailing(parts: list[str]) -> list[str]:
    """The combining characters behind the last one that is none."""
    while any(not combining(part) for part in parts):
        parts = parts[1:]
    return parts


def stripped() -> tuple[list[int], list[list[int]]]:
    """What NFD without marks makes of a character: one other (code << 24 | other), or up to three in rows of four."""
    single: list[int] = []
    several: list[list[int]] = []
    for code in CODE_POINTS:
        result = [ord(char) for char in STRIP.normalize_str(chr(code))]
        if code in HANGUL or result in ([], [code]):
            continue
        assert len(result) <= 3
        # That other marks are gone changes nothing in what the marks around it may change places with.
        assert not combining(chr(result[0])), hex(code)
        parts = [part for part in NFD.normalize_str(chr(code)) if ord(part) in result or not combining(part)]
        assert trailing(parts) == trailing([chr(part) for part in result]), hex(code)
        if len(result) == 1:
            single.append(code << 24 | result[0])
        else:
            several.append([code, *result, *[0] * (3 - len(result))])
    return single, several


def orders() -> list[list[int]]:
    """The combining class of the characters that have one and are kept: first, last, class."""
    marks = {unicodedata.combining(chr(code)): chr(code) for code in range(0x300, 0x600)}
    marks.pop(0)
    rows: list[list[int]] = []
    for code in CODE_POINTS:
        char = chr(code)
        if not combining(char) or STRIP.normalize_str(char) == "":
            continue
        order = unicodedata.combining(char)
        for other, mark in marks.items():
            assert (NFD.normalize_str(char + mark) != char + mark) == (order > other), hex(code)
            assert (NFD.normalize_str(mark + char) != mark + char) == (order < other), hex(code)
        if rows and rows[-1][1:] == [code - 1, order]:
            rows[-1][1] = code
        else:
            rows.append([code, code, order])
    return rows


def lowered() -> list[list[int]]:
    """Runs of characters with a lower case: first, last, step, what to add (modulo 2^32). U+0130 is not among them."""
    rows: list[list[int]] = []
    for code in CODE_POINTS:
        lower = LOWER.normalize_str(chr(code))
        if code == 0x130:
            assert lower == "i\u0307"
        elif lower != chr(code):
            assert not combining(chr(code))
            assert len(lower) == 1
            difference = (ord(lower) - code) % 2**32
            if rows and rows[-1][3] == difference:
                first, last, step, _ = rows[-1]
                if code - last == step or (first == last and code - last <= 2):
                    rows[-1] = [first, code, code - last, difference]
                    continue
            rows.append([code, code, 1, difference])
    return rows


def wrapped(literals: Iterable[str]) -> str:
    lines = [""]
    for literal in literals:
        if len(lines[-1]) + len(literal) + 2 > WIDTH:
            lines.append("")
        lines[-1] += f" {literal},"
    return "\n   ".join(lines)


def array(kind: str, name: str, values: list[int]) -> str:
    return f"\nconst {kind} {name}[] = {{\n   {wrapped(f'0x{value:X}' for value in values)}\n}};\n" + count(name)


def rows_of(name: str, rows: list[list[int]]) -> str:
    literals = ("{" + ", ".join(f"0x{value:X}" for value in row) + "}" for row in rows)
    return f"\nconst uint32_t {name}[][{len(rows[0])}] = {{\n   {wrapped(literals)}\n}};\n" + count(name)


def count(name: str) -> str:
    return f"const size_t {name}_count = sizeof {name} / sizeof {name}[0];\n"


def main() -> None:
    header = HEADER.format(version=version("tokenizers"))
    text = header + array("uint32_t", "lil_text_properties", properties())
    (FOLDER / "lil_text_properties.c").write_text(text, encoding="utf-8")
    single, several = stripped()
    text = header + array("uint64_t", "lil_text_stripped", single) + rows_of("lil_text_stripped_long", several)
    text += rows_of("lil_text_lowered", lowered()) + rows_of("lil_text_orders", orders())
    (FOLDER / "lil_text_maps.c").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
