"""Spoiled containers: header, section table, gaps, golden examples and metadata."""

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from .draft import RECORD_BYTES, SECTION_NAMES, Case, Draft, seal
from .programs import good_program


def _bytes(name: str, message: str, change: Callable[[bytearray], bytes | bytearray]) -> Case:
    """A change of the finished file; what `change` gives is the file, checksum included."""
    return Case(name, message, lambda d: d.byte_changes.append(change))


def _patch(data: bytearray, offset: int, code: str, value: int) -> bytearray:
    struct.pack_into(code, data, offset, value)
    return seal(data)


def _flip(data: bytearray, offset: int) -> bytearray:
    data[offset] ^= 1
    return data


def outside() -> list[Case]:
    """Not a file of ours, cut, altered, of another version; the header."""
    header = [
        ("header-zero", "max_tokens", 1, "field at 44 is 1; must be 0"),
        ("sections-5", "sections", 5, "number of sections is 5; must be 6"),
        ("sections-huge", "sections", 2**32 - 1, "number of sections is 4294967295; must be 6"),
        ("input-out-of-range", "input", 10**6, "input buffer is 1000000; there are"),
        ("output-out-of-range", "output", 2**32 - 1, "output buffer is 4294967295; there are"),
        ("input-not-u8", "input", 1, "input buffer 1: dtype is f32; must be u8"),
        ("output-not-f32", "output", 0, "output buffer 0: dtype is u8; must be f32"),
        ("output-many-rows", "output", 1, "output buffer 1: (arena offset|rows) is"),
        ("arena-zero", "arena_bytes", 0, "arena bytes is 0; the buffers need"),
        ("arena-larger", "arena_bytes", 2**20, "arena bytes is 1048576; the buffers need"),
        ("arena-above-limit", "arena_bytes", 2**63, "arena bytes is 9223372036854775808; must be at most"),
        ("arena-all-ones", "arena_bytes", 2**64 - 1, "arena bytes is 18446744073709551615; must be at most"),
    ]
    return [
        _bytes("empty", "not a .lil file", lambda d: b""),
        _bytes("foreign", "not a .lil file", lambda d: b"\x89PNG\r\n\x1a\n" + bytes(400)),
        _bytes("text-mode-copy", "not a .lil file", lambda d: bytes(d).replace(b"\r\n", b"\n")),
        _bytes("cut-in-magic", "truncated: 5 bytes", lambda d: d[:5]),
        _bytes("cut-in-header", "truncated: 47 bytes", lambda d: d[:47]),
        _bytes("cut-in-table", "truncated: 191 bytes", lambda d: d[:191]),
        _bytes("cut-in-half", r"truncated: \d+ bytes of \d+", lambda d: d[: len(d) // 2]),
        _bytes("cut-last-byte", r"truncated: \d+ bytes of \d+", lambda d: d[:-1]),
        _bytes("byte-appended", "altered or damaged: .* bytes; its header says", lambda d: d + b"\0"),
        _bytes("version-3", "format version 3; this build reads versions 1 and 2", lambda d: _patch(d, 8, "<I", 3)),
        _bytes("version-0", "format version 0; this build reads versions 1 and 2", lambda d: _patch(d, 8, "<I", 0)),
        _bytes("header-version-2", "number of sections is 6; must be 7", lambda d: _patch(d, 8, "<I", 2)),
        Case("version-not-the-lowest", "has format version 2; a file of its ops has version 1", lambda d: d.become(2)),
        _bytes("crc-wrong", "altered or damaged: checksum", lambda d: _flip(d, 12)),
        _bytes("byte-flipped-in-table", "altered or damaged: checksum", lambda d: _flip(d, 60)),
        _bytes("byte-flipped-in-middle", "altered or damaged: checksum", lambda d: _flip(d, len(d) // 2)),
        _bytes("byte-flipped-at-end", "altered or damaged: checksum", lambda d: _flip(d, len(d) - 1)),
        _bytes("size-larger", "truncated", lambda d: _patch(d, 16, "<Q", len(d) + 1)),
        _bytes("size-all-ones", "truncated", lambda d: _patch(d, 16, "<Q", 2**64 - 1)),
        _bytes("size-smaller", "altered or damaged", lambda d: _patch(d, 16, "<Q", len(d) - 1)),
        _bytes("size-zero", "altered or damaged", lambda d: _patch(d, 16, "<Q", 0)),
        *(
            Case(name, message, partial(Draft.set_header, field=field, value=value))
            for name, field, value, message in header
        ),
    ]


def table() -> list[Case]:
    """The section table."""
    entries = []
    for number, name in enumerate(SECTION_NAMES, start=1):
        where = rf"section {number} \({name}\)"
        for label, field, value, message in (
            ("kind-0", "kind", 0, f"{where}: kind is 0; must be {number}"),
            ("kind-of-next", "kind", number % 6 + 1, f"{where}: kind is"),
            ("offset-zero", "offset", 0, f"{where}: offset is 0; must be"),
            ("offset-unaligned", "offset", 200, f"{where}: offset is 200; must be"),
            ("offset-wraps", "offset", 2**64 - 64, f"{where}: offset is 18446744073709551552; must be"),
            ("bytes-all-ones", "bytes", 2**64 - 1, f"{where}: bytes is 18446744073709551615; the file ends"),
            ("bytes-wrap-to-0", "bytes", 2**64 - 192, f"{where}: bytes is 18446744073709551424; the file ends"),
            ("count-huge", "count", 2**32 - 1, f"4294967295 {name}; at most|{name}: (bytes is .* take|count is 429)"),
        ):
            edit = partial(Draft.set_table, section=name, field=field, value=value)
            entries.append(Case(f"{name}-section-{label}", message, edit))
    return entries


def counts() -> list[Case]:
    """Counts that disagree with the sections' bytes, or are too many."""

    def count_off(d: Draft, name: str, step: int) -> None:
        d.set_table(name, "count", d.counts[name] + step)

    def too_many(d: Draft, name: str) -> None:
        d.payloads[name] += d.payloads[name][-RECORD_BYTES[name] :] * (65536 - d.counts[name])
        d.counts[name] = 65536
        if name == "buffers":
            d.edit_metadata(lambda tree: tree.update(buffers=[""] * 65536))

    def off(label: str, name: str, step: int, message: str) -> Case:
        return Case(f"{name}-section-count-{label}", message, partial(count_off, name=name, step=step))

    return [
        *(off("more", name, 1, f"{name}: (bytes is .* take|count is )") for name in SECTION_NAMES[:4]),
        *(off("less", name, -1, f"{name}: (bytes is .* take|count is )") for name in SECTION_NAMES[:4]),
        # 2^29 more records of 24 or 40 bytes are a multiple of 2^32 more bytes: equal in 32-bit arithmetic.
        *(off("wraps", name, 2**29, rf"5368709\d\d {name}; at most 65535") for name in SECTION_NAMES[:3]),
        *(
            Case(f"too-many-{name}", f"65536 {name}; at most 65535", partial(too_many, name=name))
            for name in ("buffers", "ops")
        ),
    ]


def gaps() -> list[Case]:
    """Bytes between and after the sections."""

    def dirty_before(d: Draft, name: str) -> None:
        def dirty(data: bytearray) -> bytearray:
            entry = 48 + 24 * SECTION_NAMES.index(name)
            before, size, offset = struct.unpack_from("<QQ8xQ", data, entry - 24 + 8)
            assert before + size < offset, "there is a gap"
            data[offset - 1] = 1
            return seal(data)

        d.byte_changes.append(dirty)

    def extended(data: bytearray) -> bytearray:
        return _patch(data + bytes(64), 16, "<Q", len(data) + 64)

    return [
        *(
            Case(f"{name}-section-dirty-gap", rf"\({name}\): the gap before it", partial(dirty_before, name=name))
            for name in SECTION_NAMES[1:]
        ),
        _bytes("bytes-after-last-section", r"\(golden\): ends at \d+; must end the file", extended),
    ]


def golden() -> list[Case]:
    """Golden examples: one input of 48 bytes, a gap of 16, one output of 12."""

    def gap(d: Draft) -> None:
        d.payloads["golden"][48] = 1

    def extra(d: Draft) -> None:
        d.payloads["golden"] += bytes(4)

    def cut(d: Draft) -> None:
        del d.payloads["golden"][-1:]

    def none_but_bytes(d: Draft) -> None:
        d.counts["golden"] = 0

    def examples(d: Draft, count: int) -> None:
        d.counts["golden"] = count

    return [
        Case("golden-dirty-gap", "section golden: the gap before the outputs is not zero", gap),
        Case("golden-extra-bytes", "section golden: bytes is 80; 1 examples take 76", extra),
        Case("golden-cut", "section golden: bytes is 75; 1 examples take 76", cut),
        Case("golden-count-0", "section golden: bytes is 76; 0 examples take 0", none_but_bytes),
        Case("golden-count-2", "section golden: bytes is 76; 2 examples take", lambda d: examples(d, 2)),
        # 2^30 more inputs of 48 bytes and outputs of 12 are multiples of 2^32 more bytes.
        Case("golden-count-wraps", "section golden: bytes is 76; .* take", lambda d: examples(d, 1 + 2**30)),
    ]


def metadata() -> list[Case]:
    """What only the Python half reads, and the section's count."""

    def text(label: str, content: bytes, message: str) -> Case:
        def edit(d: Draft) -> None:
            d.payloads["metadata"] = bytearray(content)

        return Case(f"metadata-{label}", message, edit, metadata_only=True)

    def tree(label: str, change: Callable[[dict[str, Any]], Any], message: str) -> Case:
        return Case(f"metadata-{label}", message, lambda d: d.edit_metadata(change), metadata_only=True)

    def put(field: str, index: int, value: object) -> Callable[[dict[str, Any]], Any]:
        return lambda t: t[field].__setitem__(index, value)

    not_json = "section metadata: not JSON in UTF-8"
    good = json.dumps({**good_program().metadata, "labels": ["@", "b", "c"]}).encode()
    return [
        Case("metadata-count-2", "metadata: count is 2; must be 1", lambda d: d.set_table("metadata", "count", 2)),
        Case("metadata-count-0", "metadata: count is 0; must be 1", lambda d: d.set_table("metadata", "count", 0)),
        text("empty", b"", not_json),
        text("not-json", b"{'task': 1}", not_json),
        text("not-utf8", b'{"task": "\xff"}', not_json),
        text("utf16", '{"task": "x"}'.encode("utf-16"), not_json),
        text("two-objects", b"{}{}", not_json),
        text("nan", b'{"task": NaN}', not_json),
        text("infinity", b'{"task": -Infinity}', not_json),
        text("overflow", b'{"task": 1e999}', not_json),
        text("deep", b'{"task":' + b"[" * 100_000, not_json),
        text("huge-integer", b'{"task":' + b"9" * 10_000 + b"}", not_json),
        text("unpaired-surrogate", good.replace(b"@", b"\\ud800"), not_json),
        text("list", b"[]", "section metadata: must be one JSON object"),
        text("null", b"null", "section metadata: must be one JSON object"),
        tree("no-task", lambda t: t.pop("task"), "metadata: task is None; must be image-classification"),
        tree("task-list", lambda t: t.update(task=[1]), r"metadata: task is \[1\]; must be image-classification"),
        tree(
            "task-of-texts",
            lambda t: t.update(task="text-embedding", labels=[]),
            "metadata: task is 'text-embedding'; must be image-classification",
        ),
        tree("no-labels", lambda t: t.pop("labels"), "metadata: labels must be a list of strings"),
        tree("labels-numbers", lambda t: t.update(labels=[1, 2, 3]), "metadata: labels must be a list of strings"),
        tree(
            "labels-short", lambda t: t["labels"].pop(), "metadata: 2 labels; must be 3, as the task and the output say"
        ),
        tree("no-image", lambda t: t.pop("image"), "metadata: image is None; must hold"),
        tree("image-list", lambda t: t.update(image=[4, 4, 3]), "metadata: image is .*; must hold"),
        tree("image-bool", lambda t: t["image"].update(height=True), "metadata: image is .*; must hold"),
        tree("image-zero", lambda t: t["image"].update(width=0), "metadata: image is .*; must hold"),
        tree("image-lies", lambda t: t["image"].update(width=5), "metadata: image is 4 x 5 x 3; the input buffer is"),
        tree("image-channels", lambda t: t["image"].update(channels=1), "metadata: image is 4 x 4 x 1; the input"),
        tree("no-tensors", lambda t: t.pop("tensors"), "metadata: tensors is missing; must be a list"),
        tree("tensors-short", lambda t: t["tensors"].pop(), r"metadata: tensors has \d+ entries; there are"),
        tree("tensors-entry-string", put("tensors", 0, "ab"), "tensors entry 0 is ab; must be a name"),
        tree("tensors-entry-long", lambda t: t["tensors"][0].append("x"), "tensors entry 0 is .*; must be a name"),
        tree("tensors-name-number", put("tensors", 0, [1, "constant"]), "tensors entry 0 is .*; must be a name"),
        tree("tensors-role", put("tensors", 0, ["x", "gift"]), r"tensor 0 \(x\): role is 'gift'; must be one of"),
        tree("no-buffers", lambda t: t.pop("buffers"), "metadata: buffers is missing; must be a list"),
        tree("buffers-long", lambda t: t["buffers"].append("x"), r"metadata: buffers has \d+ entries; there are"),
        tree("buffers-entry-number", put("buffers", 0, 1), "buffers entry 0 is 1; must be a string"),
    ]
