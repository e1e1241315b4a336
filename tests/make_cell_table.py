"""Runs the checks of every cell and puts the errors into docs/cells.md: ``python tests/make_cell_table.py``.

Replaces what stands between the two marker lines. Ends with 1 and writes nothing if a check does not hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "python"))

from cell_checks import CHECKS, VARIANTS, Check, Variant  # noqa: E402

BEGIN, END = "<!-- cells:begin -->", "<!-- cells:end -->"
PAGE = HERE.parent / "docs" / "cells.md"


def measured(check: Check, variant: Variant) -> str:
    """The error of a check in words; ValueError if it is too large."""
    error = check.run(variant)
    if not error <= check.bound:
        raise ValueError(f"{variant}: {check.title} has error {error:.1e}, allowed is {check.bound:.0e}")
    return f"{error:.0e}" if check.bound else "same bits"


def label(variant: Variant) -> str:
    """The options that make the variant."""
    option = f', `cell_activation="{variant.cell_activation}"`'
    return f"`{variant.cell}`" + (option if variant.cell_activation != "tanh" else "")


def table() -> str:
    """One line a cell, one column a check."""
    rows = [["cell", *(check.title for check in CHECKS)], ["---"] * (len(CHECKS) + 1)]
    rows += [[label(variant), *(measured(check, variant) for check in CHECKS)] for variant in VARIANTS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    before, _, rest = PAGE.read_text(encoding="ascii").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{PAGE} lacks the marker lines {BEGIN} and {END}")
    try:
        text = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    except ValueError as error:
        sys.exit(str(error))
    PAGE.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
