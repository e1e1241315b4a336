"""The house rules: who may include or import whom, what may be called, what is in the sources."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from subprocesses import output_of

import fastlstm

ROOT = Path(__file__).resolve().parents[2]
C_SOURCES = ROOT / "src" / "lstm_c"
PACKAGE = ROOT / "python" / "fastlstm"
needs_sources = pytest.mark.skipif(not C_SOURCES.is_dir(), reason="needs the source tree")

# A folder may include itself and folders of a lower rank.
C_ORDER = ("include", "base", "simd", "kernels", "cells", "isa", "layers", "model", "api")
C_RANK = {folder: rank for rank, folder in enumerate(C_ORDER)}
# The bodies are written on the vector vocabulary and know nothing of the public header.
C_NEVER = {(own, "include") for own in ("simd", "kernels", "cells")}
C_SPECIFIC_FLAGS = ("immintrin.h", "arm_neon.h", "x86intrin.h")

# A module may import at import time modules of a lower rank, and its own package.
PYTHON_RANK = {
    "_version": 0,
    "_metadata": 0,
    "_core": 1,
    "_ctc": 2,
    "config": 2,
    "sequences": 2,
    "losses": 2,
    "optimizers": 2,
    "schedules": 2,
    "serialization": 2,
    "callbacks": 2,
    "decision": 3,
    "decoding": 3,
    "layers": 3,
    "missing": 3,
    "network": 4,
    "inputs": 5,
    "trainer": 5,
    "model": 6,
    "streaming": 6,
    "estimators": 7,
}
LEAVES = 9


def c_files() -> list[Path]:
    return sorted(path for path in C_SOURCES.rglob("*") if path.suffix in {".c", ".h"})


def python_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".pyx", ".pxd", ".pyi"})


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="ascii"), re.MULTILINE)


def folder_of_include(path: Path, name: str) -> str | None:
    """Folder of src/lstm_c that an include leads to; None for the system's headers."""
    for base in (path.parent, C_SOURCES, C_SOURCES / "include"):
        target = (base / name).resolve()
        if target.is_file():
            return target.relative_to(C_SOURCES).parts[0]
    return None


@needs_sources
def test_every_c_folder_has_a_rank() -> None:
    assert {path.relative_to(C_SOURCES).parts[0] for path in c_files()} <= C_RANK.keys()


@needs_sources
@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(C_SOURCES)))
def test_c_includes_point_down(path: Path) -> None:
    own = path.relative_to(C_SOURCES).parts[0]
    for name in includes(path):
        other = folder_of_include(path, name)
        if other is None:
            assert ".." not in name, f"{name} is not in the tree"
            continue
        assert C_RANK[other] <= C_RANK[own], f"{own} includes {name}"
        assert (own, other) not in C_NEVER, f"{own} includes {name}"


@needs_sources
def test_only_vector_headers_know_intrinsics() -> None:
    for path in c_files():
        if path.relative_to(C_SOURCES).parts[0] != "simd":
            assert not set(includes(path)) & set(C_SPECIFIC_FLAGS), path


@needs_sources
def test_only_one_file_chooses_the_instruction_set() -> None:
    call = re.compile(r'getenv\(\s*"FASTLSTM_ISA"')
    assert len([path for path in c_files() if call.search(path.read_text(encoding="ascii"))]) == 1


def code_of(path: Path) -> str:
    """C text without comments and string literals."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(encoding="ascii"), flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


# fmt: off
FORBIDDEN = {
    "abort", "exit", "_exit", "printf", "fprintf", "puts", "fputs", "putchar", "perror", "stderr",
    "stdout", "assert", "system", "popen", "gets", "strcpy", "strcat", "sprintf", "setenv",
    "signal", "sigaction",
}
# fmt: on
ALLOCATION = ("malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign", "alloca")


@needs_sources
@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(C_SOURCES)))
def test_c_sources_neither_print_nor_exit(path: Path) -> None:
    words = set(re.findall(r"\b[A-Za-z_]\w*\b", code_of(path)))
    assert not words & FORBIDDEN
    if path.relative_to(C_SOURCES).parts[0] in {"simd", "kernels", "cells", "isa"}:
        assert not words & set(ALLOCATION), "kernels allocate nothing"


def extension() -> Path:
    import fastlstm._core

    return Path(str(fastlstm._core.__file__))


def nm(*arguments: str) -> list[str]:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    listed = subprocess.run(["nm", *arguments, str(extension())], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_extension_calls_nothing_that_prints_or_exits() -> None:
    used = {line.split()[-1].split("@")[0] for line in nm("-D", "--undefined-only")}
    wanted = {name for word in FORBIDDEN for name in (word, f"__{word}_chk", f"__{word}_fail")}
    assert not used & wanted


def test_extension_exports_its_module_alone() -> None:
    """Nothing of ours can clash with another library loaded in the same process."""
    exported = {line.split()[-1] for line in nm("-D", "--defined-only", "--extern-only")}
    strange = {name for name in exported if not name.startswith(("PyInit_", "_init", "_fini", "fl_"))}
    assert not strange


def module_of(path: Path) -> str:
    """First part of a module's name below the package: a module, or a folder."""
    return path.relative_to(PACKAGE).parts[0].split(".")[0]


