"""The Python examples of the README and of the pages in docs run; commands and table stand where they should."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
OPTIONAL = ("onnx", "onnxruntime", "torch")  # what examples need beside the package
PAGES = sorted((README.parent / "docs").glob("*.md"))


def examples_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = examples_of(README)
    assert len(examples) >= 3
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    score = float(capsys.readouterr().out.split()[0])
    assert score > 0.8
    assert names["label"] == names["model"].predict(names["data"].X_test[:1])[0]


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)], ids=lambda page: page.name)
def test_examples_of_pages_run(page, tmp_path, monkeypatch):
    """The blocks of a page in order, as one program; where a library that they need is missing, they are left."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples_of(page):
        needed = [library for library in OPTIONAL if library in example]
        for library in needed:
            pytest.importorskip(library)
        with warnings.catch_warnings():
            if "torch" in needed:
                warnings.simplefilter("ignore")  # of its exporters, about themselves
            exec(compile(example, page.name, "exec"), names)


@pytest.mark.parametrize("command", ["pip install . && fastlstm demo", 'pip install ".[test]" && pytest'])
def test_commands_stand_there(command):
    assert command in README.read_text(encoding="utf-8")
