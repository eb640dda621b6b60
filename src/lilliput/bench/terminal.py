"""A benchmark's results as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lilliput.report.terminal import table_of
from lilliput.report.text import count, percent, short_bytes

NONE = "-"
ABOVE_ROOFLINE = (
    "above 100 % of roofline: reading alone is faster than copying, what the op before has just written is nearer than "
    "what is copied, the copies are one core's, and clocks change"
)


def print_bench(results: dict[str, Any], console: Console) -> None:
    """Print the summary, the engines where there are peers, and the ops where they were profiled."""
    if "lengths" in results:
        _print_texts(results, console)
        return
    console.print(_summary(results), highlight=False, soft_wrap=True)
    compared = f"{count(results.get('images_compared', 0))} images ({escape(results.get('images', ''))})"
    _print_run(results, results, compared, console)


def _print_texts(results: dict[str, Any], console: Console) -> None:
    runs = results["lengths"]
    console.print(_about(results, runs[0]), highlight=False, soft_wrap=True)
    console.print(f"file {count(results['file_bytes'])} bytes", highlight=False, soft_wrap=True)
    console.print()
    console.print(_lengths(runs))
    for run in runs:
        compared = (
            f"{count(run['texts_compared'])} sequences of random ids; the peers' weights: {results['peer_weights']}"
        )
        _print_run(results, run, escape(compared), console)


def _print_run(results: dict[str, Any], run: dict[str, Any], compared: str, console: Console) -> None:
    """What a run has beyond its summary; `results` says what was measured, and is the run itself with images."""
    parts = []
    if run["peers"]:
        what = f": {_length(run)}" if "tokens" in run else ""
        parts += [_engines(run, f"Engines, in turns{what}"), _footnotes(run, results["isa"], compared)]
    if run.get("profile"):
        what = f"{_length(run)}" if "tokens" in run else "one image"
        parts += [_ops(run["profile"], f"Time by op, {what}"), _roofline(run["profile"])]
    for part in parts:
        console.print()
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def _about(results: dict[str, Any], run: dict[str, Any]) -> str:
    threads, machine = run["threads"], results["machine"]
    how = f"{threads} thread{'s' * (threads > 1)}, batch {run['batch']}, {results['isa']}"
    return f"[bold]{escape(results['file'])}[/bold]: {how}; {escape(machine['cpu'])}, commit {results['commit']}"


def _summary(results: dict[str, Any]) -> str:
    spread = f"p5 {_us(results['latency_p5_us'])}, p95 {_us(results['latency_p95_us'])}"
    return "\n".join(
        (
            _about(results, results),
            f"latency: [bold]{_us(results['latency_us'])} us[/bold] a call (median; {spread}), "
            f"{count(round(results['images_per_second']))} images a second",
            f"opening to first result: {results['cold_start_ms']:.2f} ms (median of fresh processes, the file cached)",
            f"memory: file {count(results['file_bytes'])} bytes, arena {count(results['arena_bytes'])} bytes; resident "
            f"above the interpreter with numpy and lilliput: {_memory(results['memory'])}",
        )
    )


def _length(run: dict[str, Any]) -> str:
    if run["tokens"] is not None:
        return f"{run['tokens']} tokens"
    return f"{run['batch']} texts of mixed lengths, mean {run['mean_tokens']:.0f}, at most {run['most_tokens']} tokens"


def _lengths(runs: list[dict[str, Any]]) -> Table:
    """A row a length; the last columns where there are peers."""
    numbers = ["median us", "p5", "p95", "texts/s", "tokens/s", "first ms", "resident", "arena"]
    peers = ["its us", "ratio", "by round"] if any(run["peers"] for run in runs) else []
    names = ("fastest peer",) if peers else ()
    table = table_of("A call", ("text", *numbers, *names, *peers), (*numbers, *peers))
    for run in runs:
        row = [
            _length(run) if run["tokens"] is not None else f"{run['batch']}, mixed",
            _us(run["latency_us"]),
            _us(run["latency_p5_us"]),
            _us(run["latency_p95_us"]),
            count(round(run["texts_per_second"])),
            count(round(run["texts_per_second"] * run["mean_tokens"])),
            f"{run['cold_start_ms']:.1f}",
            _memory(run["memory"]),
            short_bytes(run["arena_bytes"]),
        ]
        table.add_row(*row, *(_fastest(run) if peers else ()))
    return table


def _fastest(run: dict[str, Any]) -> tuple[str, str, str, str]:
    """The fastest peer, its time, the ratio, and the ratio's spread."""
    name = run["fastest_peer"]
    if name is None:
        return (NONE,) * 4
    spread = run["ratio_by_round"]
    ratio = f"[bold]{run['ratio_to_fastest_peer']:.2f}[/bold]"
    return escape(name), _us(run["peers"][name]), ratio, f"{spread['p5']:.2f} to {spread['p95']:.2f}"


