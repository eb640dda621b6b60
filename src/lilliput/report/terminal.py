"""What `inspect_file` found, as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lilliput.report.inspect import CATEGORIES
from lilliput.report.text import count, percent, short_bytes

LIFE_COLUMNS = 48
BAR_COLUMNS = 24


def print_inspection(contents: dict[str, Any], console: Console) -> None:
    """Print the summary, the bytes by kind and by layer, the ops, and a picture of the buffer plan."""
    console.print(_summary(contents), highlight=False, soft_wrap=True)
    for table in (_kinds(contents), _layers(contents), _ops(contents), _plan(contents)):
        console.print()
        console.print(table)


def print_ledger(ledger: list[dict[str, Any]], console: Console) -> None:
    """Print what `read_ledger` found."""
    table = table_of("Guarantees", ("made by", "what must stay true", "held after"), ())
    for entry in ledger:
        table.add_row(entry["stage"], escape(entry["detail"]), ", ".join(entry["checked"]))
    console.print()
    console.print(table)


def _summary(contents: dict[str, Any]) -> str:
    ratio = contents["fp32_bytes"] / contents["file_bytes"]
    formats = ", ".join(f"{name} {count(number)}" for name, number in contents["formats"].items()) or "none"
    lines = [
        f"[bold]{escape(contents['file'])}[/bold]: {count(contents['file_bytes'])} bytes, {ratio:.2f} times under the "
        f"{count(contents['fp32_bytes'])} bytes of its {count(contents['parameters'])} parameters in fp32",
        f"weights: {count(contents['weights'])}, of which {count(contents['nonzero_weights'])} are not zero "
        f"(sparsity {percent(contents['sparsity'])}, counted on the decoded codes); formats: {formats}",
    ]
    if contents["packed_bytes"] is not None:
        share = contents["packed_bytes"] / contents["file_bytes"]
        lines.append(f"packed: {count(contents['packed_bytes'])} bytes, {percent(share)} of these")
    sequence = contents["sequence"]
    if sequence is None:
        work = "an example"
        arena = f"{count(contents['arena_bytes'])} bytes"
    else:
        work = f"for {count(sequence['num_tokens'])} tokens"
        each, most = count(sequence["arena_bytes_per_token"]), count(sequence["max_tokens"])
        arena = f"{each} bytes a token (of a multiple of 16), {count(contents['arena_bytes'])} for {most}"
        lines.append(_text(sequence, contents["metadata"]))
    lines.append(f"work: {count(contents['macs'])} multiply-adds {work}; arena: {arena}")
    return "\n".join(lines)


def _text(sequence: dict[str, int], metadata: dict[str, Any]) -> str:
    """What a model of text takes: its task, the longest sequence, and the tokenizer."""
    tokenizer = metadata["tokenizer"]
    takes = f"{escape(metadata['task'])}: sequences of 1 to {count(sequence['max_tokens'])} tokens; "
    if tokenizer is None:
        return f"{takes}no tokenizer: token ids only"
    kind = escape(str(tokenizer.get("kind")))
    return (
        f"{takes}tokenizer: {kind}, {count(sequence['vocabulary_tokens'])} tokens, {count(sequence['merges'])} merges"
    )


def table_of(title: str, columns: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table; the columns named in `numbers` are set to the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=column in numbers)
    return table


def _kinds(contents: dict[str, Any]) -> Table:
    table = table_of("Bytes by kind", ("holds", "bytes", "share", ""), ("bytes", "share"))
    for name, label in CATEGORIES.items():
        if contents["bytes"][name] == 0:
            continue
        share = contents["bytes"][name] / contents["file_bytes"]
        table.add_row(label, count(contents["bytes"][name]), percent(share, 1), "█" * round(share * BAR_COLUMNS))
    table.add_section()
    table.add_row("the whole file", count(contents["file_bytes"]), percent(1, 1))
    return table


def _layers(contents: dict[str, Any]) -> Table:
    numbers = ("weights", "zero", "codes", "scales", "vectors", "bytes")
    table = table_of("Bytes by layer", ("layer", *numbers), numbers)
    for layer in contents["layers"]:
        zero = percent(1 - layer["nonzero_weights"] / layer["weights"], 1) if layer["weights"] else "-"
        weights = count(layer["weights"]) if layer["weights"] else "-"
        table.add_row(escape(layer["layer"]), weights, zero, *(count(layer[name]) for name in numbers[2:]))
    return table


def _ops(contents: dict[str, Any]) -> Table:
    numbers = ("#", "output", "multiply-adds")
    table = table_of("Ops", ("#", "kind", "output", "multiply-adds", "tensors"), numbers)
    for index, op in enumerate(contents["ops"]):
        shape = _shape(*op["shape"])
        macs = count(op["macs"]) if op["macs"] else "-"
        table.add_row(str(index), op["kind"], shape, macs, escape(op["tensors"][0]) if op["tensors"] else "")
    return table


def _plan(contents: dict[str, Any]) -> Table:
    """Buffers by their place in the arena; the bar spans the ops during which each is alive."""
    numbers = ("offset", "bytes")
    last = len(contents["ops"]) - 1
    life = f"alive (op 0 to {last})"
    each = "" if contents["sequence"] is None else " (offsets and bytes: of a token)"
    title = f"Buffer plan: an arena of {short_bytes(contents['arena_bytes'])}{each}"
    table = table_of(title, ("buffer", "type", "shape", "offset", "bytes", life), numbers)
    table.columns[-1].no_wrap = True
    for buffer in sorted(contents["buffers"], key=lambda each: (each["place"] != "arena", each["offset"])):
        place = count(buffer["offset"]) if buffer["place"] == "arena" else buffer["place"]
        bar = _life(buffer["first_op"], buffer["last_op"], len(contents["ops"]))
        shape = _shape(buffer["rows"], buffer["cols"])
        table.add_row(escape(buffer["name"]), buffer["dtype"], shape, place, count(buffer["bytes"]), bar)
    return table


def _shape(rows: int, cols: int) -> str:
    """T rows where there is one a token."""
    return f"{rows or 'T'} x {cols}"


def _life(first: int, last: int, num_ops: int) -> str:
    columns = min(num_ops, LIFE_COLUMNS)
    start, end = first * columns // num_ops, -(-(last + 1) * columns // num_ops)
    return "·" * start + "█" * (end - start) + "·" * (columns - end)
