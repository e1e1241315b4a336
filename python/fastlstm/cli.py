"""The command ``fastlstm``: demo, train, predict, bench, info.

Exit codes: 0 done, 1 failed (one line on stderr says why), 2 wrong usage. With ``--json`` a command
writes one JSON document to stdout and nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastlstm._version import __version__

__all__ = ["UsageError", "main"]

_EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError)


class UsageError(ValueError):
    """What was asked for cannot be: exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the name of the program; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 failed, 2 wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"]:
        return _guarded(_bench, words[1:])
    try:
        arguments = _parser().parse_args(words)
    except SystemExit as stop:  # argparse has said what is wrong, or shown the help
        return int(stop.code or 0)
    return _guarded(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    from fastlstm import _commands

    result = getattr(_commands, arguments.command)(arguments)
    if arguments.json:
        print(json.dumps(_jsonable(result), indent=2, allow_nan=False))
    return 0


def _bench(words: list[str]) -> int:
    from fastlstm import benchmark

    if words[-1:] == ["--json"]:  # its --json takes a file, "-" being stdout
        words = [*words, "-"]
    return benchmark.main(words)


def _guarded(command: Any, arguments: Any) -> int:
    """The exit code of a command; what it raises becomes one line on stderr."""
    try:
        with _short_warnings():
            code = int(command(arguments))
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader of stdout, such as head, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted")
    except UsageError as error:
        return _fail(_one_line(error), code=2)
    except _EXPECTED as error:
        return _fail(_one_line(error))
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {_one_line(error)}")


def _fail(message: str, code: int = 1) -> int:
    print(f"fastlstm: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory {error}".strip()
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show each warning as one line on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"fastlstm: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _jsonable(value: Any) -> Any:
    """Plain data without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


# ------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastlstm", description="LSTM networks trained and served on CPUs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_predict(commands)
    commands.add_parser("bench", help="measure the speed of this machine", add_help=False)
    _add_info(commands)
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="write one JSON document to stdout")
    return parser


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", "train a classifier on real data that comes with the package")
    parser.add_argument(
        "--out", default="fastlstm-demo", metavar="DIR", help="folder for model and picture (%(default)s)"
    )
    parser.add_argument("--random-state", type=int, default=0, metavar="SEED", help="default: %(default)s")


def _add_info(commands: Any) -> None:
    parser = _add(commands, "info", "show the configuration of this installation, or what a model file holds")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a .safetensors file of fastlstm")


def _add_data(parser: argparse.ArgumentParser, stored: str = "") -> None:
    """Options that say how to read a data file."""
    parser.add_argument("data", metavar="DATA", help=".csv, .tsv, .parquet, .npz or .ts file")
    group = parser.add_argument_group(
        "tables",
        "A table with --id holds one time step a row; without, one univariate sequence a row." + stored,
    )
    group.add_argument("--id", metavar="COL", help="column that names the sequence of a row")
    group.add_argument("--time", metavar="COL", help="column to sort the time steps by (default: file order)")
    group.add_argument("--features", nargs="+", metavar="COL", help="columns to use (default: all others)")
    parser.add_argument(
        "--delta-t",
        metavar="COL",
        help="column of the times since the step before, for the cell tlstm and --missing observe; the array's name in "
        "npz",
    )
    parser.add_argument(
        "--missing",
        choices=("error", "observe"),
        help="what empty cells and NaN are: an error, or values that were not observed",
    )


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", "predict with a saved model; writes CSV")
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file of fastlstm")
    _add_data(parser, " By default the columns, and --missing, are those of the training.")
    parser.add_argument("--proba", action="store_true", help="add the probability of each class")
    parser.add_argument("--out", metavar="CSV", help="file to write (default: stdout)")


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", "train a model on a data file and save it")
    _add_data(parser)
    parser.add_argument(
        "--target", nargs="+", metavar="COL", help="column(s) to predict; the array's name in npz (y)"
    )
    parser.add_argument("--out", required=True, metavar="MODEL", help="model file to write (.safetensors)")
    parser.add_argument(
        "--task",
        choices=("auto", "classify", "regress"),
        default="auto",
        help="auto: regress where the target has fractions or several columns (%(default)s)",
    )
    parser.add_argument("--test", metavar="DATA", help="file with held-out sequences, instead of --hold-out")
    parser.add_argument(
        "--hold-out", type=_fraction, default=0.2, metavar="FRACTION", help="held-out share (%(default)s)"
    )
    parser.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give features mean 0 and deviation 1; part of the model (%(default)s; --missing observe always does)",
    )
    parser.add_argument("--plot", metavar="PNG", help="picture of the training to write (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    _add_hyperparameters(parser)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


#: Parameters of the estimators that are options of ``fastlstm train``: (name, type, help).
HYPERPARAMETERS: tuple[tuple[str, Any, str], ...] = (
    ("hidden_size", int, "units of each layer and direction"),
    ("num_layers", int, "number of stacked layers"),
    ("cell", str, "recurrent cell, such as lstm or rnn"),
    ("bidirectional", bool, "read the sequences in both directions"),
    ("residual", bool, "add the input of each layer to its output"),
    ("skip", str, "input, output or both: connect these with every layer"),
    ("merge", str, "concat or sum: what becomes of two directions"),
    ("dropout", float, "dropped share of the outputs of each layer"),
    ("pooling", str, "last, mean or max: what of the outputs goes to the head"),
    ("solver", str, "adam, adamw, nadam, rmsprop or sgd"),
    ("learning_rate_init", float, "step size"),
    ("learning_rate", str, "schedule of the step size, such as constant or cosine"),
    ("batch_size", int, "sequences in a minibatch"),
    ("max_iter", int, "largest number of epochs"),
    ("tol", float, "smallest improvement that counts"),
    ("n_iter_no_change", int, "epochs without improvement before training stops"),
    ("early_stopping", bool, "validate on a part of the data, keep the best weights"),
    ("validation_fraction", float, "that part"),
    ("alpha", float, "L2 penalty"),
    ("clip_norm", float, "largest norm of the gradient"),
    ("loss", str, "loss of a regression"),
    ("class_weight", str, "balanced: weigh the classes equally"),
    ("precision", str, "float32, float64, high or bfloat16"),
    ("batch_invariant", bool, "the same bits in any batch and stream with AMX, too"),
    ("n_jobs", int, "number of threads"),
    ("checkpoint_dir", str, "folder for checkpoints; training resumes from one found there"),
    ("random_state", int, "seed"),
)


def _add_hyperparameters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hyper-parameters", "Where not given, the default of the estimator.")
    for name, kind, text in HYPERPARAMETERS:
        option = "--" + name.replace("_", "-")
        if kind is bool:
            group.add_argument(option, action="store_true", default=None, help=text)
        else:
            group.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=text)
