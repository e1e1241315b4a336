"""A new cell is one file and one word: written into a copy of the sources, built, and gradient-checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEAKY = """/* Leaky units: h = h_prev / 2 + tanh(W x + U h_prev + b) / 2. */
#define FL_CELL leaky
static const fl_cell_facts FL_T(leaky_facts) = {
    .name = "leaky", .slot_names = "h", .slots = 1, .x_gates = 1, .h_gates = 1, .reads_h = 1};

FL_INLINE void FL_T(leaky_forward)(FL_T(fl_unit) * u)
{
    u->gate[0] = v_tanh(u->gate[0]);
    u->h = v_set1((real)0.5) * (u->h_prev + u->gate[0]);
}

FL_INLINE void FL_T(leaky_backward)(FL_T(fl_unit) * u)
{
    u->dh_prev = v_set1((real)0.5) * u->dh;
    u->gate[0] = u->dh_prev * v_fnma(u->gate[0], u->gate[0], v_set1(1));
}

#include "kernels/recurrent_cell.h"
"""

CHECK = """
import numpy as np
from fastlstm import _core
from fastlstm.layers import LSTM
assert _core.cells() == ["leaky"], _core.cells()
rng = np.random.default_rng(0)
layer = LSTM(3, 9, 2, cell="leaky", bidirectional=True, dtype="float64", random_state=0)
x, lengths = rng.standard_normal((3, 5, 3)), [5, 2, 4]
y, _, tape = layer.forward(x, lengths=lengths)
dy = rng.standard_normal(y.shape) * (np.arange(5) < np.array(lengths)[:, None])[..., None]
dx, _, grads = layer.backward(tape, dy)
parameters = {name: array.copy() for name, array in layer.parameters.items()}
def loss(x, **moved):
    layer.load_parameters({**parameters, **moved})
    return float((layer(x, lengths=lengths)[0] * dy).sum())
for name, gradient in {"x": dx, **grads}.items():
    v, e = rng.standard_normal(gradient.shape), 1e-5
    if name == "x":
        slope = (loss(x + e * v) - loss(x - e * v)) / (2 * e)
    else:
        slope = (loss(x, **{name: parameters[name] + e * v}) - loss(x, **{name: parameters[name] - e * v})) / (2 * e)
    assert abs(slope - (gradient * v).sum()) < 1e-6 * np.linalg.norm(gradient), name
h = np.zeros(9)
one = LSTM(3, 9, cell="leaky", dtype="float64", random_state=1)
p = one.parameters
for t in range(5):
    h = 0.5 * h + 0.5 * np.tanh(
        p["weight_ih_l0"] @ x[0, t] + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"])
assert np.abs(one(x)[0][0, -1] - h).max() < 1e-14
"""


@pytest.mark.long
def test_a_new_cell_is_one_file_and_one_word(tmp_path):
    pytest.importorskip("Cython")
    if shutil.which("cmake") is None or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs cmake and the sources")
    tree, build = tmp_path / "tree", tmp_path / "build"
    for name in ("src", "python"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    (tree / "src/lstm_c/cells/leaky.h").write_text(LEAKY, encoding="ascii")
    options = ["-DFASTLSTM_CELLS=leaky", "-DFASTLSTM_WERROR=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-S", tree, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j2"], check=True, capture_output=True)
    (extension,) = build.glob("_core*.so")
    shutil.copy(extension, tree / "python/fastlstm")
    environment = {**os.environ, "PYTHONPATH": str(tree / "python")}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
