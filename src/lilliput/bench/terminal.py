"""A benchmark's results as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lilliput.report.terminal import table_of
from lilliput.report.text import count, percent, short_bytes

NONE = "-"


def print_bench(results: dict[str, Any], console: Console) -> None:
    """Print the summary, the engines where there are peers, and the ops where they were profiled."""
    console.print(_summary(results), highlight=False, soft_wrap=True)
    if results["peers"]:
        console.print()
        console.print(_engines(results))
        console.print()
        console.print(_footnotes(results), highlight=False, soft_wrap=True)
    if results.get("profile"):
        console.print()
        console.print(_ops(results["profile"]))
        console.print()
        console.print(_roofline(results["profile"]), highlight=False, soft_wrap=True)


def _summary(results: dict[str, Any]) -> str:
    threads, batch = results["threads"], results["batch"]
    machine = results["machine"]
    how = f"{threads} thread{'s' * (threads > 1)}, batch {batch}, {results['isa']}"
    spread = f"p5 {_us(results['latency_p5_us'])}, p95 {_us(results['latency_p95_us'])}"
    return "\n".join(
        (
            f"[bold]{escape(results['file'])}[/bold]: {how}; {escape(machine['cpu'])}, commit {results['commit']}",
            f"latency: [bold]{_us(results['latency_us'])} us[/bold] a call (median; {spread}), "
            f"{count(round(results['images_per_second']))} images a second",
            f"opening to first result: {results['cold_start_ms']:.2f} ms (median of fresh processes, the file cached)",
            f"memory: file {count(results['file_bytes'])} bytes, arena {count(results['arena_bytes'])} bytes; resident "
            f"above the interpreter with numpy and lilliput: {_memory(results['memory'])}",
        )
    )


def _engines(results: dict[str, Any]) -> Table:
    numbers = ("median us", "p95", "images/s", "ratio", "agrees", "file", "resident", "open ms", "first ms")
    table = table_of("Engines, in turns", ("engine", *numbers), numbers)
    for entry in results["engines"]:
        if entry["reason"] is not None:
            table.add_row(escape(entry["name"]), *[NONE] * len(numbers), style="dim")
            continue
        ours, fastest = entry["name"] == results["engines"][0]["name"], entry["name"] == results["fastest_peer"]
        table.add_row(
            escape(entry["name"]),
            _us(entry["latency_us"]),
            _us(entry["latency_p95_us"]),
            count(round(entry["images_per_second"])),
            f"{entry['latency_us'] / results['latency_us']:.2f}",
            NONE if entry["agreement"] is None else percent(entry["agreement"], 1),
            NONE if entry["file_bytes"] is None else short_bytes(entry["file_bytes"]),
            _memory(entry["memory"]),
            f"{entry['open_ms']:.1f}",
            f"{entry['first_result_ms']:.1f}",
            style="bold" if ours else "cyan" if fastest else "",
        )
    return table


def _footnotes(results: dict[str, Any]) -> str:
    lines = []
    if results["fastest_peer"] is not None:
        spread = results["ratio_by_round"]
        lines.append(
            f"[bold]{results['ratio_to_fastest_peer']:.2f} times[/bold] as fast as the fastest peer, "
            f"{escape(results['fastest_peer'])} (by round: p5 {spread['p5']:.2f}, p95 {spread['p95']:.2f})"
        )
    lines.append(
        "ratio: its time over ours; agrees: the same class as PyTorch's fp32 on "
        f"{count(results['images_compared'])} images ({escape(results['images'])}); "
        "resident: above the interpreter with numpy; open and first ms: after the import, to the opened model and to "
        "its first result"
    )
    for entry in results["engines"]:
        if entry["reason"] is not None:
            lines.append(f"{escape(entry['name'])} does not run: {escape(entry['reason'])}")
            continue
        facts = [entry["note"]] if entry["note"] else []
        if entry["restricted"] is False:
            facts.insert(0, f"not restricted to {results['isa']}, it has no switch for it")
        lines.append(f"[dim]{escape(entry['name'])} {entry['version']}: {escape('; '.join(facts) or 'as it is')}[/dim]")
    return "\n".join(lines)


def _ops(profile: dict[str, Any]) -> Table:
    numbers = ("#", "output", "us", "share", "multiply-adds", "bytes", "GMAC/s", "of roofline")
    table = table_of("Time by op, one image", ("#", "kind", *numbers[1:]), numbers)
    for index, op in enumerate(profile["ops"]):
        rates = (op["gmacs_per_second"], op["roofline_share"])
        table.add_row(
            str(index),
            op["kind"],
            " x ".join(str(side) for side in op["shape"]),
            _us(op["us"]),
            percent(op["share"], 1),
            count(op["macs"]) if op["macs"] else NONE,
            count(op["bytes"]),
            f"{rates[0]:.1f}" if rates[0] else NONE,
            percent(rates[1], 0) if rates[1] is not None else NONE,
        )
    table.add_section()
    total = (sum(op["macs"] for op in profile["ops"]), sum(op["bytes"] for op in profile["ops"]))
    table.add_row("", "all", "", _us(profile["us"]), percent(1, 1), count(total[0]), count(total[1]), "", "")
    return table


def _roofline(profile: dict[str, Any]) -> str:
    roofline, products = profile["roofline"], profile["products"]
    rates = [f"{short_bytes(size)} at {rate / 1e9:.0f} GB/s" for size, rate in roofline["bytes_per_second"].items()]
    return (
        f"roofline, measured: {roofline['macs_per_second'] / 1e9:.0f} int8 GMAC/s; "
        f"copying {', '.join(rates)}\nmatrix products: {percent(products['share'], 1)} of the time, "
        f"{products['gmacs_per_second']:.0f} GMAC/s, {percent(products['peak_share'], 0)} of the peak rate"
    )


def _us(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _memory(memory: dict[str, int] | None) -> str:
    return "not known on this system" if memory is None else short_bytes(memory["rss_bytes"])
