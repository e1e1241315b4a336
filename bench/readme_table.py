"""Puts the results of bench/vs_peers.py into Markdown: one machine's table into the README, every machine's into
docs/benchmarks.md, with the floors of missed targets.

    python bench/readme_table.py bench/results/*.json [--main NAME] [--readme README.md] [--page docs/benchmarks.md]
                                 [--check]

NAME is a file of results without folder and ending: the one for the README, whose first marker line keeps it for the
next time; where nothing names it, the first file. Replaces what stands between the two marker lines of each page;
``--check`` writes nothing and ends with 1 if they do not show these results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cold
import comparison

from fastlstm.benchmark import format_seconds

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_BEGIN = re.compile(r"<!-- bench:begin(?: (\S+))? -->")
README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "benchmarks.md"
ROOFLINE = "roofline.png"  # beside the page, of the main results
_KINDS = {
    "step": "one streamed step",
    "infer": "inference",
    "train": "training (forward + backward)",
    "fit": "one epoch of `LSTMClassifier.fit`",
    "ctc": "CTC loss and gradient",
}
_ISAS = ("amx", "avx512", "avx2", "portable")  # best first


def describe_case(record: Mapping[str, Any]) -> str:
    """A result record's case in words."""
    kind, cell = _KINDS[record["kind"]], record.get("cell", "lstm")
    parts = [{"lstm": kind, "gru": f"GRU {kind}"}.get(cell, f"{kind}, {cell}")]
    layers = record.get("num_layers", 1)
    parts += {1: [], 2: ["two layers"]}.get(layers, [f"{layers} layers"])
    parts += [name for name in ("bidirectional", "ragged") if record.get(name)]
    parts += [f"projected to {record['proj_size']}"] if record.get("proj_size") else []
    parts += ["layer norm"] if record.get("layer_norm") else []
    parts += [f"dropout {record['dropout']:g}"] if record.get("dropout") else []
    parts += [f"{record['rows']} sequences"] if record.get("rows") else []
    precision = record.get("precision", "float32")
    parts += [f'`precision="{precision}"`'] if precision != "float32" else []
    return ", ".join(parts)


def describe_shape(record: Mapping[str, Any]) -> str:
    if record["kind"] == "ctc":
        return f"{record['time']} x {record['batch']}, {record['classes']} classes, {record['labels']} labels"
    return f"{record['time']} x {record['batch']} x {record['input_size']} x {record['hidden_size']}"


def _cells(summary: dict[str, Any]) -> list[str]:
    """Our time, the best peer's and the ratio."""
    if summary["best_peer"] is None:
        return [format_seconds(summary["ours_s"]), "-", "-"]
    peer = f"{format_seconds(summary['best_peer_s'])} ({summary['best_peer']})"
    return [format_seconds(summary["ours_s"]), peer, f"**{summary['ratio']:.2f}x**"]


def _held_to(machine: Mapping[str, Any]) -> str:
    """A sentence where the instruction set in use is not the best one of the machine."""
    best = next(
        isa for isa in _ISAS if machine["cpu_info"]["isa_available"].get(isa) or isa == machine["isa"]
    )
    if best == machine["isa"]:
        return ""
    return (
        f" fastlstm is held to {machine['isa']} (`FASTLSTM_ISA`) here, on a machine that has {best}; the peers cannot "
        "be, and use what the machine has."
    )


def _precisions(document: Mapping[str, Any]) -> str:
    reduced = any(record.get("precision", "float32") != "float32" for record in document["results"])
    return "Float32 where a row names nothing else (peers of its class)" if reduced else "Float32"


def _left_out(document: Mapping[str, Any]) -> str:
    """A sentence where repetitions were left out because others used the processors."""
    left_out = sum(record.get("left_out", 0) for record in document["results"])
    if not left_out:
        return ""
    share = left_out / (left_out + sum(record["repetitions"] for record in document["results"]))
    return (
        f" {share:.0%} of the repetitions, ours and the peers', fell into moments when others used the cores and are "
        "left out."
    )


def _again(document: Mapping[str, Any]) -> str:
    """A sentence where cases were measured again."""
    if not document.get("again"):
        return ""
    return (
        " Cases that others disturbed, or whose repetitions were far apart, were measured again, ours and the peers' "
        "together; the calmer time counts, whoever was faster in it."
    )


def _sources(document: Mapping[str, Any]) -> str:
    """The commits that the rows were measured with, where the run recorded them."""
    sources = document.get("sources")
    return f"; commit{'s' * (len(sources) > 1)} {', '.join(sources)}" if sources else ""


