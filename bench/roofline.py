"""How near each case comes to its own ceiling, as a picture and as a text table.

    python bench/roofline.py bench/results/<machine>.json [--threads 1] [--out docs/roofline.png]

reads what bench/vs_peers.py wrote, times and the ceilings measured beside them. A case is held against whichever
takes longer: its arithmetic at the peak rate, or reading its weights from the innermost cache that holds them
(bench/ceilings.py).
Its share of that ceiling is a bar, the best peer's share a mark. A share above 100 % says that part of the weights
came from a nearer cache than the ceiling assumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ceilings

from fastlstm.benchmark import Case

OUT = Path(__file__).parent.parent / "docs" / "roofline.png"
# Okabe and Ito's colours, told apart by the colour-blind; hatches tell them apart in grey.
STYLES = {
    "arithmetic": ("#0072B2", ""),
    "L1": ("#009E73", "\\\\"),
    "L2": ("#E69F00", "//"),
    "L3": ("#56B4E9", "xx"),
    "memory": ("#CC79A7", ".."),
}
PEER_COLOUR = "#000000"


@dataclass(frozen=True)
class Share:
    """A case's share of its ceiling, ours and the best peer's (0 to about 1), and the ceiling."""

    case: Case
    floor: ceilings.Floor
    ours: float
    peer: float | None
    peer_name: str | None

    @property
    def unit(self) -> str:
        return "GFLOP/s" if self.floor.limit == "arithmetic" else "GB/s"


def case_of(record: dict[str, Any]) -> Case:
    """The case of a result record, also of an older one that lacks fields."""
    return Case(**{field.name: record[field.name] for field in fields(Case) if field.name in record})


def shares(document: dict[str, Any], threads: int) -> list[Share]:
    """The cases that have a ceiling, those bound by reading first, each group in the order of the table."""
    records = {record["case"]: record for record in document["results"]}
    found = []
    for summary in document["summary"]:
        ceiling = summary.get("ceiling")
        if summary["threads"] != threads or ceiling is None:
            continue
        record = records[summary["case"]]
        case = case_of(record)
        floor = ceilings.floor(case, record["steps"], document["machine"], ceiling)
        if floor:
            peer = floor.seconds / summary["best_peer_s"] if summary["best_peer"] else None
            found.append(Share(case, floor, floor.seconds / summary["ours_s"], peer, summary["best_peer"]))
    return sorted(found, key=lambda share: share.floor.limit == "arithmetic")


def print_table(found: Sequence[Share]) -> None:
    print(f"{'case':44} {'bound by':>10} {'ceiling':>16} {'fastlstm':>9} {'best peer':>9}")
    for share in found:
        peer = f"{share.peer:.0%}" if share.peer else "-"
        ceiling = f"{share.floor.rate:.0f} {share.unit}"
        print(f"{share.case.name:44} {share.floor.limit:>10} {ceiling:>16} {share.ours:>9.0%} {peer:>9}")


# ------------------------------------------------------------------------------------- the picture


def _draw_group(axes: Any, found: Sequence[Share], title: str, end: float) -> None:
    """A bar and a mark for each case; its rates stand in a column behind `end`, in %."""
    rows = range(len(found))
    for row, share in zip(rows, found, strict=True):
        colour, hatch = STYLES[share.floor.limit]
        axes.barh(
            row, 100 * share.ours, color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.68
        )
        if share.peer:
            axes.plot(100 * share.peer, row, marker="D", color=PEER_COLOUR, mec="white", mew=0.8, ms=6.5)
        text = f"{share.ours * share.floor.rate:.0f} of {share.floor.rate:.0f} {share.unit}"
        axes.text(end + 2, row, text, va="center", fontsize=8.5, color="#333333")
    axes.axvline(100, color="#333333", linewidth=1.2, linestyle="--")
    axes.set_yticks(rows, [share.case.name for share in found], fontsize=8.5)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _add_legend(figure: Any, found: Sequence[Share]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {"arithmetic": "multiply-adds at peak", "memory": "reading from memory"}
    present = [limit for limit in STYLES if any(share.floor.limit == limit for share in found)]
    handles: list[Any] = []
    for limit in present:
        colour, hatch = STYLES[limit]
        label = f"fastlstm, bound by {names.get(limit, f'reading from {limit}')}"
        handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label))
    mark = {"marker": "D", "color": PEER_COLOUR, "mec": "white", "ms": 6.5, "linestyle": ""}
    handles.append(Line2D([], [], label="best peer, same case", **mark))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)


def draw(found: Sequence[Share], heading: str, out: Path) -> None:
    """Writes the picture: a panel for the cases bound by reading, one for those bound by arithmetic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    groups = {
        "Bound by reading the weights": [s for s in found if s.floor.limit != "arithmetic"],
        "Bound by arithmetic": [s for s in found if s.floor.limit == "arithmetic"],
    }
    groups = {title: group for title, group in groups.items() if group}
    heights = [len(group) + 1.5 for group in groups.values()]
    figure, panels = plt.subplots(
        len(groups),
        figsize=(9.5, 0.27 * sum(heights) + 1.3),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    end = 100 * max(1, *(max(share.ours, share.peer or 0) for share in found))
    for axes, (title, group) in zip(panels[:, 0], groups.items(), strict=True):
        _draw_group(axes, group, title, end)
    panels[-1, 0].set_xlim(0, end + 30)
    panels[-1, 0].set_xticks(range(0, int(end) + 1, 20))
    panels[-1, 0].set_xlabel(
        "% of the case's own ceiling; cases are time x batch x input x hidden", fontsize=9
    )
    figure.suptitle(f"Share of what the machine allows: {heading}", fontsize=11, x=0.01, ha="left")
    _add_legend(figure, found)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="roofline.py", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a file that bench/vs_peers.py wrote")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="which of its rows (default: 1)")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture (default: docs/roofline.png)")
    args = parser.parse_args(argv)
    try:
        document = json.loads(args.results.read_text(encoding="utf-8"))
        found = shares(document, args.threads)
    except (OSError, ValueError) as error:
        print(f"roofline.py: {error}", file=sys.stderr)
        return 1
    if not found:
        print(
            f"roofline.py: no case of these results has a ceiling for {args.threads} threads", file=sys.stderr
        )
        return 1
    print_table(found)
    machine = document["machine"]
    threads = f"{args.threads} thread{'' if args.threads == 1 else 's'}"
    draw(found, f"{machine['cpu']}, {machine['isa']}, {threads}, {machine['date']}", args.out)
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
