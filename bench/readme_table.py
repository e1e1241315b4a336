"""Puts the results of bench/vs_peers.py into the README as a Markdown table, and what bounds the missed targets
into docs/performance.md.

    python bench/readme_table.py bench/results/<machine>.json [--readme README.md] [--page docs/performance.md]
                                 [--check]

Replaces what stands between the two marker lines of each; ``--check`` writes nothing and ends with 1 if
they do not show these results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlstm.benchmark import format_seconds

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "performance.md"
_KINDS = {
    "step": "one streamed step",
    "infer": "inference",
    "train": "training (forward + backward)",
    "fit": "one epoch of `LSTMClassifier.fit`",
}


def describe_case(record: dict[str, Any]) -> str:
    """A result record's case in words."""
    kind = _KINDS[record["kind"]]
    parts = [kind if record.get("cell", "lstm") == "lstm" else f"{record['cell'].upper()} {kind}"]
    parts += ["two layers" if record["num_layers"] == 2 else f"{record['num_layers']} layers"]
    parts = parts if record["num_layers"] > 1 else parts[:1]
    parts += [name for name in ("bidirectional", "ragged") if record[name]]
    if record["rows"]:
        parts.append(f"{record['rows']} sequences")
    return ", ".join(parts)


def describe_shape(record: dict[str, Any]) -> str:
    return f"{record['time']} x {record['batch']} x {record['input_size']} x {record['hidden_size']}"


def _cells(summary: dict[str, Any]) -> list[str]:
    """Our time, the best peer's and the ratio."""
    if summary["best_peer"] is None:
        return [format_seconds(summary["ours_s"]), "-", "-"]
    peer = f"{format_seconds(summary['best_peer_s'])} ({summary['best_peer']})"
    return [format_seconds(summary["ours_s"]), peer, f"**{summary['ratio']:.2f}x**"]


def _heading(document: dict[str, Any]) -> list[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = " and ".join(map(str, document["threads"]))
    return [
        f"{machine['cpu']}, {machine['usable_cpus']} CPUs, {machine['system'].split()[0]}; "
        f"instruction set in use: {machine['isa']}; threads: {threads}; {machine['date']}; {versions}.",
        "Float32, medians of interleaved repetitions of one run (`python bench/vs_peers.py`); best peer = "
        "the fastest of the libraries named here that can do the case, each with its best settings.",
        "",
    ]


def make_table(document: dict[str, Any]) -> str:
    """The Markdown text for one results document."""
    threads = document["threads"]
    described = {record["case"]: record for record in document["results"]}
    summaries = {(summary["case"], summary["threads"]): summary for summary in document["summary"]}
    titles = ["case", "time x batch x input x hidden"]
    for n in threads:
        plural = "" if n == 1 else "s"
        titles += [f"fastlstm, {n} thread{plural}", f"best peer, {n} thread{plural}", "ratio"]
    lines = [*_heading(document), _row(titles), _row(["---", "---"] + ["---:"] * 3 * len(threads))]
    for name, record in described.items():
        cells = [cell for n in threads for cell in _cells(summaries[name, n])]
        lines.append(_row([describe_case(record), describe_shape(record), *cells]))
    return "\n".join(lines)


def make_bounds(document: dict[str, Any]) -> str:
    """A line for each target that is missed: how near the case is to its floor, and the ratio that the floor allows."""
    lines = [*_heading(document)[:1], ""]
    lines += [_row(["case", "threads", "ratio", "target", "share of the floor", "ratio at the floor"])]
    lines += [_row(["---"] + ["---:"] * 5)]
    for summary in document["summary"]:
        share = summary["share_of_ceiling"]
        for target in summary["targets"]:
            if not target["reached"]:
                ratio = target["ratio"]
                floor = [f"{share:.0%}", f"{ratio / share:.2f}"] if share else ["-", "-"]
                numbers = [str(summary["threads"]), f"{ratio:.2f}", f"{target['target']:g}", *floor]
                lines.append(_row([summary["case"], *numbers]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def replace_between_markers(text: str, table: str) -> str:
    """`text` with `table` between the marker lines.

    Raises
    ------
    ValueError
        If the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page must hold {BEGIN} and {END}, once each and in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="readme_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a file that bench/vs_peers.py wrote")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="only say whether both are up to date")
    args = parser.parse_args(argv)
    try:
        document = json.loads(args.results.read_text(encoding="utf-8"))
        tables = {args.readme: make_table(document), args.page: make_bounds(document)}
        old = {path: path.read_text(encoding="utf-8") for path in tables}
        new = {path: replace_between_markers(old[path], table) for path, table in tables.items()}
    except (OSError, ValueError) as error:
        print(f"readme_table.py: {error}", file=sys.stderr)
        return 1
    if args.check:
        return 0 if new == old else 1
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