def imports_at_import_time(path: Path) -> set[str]:
    """Top-level imports of a file, dotted; those inside functions and `if TYPE_CHECKING` do not count."""
    names: set[str] = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            nodes += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            nodes += [*node.body, *node.orelse, *node.finalbody, *(n for h in node.handlers for n in h.body)]
        elif isinstance(node, ast.ClassDef | ast.With):
            nodes += node.body
    return names


MODULES = [path for path in python_files() if path.suffix == ".py" and path != PACKAGE / "__init__.py"]


@needs_sources
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_imports_point_down(path: Path) -> None:
    own = module_of(path)
    for name in imports_at_import_time(path):
        parts = name.split(".")
        if parts[0] != "fastlstm" or len(parts) == 1 or parts[1] in (own, "__version__"):
            continue
        other = PYTHON_RANK.get(parts[1], LEAVES)
        assert other < LEAVES or own not in PYTHON_RANK, f"{own} imports the leaf {name}"
        assert other <= PYTHON_RANK.get(own, LEAVES), f"{own} imports {name}"


# fmt: off
ALWAYS_LAZY = {
    "sklearn", "scipy", "pandas", "matplotlib", "rich", "tqdm", "torch", "joblib", "pyarrow",
    "polars",
}
# fmt: on
NUMPY_ONLY = [
    path for path in MODULES if PYTHON_RANK.get(module_of(path), LEAVES) < PYTHON_RANK["estimators"]
]


@needs_sources
@pytest.mark.parametrize("path", NUMPY_ONLY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_below_the_estimators_import_numpy_alone(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_at_import_time(path)} & ALWAYS_LAZY


NEW_MODULES = """
import sys
before = set(sys.modules)
{body}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(" ".join(sorted(new - set(sys.stdlib_module_names) - {{"fastlstm", "numpy"}})))
"""
SAVE = """
import sys, numpy as np
from fastlstm import LSTMClassifier
rng = np.random.default_rng(0)
x, y = rng.normal(size=(20, 5, 3)), np.arange(20) % 2
model = LSTMClassifier(4, max_iter=1, random_state=0).fit(x, y)
model.save(sys.argv[1])
np.save(sys.argv[2], model.predict(x))
np.save(sys.argv[3], x)
"""
SERVE = """
import numpy as np, fastlstm
model = fastlstm.load(sys.argv[1])
assert (model.predict(np.load(sys.argv[3])) == np.load(sys.argv[2])).all()
model.predict_proba(np.load(sys.argv[3]))
"""


@pytest.mark.parametrize(
    "body", ["import fastlstm", "import fastlstm.layers", "import fastlstm; fastlstm.show_config"], ids=str
)
def test_import_needs_numpy_alone(body: str) -> None:
    assert foreign_modules(body) == set()


def foreign_modules(body: str, *arguments: str) -> set[str]:
    """Modules that `body` brings in besides the standard library, numpy and fastlstm itself."""
    found = set(output_of(NEW_MODULES.format(body=body), *arguments).split())
    ours = ("__editable__", "_fastlstm", "_cython", "cython_")
    return {name for name in found if not name.startswith(ours)}


def test_serving_a_saved_model_needs_numpy_alone(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    paths = [str(tmp_path / name) for name in ("model.safetensors", "predicted.npy", "x.npy")]
    output_of(SAVE, *paths)
    assert foreign_modules(SERVE, *paths) == set()


@needs_sources
def test_sources_are_ascii_and_plain() -> None:
    paths = [*c_files(), *python_files()]
    assert len(paths) > 20
    for path in paths:
        data = path.read_bytes()
        assert data.isascii(), path
        assert b"\t" not in data, path
        assert b"\r" not in data, path
        assert data.endswith(b"\n") or not data, path
        assert not re.search(rb"[ ]+\n", data), path


UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|PLACEHOLDER)\b", re.IGNORECASE)


@needs_sources
def test_sources_hold_nothing_unfinished() -> None:
    for path in [*c_files(), *python_files()]:
        assert not UNFINISHED.search(path.read_text(encoding="utf-8")), path


def test_public_names_resolve_and_are_documented() -> None:
    pytest.importorskip("sklearn")
    for name in fastlstm.__all__:
        value = getattr(fastlstm, name)
        assert name.startswith("__") or value.__doc__, name
    assert set(fastlstm.__all__) <= set(dir(fastlstm))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastlstm.no_such_name


def test_versions_agree() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d*)?", fastlstm.__version__)
    assert np.lib.NumpyVersion(np.__version__) >= "1.26.0"
    assert sys.version_info >= (3, 11)
