"""Make benchmarks/RESULTS.md from the result files: python -m benchmarks.table [--check]

With ``--check`` nothing is written, and the exit status is 1 if the document is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from innerloop.common.disk import write_text

from .rows import CONSTANT, INNERLOOP, PLAIN

HERE = Path(__file__).parent
RATIOS = ["row", "innerloop", "best peer", "best / innerloop", "plain / innerloop", "share of peak", "memory"]
DETAILS = ["library", "one step", "/ innerloop", "share of peak", "memory", "memory / innerloop", "warm-up", "remark"]
PROFILE = ["library", "on one core", "products", "pooling", "statistics", "other operations", "between", "all cores"]
INTRODUCTION = """# Benchmarks

Made by `python -m benchmarks.table` from the files in `results/`; [README.md](README.md) says how they are measured.

A ratio is the other library's time over innerloop's, above 1 where innerloop is quicker: the median over rounds, and in
brackets the quartiles. The share of peak is the arithmetic of a plain loop, over the time, over the best rate at which
the same machine multiplied float32 matrices between the same repeats. Memory is what a step adds to the process at its
peak, the trials of warm-up included.

A profile says where the time goes when a step runs on one core, where nothing overlaps: in matrix products and
convolutions (and at what rate, if all of the row's arithmetic is in them), in pooling, in sums and statistics, in other
operations, and between operations, that is in Python, autograd and the starting of them. The last column is the time
on all cores, over the time on one divided by their number: above 1 is what sharing them costs."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def duration(seconds: float) -> str:
    """With a unit that suits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 100 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def size(number: float) -> str:
    """Bytes, in MiB or GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def ratio(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def overview(row: dict[str, Any]) -> list[str]:
    """A row in one line."""
    name = f"[{row['name']}](#{row['name']})"
    own = row["libraries"].get(INNERLOOP, {})
    if own.get("status") != "measured":
        return [name, row.get("skipped") or f"{own['status']}: {own['reason']}", *[""] * 5]
    best = row["best_peer"]
    found = row["libraries"][best] if best else {}
    return [
        name,
        duration(own["seconds"]["median"]),
        f"{best}, {duration(found['seconds']['median'])}" if best else "none",
        ratio(found.get("ratio")),
        ratio(row["libraries"].get(PLAIN, {}).get("ratio")),
        percent(own.get("of_peak")),
        size(own["memory"]),
    ]


def detail(name: str, found: dict[str, Any]) -> list[str]:
    """One library at one row."""
    label = f"{name} {found['version']}" if found.get("version") and name != CONSTANT else name
    if found["status"] != "measured":
        return [label, "", "", "", "", "", "", f"{found['status']}: {found['reason']}"]
    times, warm = found["seconds"], found["warm_up"]
    memory = found.get("memory_ratio")
    return [
        label,
        f"{duration(times['median'])} ({duration(times['low'])} to {duration(times['high'])})",
        ratio(found.get("ratio")),
        percent(found.get("of_peak")),
        size(found["memory"]),
        "" if memory is None else f"{memory:.2f}",
        f"{duration(warm['seconds'])}, {warm['steps']} steps",
        "; ".join(found["choices"]),
    ]


def agreement(libraries: dict[str, Any]) -> list[str]:
    """How far the losses of the first step are apart."""
    own, *others = [found.get("first_step", {}) for found in libraries.values()]
    words = []
    for precision in ("double", "single"):
        losses = [other[precision]["loss"] for other in others if other.get(precision)]
        if losses and own.get(precision):
            most = max(abs(loss / own[precision]["loss"] - 1) for loss in losses)
            words.append(f"{most:.1g} in {precision} precision")
    return [f"The losses of the first step differ from innerloop's by at most {' and '.join(words)}."] if words else []


def profile(name: str, row: dict[str, Any], cores: int) -> list[str]:
    """Where one library's time goes."""
    found, median = row["libraries"][name]["profile"], row["libraries"][name]["seconds"]["median"]
    whole = found["core"]
    rate = f", {row['flops'] / found['products'] / 1e9:.0f} GFLOP/s"
    shares = [percent(found[kind] / whole) for kind in ("products", "pooling", "statistics", "others", "between")]
    return [name, duration(whole), shares[0] + rate, *shares[1:], f"{median / (whole / cores):.2f}"]


def section(row: dict[str, Any], cores: int) -> str:
    """All libraries at one row, measured on a machine of so many cores."""
    lines = [f"### {row['name']}", f"{row['what'][0].upper()}{row['what'][1:]}. {row['note']}".strip()]
    if "skipped" in row:
        return "\n\n".join([*lines, f"Skipped: {row['skipped']}"])
    order = "second" if row["order"] == 2 else "first"
    lines.append(f"Data: {row['data']}. Inner rate {row['lr']}, {order} order. Measured on {row['date']}.")
    lines += agreement(row["libraries"])
    lines.append(table(DETAILS, [detail(name, found) for name, found in row["libraries"].items()]))
    if profiled := [name for name, found in row["libraries"].items() if "profile" in found]:
        lines.append(table(PROFILE, [profile(name, row, cores) for name in profiled]))
    if (constant := row["libraries"].get(CONSTANT, {})).get("ratio"):
        price, share = constant["ratio"]["median"], constant.get("memory_ratio")
        saving = "" if share is None else f" and {share:.3f} of the memory"
        lines.append(f'`memory="constant"` takes {price:.2f} times the time{saving}.')
    return "\n\n".join(lines)


def document(results: Sequence[dict[str, Any]]) -> str:
    """The whole of RESULTS.md."""
    parts = [INTRODUCTION]
    for result in results:
        known = result["environment"]
        where = known["device"] if known["device"] != "cpu" else f"{known['cpu']}, {result['cores']} cores"
        about = f"torch {known['torch']}, innerloop {known['innerloop']}, Python {known['python']}, "
        threads = f"{known['threads']} thread{'s' * (known['threads'] > 1)}"
        about += f"{threads} a process, {result['repeats']} repeats, {result['date']}."
        parts += [f"## {where}", about, table(RATIOS, map(overview, result["rows"]))]
        parts += [section(row, result["cores"]) for row in result["rows"]]
    if not results:
        parts.append("Nothing has been measured yet.")
    if all(result["environment"]["device"] == "cpu" for result in results):
        parts.append("No CUDA GPU was at hand: `python -m benchmarks.run --device cuda` adds its numbers.")
    return "\n\n".join(parts) + "\n"


def summary(results: Sequence[dict[str, Any]], text: str) -> str:
    """README.md with an overview of the first result between its marks."""
    start, end = "<!-- benchmarks -->", "<!-- /benchmarks -->"
    before, rest = text.split(start)
    after = rest.split(end)[1]
    inside = "Nothing has been measured yet."
    if results:
        known = results[0]["environment"]
        rows = table(RATIOS, map(overview, results[0]["rows"])).replace("](#", "](benchmarks/RESULTS.md#")
        inside = f"{known['cpu']}, {results[0]['cores']} cores, torch {known['torch']}, {results[0]['date']}:\n\n{rows}"
    return f"{before}{start}\n{inside}\n{end}{after}"


def main(words: Sequence[str]) -> int:
    results = [json.loads(file.read_text()) for file in sorted((HERE / "results").glob("*.json"))]
    readme = HERE.parent / "README.md"
    for path, text in (
        (HERE / "RESULTS.md", document(results)),
        (readme, summary(results, readme.read_text())),
    ):
        if "--check" not in words:
            write_text(path, text)
        elif not path.is_file() or path.read_text() != text:
            print(f"stale: {path.name}; run `python -m benchmarks.table`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