def _heading(document: Mapping[str, Any]) -> list[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = " and ".join(map(str, document["threads"]))
    return [
        f"{machine['cpu']}, {machine['usable_cpus']} CPUs, {machine['system'].split()[0]}; "
        f"instruction set in use: {machine['isa']}; threads: {threads}; {machine['date']}; {versions}"
        + _sources(document)
        + "."
        + _held_to(machine),
        f"{_precisions(document)}, medians of interleaved repetitions of one run (`python bench/vs_peers.py`); "
        "best peer = the fastest of the libraries named here that can do the case, each with its best settings."
        + _left_out(document)
        + _again(document),
        "",
    ]


def make_table(document: Mapping[str, Any]) -> str:
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
    return "\n".join([*lines, *_cold_lines(document)])


def _cold_lines(document: Mapping[str, Any]) -> list[str]:
    """The table of fresh processes, where it was measured."""
    if not document.get("cold"):
        return []
    shape = document["cold"][0]["case"].removeprefix("infer-").replace("x", " x ")
    lines = ["", f"In a fresh process, one thread, {shape}:", ""]
    lines += [_row(["library", *cold.COLUMNS.values()]), _row(["---"] + ["---:"] * len(cold.COLUMNS))]
    for record in document["cold"]:
        cells = (format_seconds(record[key]) if key in record else "-" for key in cold.COLUMNS)
        lines.append(_row([record["library"], *cells]))
    return lines


def make_bounds(document: Mapping[str, Any]) -> list[str]:
    """A line for each target that is missed: how near the case is to its floor, and the ratio that the floor allows."""
    isa = document["machine"]["isa"]
    lines = [] if isa in ("amx", "avx512") else [f"({comparison.describe_targets(isa)}.)", ""]
    lines += [_row(["case", "threads", "ratio", "target", "share of the floor", "ratio at the floor"])]
    lines += [_row(["---"] + ["---:"] * 5)]
    for summary in document["summary"]:
        share = summary["share_of_ceiling"]
        for target in summary["targets"]:
            if not target["reached"]:
                ratio = target["ratio"]
                floor = [f"{share:.0%}", f"{ratio / share:.2f}"] if share else ["-", "-"]
                numbers = [str(summary["threads"]), f"{ratio:.2f}", f"{target['target']:g}", *floor]
                against = target["opponent"] if target["opponent"] != "best peer" else ""
                lines.append(_row([f"{summary['case']}{against and f' (against {against})'}", *numbers]))
    return lines


def make_page(documents: Mapping[str, dict[str, Any]], main: str, *, picture: bool) -> str:
    """Every machine's part of the page, the main one's first: its table (the main one's is in the README) and what
    bounds it."""
    lines: list[str] = []
    for name in sorted(documents, key=lambda name: (name != main, name)):
        document = documents[name]
        if name == main:
            lines += _heading(document)[:1]
            lines += ["", f"![Share of each case's own ceiling]({ROOFLINE})"] if picture else []
        else:
            lines += ["", f"### {name}", "", make_table(document), "", "Targets missed there:"]
        lines += ["", *make_bounds(document)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def replace_between_markers(text: str, table: str, name: str | None = None) -> str:
    """`text` with `table` between the marker lines, and `name` in the first of them.

    Raises
    ------
    ValueError
        If the markers are not there, once each and in order.
    """
    begins = list(_BEGIN.finditer(text))
    if len(begins) != 1 or text.count(END) != 1 or begins[0].start() > text.index(END):
        raise ValueError(f"the page must hold {BEGIN} and {END}, once each and in this order")
    begin = f"<!-- bench:begin {name} -->" if name else BEGIN
    return f"{text[: begins[0].start()]}{begin}\n{table}\n{text[text.index(END) :]}"


def main_name(readme: str, names: Sequence[str], wanted: str | None) -> tuple[str, str | None]:
    """The main results, and what names them: `wanted`, else the README's marker; nothing where it is the first.

    Raises
    ------
    ValueError
        If the name is not one of `names`.
    """
    marker = _BEGIN.search(readme)
    name = wanted or (marker[1] if marker else None)
    if name is not None and name not in names:
        raise ValueError(f"the results {name!r} for the README are not among {', '.join(names)}")
    return name or names[0], name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="readme_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that bench/vs_peers.py wrote")
    parser.add_argument("--main", metavar="NAME", help="which of them the README shows")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="only say whether both are up to date")
    args = parser.parse_args(argv)
    try:
        documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.results}
        old = {path: path.read_text(encoding="utf-8") for path in (args.readme, args.page)}
        shown, name = main_name(old[args.readme], list(documents), args.main)
        page = make_page(documents, shown, picture=args.page.with_name(ROOFLINE).exists())
        new = {
            args.readme: replace_between_markers(old[args.readme], make_table(documents[shown]), name),
            args.page: replace_between_markers(old[args.page], page),
        }
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
