"""The README's Python examples run, in order, as one program; its commands and table stand where they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 3
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    score = float(capsys.readouterr().out.split()[0])
    assert score > 0.8
    assert names["label"] == names["model"].predict(names["data"].X_test[:1])[0]


@pytest.mark.parametrize("command", ["pip install . && fastlstm demo", 'pip install ".[test]" && pytest'])
def test_commands_stand_there(command):
    assert command in README.read_text(encoding="utf-8")