def _engines(run: dict[str, Any], title: str) -> Table:
    unit, vectors = "images" if "images_compared" in run else "texts", "cosine" in run["engines"][0]
    alike = "cosine" if vectors else "agrees"
    numbers = ("median us", "p95", f"{unit}/s", "ratio", alike, "file", "resident", "open ms", "first ms")
    table = table_of(title, ("engine", *numbers), numbers)
    for entry in run["engines"]:
        if entry["reason"] is not None:
            table.add_row(escape(entry["name"]), *[NONE] * len(numbers), style="dim")
            continue
        ours, fastest = entry["name"] == run["engines"][0]["name"], entry["name"] == run["fastest_peer"]
        table.add_row(
            escape(entry["name"]),
            _us(entry["latency_us"]),
            _us(entry["latency_p95_us"]),
            count(round(entry[f"{unit}_per_second"])),
            f"{entry['latency_us'] / run['latency_us']:.2f}",
            _alike(entry),
            NONE if entry["file_bytes"] is None else short_bytes(entry["file_bytes"]),
            _memory(entry["memory"]),
            f"{entry['open_ms']:.1f}",
            f"{entry['first_result_ms']:.1f}",
            style="bold" if ours else "cyan" if fastest else "",
        )
    return table


def _that_ran(run: dict[str, Any]) -> str:
    """How many of the peers the fastest one is the fastest of, unless all of them ran."""
    ran = sum(latency is not None for latency in run["peers"].values())
    return "" if ran == len(run["peers"]) else f" ({ran} of {len(run['peers'])} ran)"


def _alike(entry: dict[str, Any]) -> str:
    """How far an engine's outputs are those of PyTorch's fp32."""
    if "cosine" in entry:
        return NONE if entry["cosine"] is None else f"{entry['cosine']:.4f}"
    return NONE if entry["agreement"] is None else percent(entry["agreement"], 1)


def _footnotes(run: dict[str, Any], isa: str, compared: str) -> str:
    lines = []
    if run["fastest_peer"] is not None:
        spread = run["ratio_by_round"]
        lines.append(
            f"[bold]{run['ratio_to_fastest_peer']:.2f} times[/bold] as fast as the fastest peer{_that_ran(run)}, "
            f"{escape(run['fastest_peer'])} (by round: p5 {spread['p5']:.2f}, p95 {spread['p95']:.2f})"
        )
    alike = "cosine: mean, with the vectors of" if "cosine" in run["engines"][0] else "agrees: the same class as"
    lines.append(
        f"ratio: its time over ours; {alike} PyTorch's fp32 on {compared}; "
        "resident: above the interpreter with numpy; open and first ms: after the import, to the opened model and to "
        "its first result"
    )
    for entry in run["engines"]:
        if entry["reason"] is not None:
            lines.append(f"{escape(entry['name'])} does not run: {escape(entry['reason'])}")
            continue
        facts = [entry["note"]] if entry["note"] else []
        if entry["restricted"] is False:
            facts.insert(0, f"not restricted to {isa}, it has no switch for it")
        lines.append(f"[dim]{escape(entry['name'])} {entry['version']}: {escape('; '.join(facts) or 'as it is')}[/dim]")
    return "\n".join(lines)


def _ops(profile: dict[str, Any], title: str) -> Table:
    numbers = ("#", "output", "us", "share", "multiply-adds", "bytes", "GMAC/s", "of roofline")
    table = table_of(title, ("#", "kind", *numbers[1:]), numbers)
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
    text = (
        f"roofline, measured: {roofline['macs_per_second'] / 1e9:.0f} int8 GMAC/s; "
        f"copying {', '.join(rates)}\nmatrix products: {percent(products['share'], 1)} of the time, "
        f"{products['gmacs_per_second']:.0f} GMAC/s, {percent(products['peak_share'], 0)} of the peak rate"
    )
    if any((op["roofline_share"] or 0) > 1 for op in profile["ops"]):
        text += "\n" + ABOVE_ROOFLINE
    return text


def _us(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _memory(memory: dict[str, int] | None) -> str:
    return "not known on this system" if memory is None else short_bytes(memory["rss_bytes"])
