"""Runs the checks of every cell, and of every cell with every option, and puts the errors into docs/cells.md and
docs/cell_options.md: ``python tests/make_cell_table.py``.

Replaces what stands between the two marker lines. Ends with 1 and writes nothing if a check does not hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "python"))

from cell_checks import CHECKS, VARIANTS, WITH_OPTIONS, Check, Variant  # noqa: E402

BEGIN, END = "<!-- cells:begin -->", "<!-- cells:end -->"
DOCS = HERE.parent / "docs"
PAGES = {DOCS / "cells.md": VARIANTS, DOCS / "cell_options.md": WITH_OPTIONS}


def measured(check: Check, variant: Variant) -> str:
    """The error of a check in words; ValueError if it is too large."""
    error = check.run(variant)
    allowed = check.allowed(variant)
    if not error <= allowed:
        raise ValueError(f"{variant}: {check.title} has error {error:.1e}, allowed is {allowed:.0e}")
    return f"{error:.0e}" if check.bound else "same bits"


def label(variant: Variant) -> str:
    """The options that make the variant."""
    if variant.option is not None:
        return f"`{variant.cell}`, {variant.option.name}"
    option = f', `cell_activation="{variant.cell_activation}"`'
    return f"`{variant.cell}`" + (option if variant.cell_activation != "tanh" else "")


def table(variants: tuple[Variant, ...]) -> str:
    """One line a variant, one column a check."""
    rows = [["cell", *(check.title for check in CHECKS)], ["---"] * (len(CHECKS) + 1)]
    rows += [[label(variant), *(measured(check, variant) for check in CHECKS)] for variant in variants]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def renew(page: Path, variants: tuple[Variant, ...]) -> str:
    """Text of the page with a new table."""
    before, _, rest = page.read_text(encoding="ascii").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page} lacks the marker lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(variants)}\n{END}{after}"


def main() -> int:
    try:
        texts = {page: renew(page, variants) for page, variants in PAGES.items()}
    except ValueError as error:
        sys.exit(str(error))
    for page, text in texts.items():
        page.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
