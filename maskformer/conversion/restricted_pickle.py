"""Checkpoints as pickles, read without running what a pickle may ask for.

A pickle is a program that may call anything importable. Published detectron2 checkpoints need dictionaries, strings,
numbers and numpy arrays; this reader has stand-ins that make those and refuses everything else by name. Of a file,
numpy sees bytes, a shape and a type of plain numbers alone: its own unpickling believes what it is told, down to the
flags of a dtype, and a damaged file can bring it down.
"""

from __future__ import annotations

import mmap
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from maskformer.conversion.pickle_check import check


class _Numbers:
    """A dtype: kind and size of plain numbers; its state says their byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"it asks for values of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it asks for byte order {state[1]!r}")
        self.order = state[1]

    def read(self, content: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array of these bytes (text where Python 2 wrote them), row by row ("C") or column by column ("F")."""
        content = content.encode("latin1") if isinstance(content, str) else content
        values = np.frombuffer(content, np.dtype(self.code).newbyteorder(self.order))  # type: ignore[arg-type]
        return np.asarray(values.astype(self.code).reshape(shape, order="F" if order == "F" else "C"), order="C")


class _Array:
    """An array that is told its content after it was made."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, numbers, by_columns, content = state[-4:]  # before them the version, which the first format lacks
        self.value = _array_of(content, numbers, shape, "F" if by_columns else "C")


def _array_of(content: Any, numbers: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(numbers, _Numbers) or not isinstance(content, bytes | bytearray | str | pickle.PickleBuffer):
        raise pickle.UnpicklingError("it asks for an array of other things than numbers")
    return numbers.read(content, shape, order)


def _scalar_of(numbers: Any, content: Any) -> np.ndarray:
    return _array_of(content, numbers, (), "C")


def _bytes_of(text: str, encoding: str) -> bytes:
    """Bytes as protocols 0 to 2 write them: latin-1 text. Stands in for `_codecs.encode`, which knows more codecs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for text in {encoding!r}")
    return text.encode("latin1")


class _Maker:
    """What a pickle gets in place of what it names: to be called, and nothing else."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: Any) -> None:  # else a pickle could change it for those that are read later
        raise pickle.UnpicklingError("it asks to change what makes its values")


_ADMITTED = {
    ("numpy", "ndarray"): _Maker(lambda *_: _Array()),
    ("numpy", "dtype"): _Maker(_Numbers),
    ("collections", "OrderedDict"): _Maker(OrderedDict),
    ("_codecs", "encode"): _Maker(_bytes_of),
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Maker(lambda *_: _Array())
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _Maker(_scalar_of)
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Maker(_array_of)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load_pickle(path: Path) -> Any:
    """What a pickle of plain values and numpy arrays holds.

    ValueError names what else it asks for, or how it broke. What it would build is worked out first (`pickle_check`).
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check(cast(Any, content), len(content), _is_admitted)
            content.seek(0)
            return _unwrapped(_Reader(cast(Any, content), encoding="latin1").load())
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: refused: {reason}; a checkpoint needs numpy arrays and nothing else") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle fails in whatever its bytes happen to call
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: not a pickle, or cut off: {reason}") from error


def _is_admitted(name: str) -> bool:
    return tuple(name.rsplit(".", 1)) in _ADMITTED


def _unwrapped(value: Any) -> Any:
    """Arrays in place of what stands in for them, in a dictionary and those in it."""
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    return value.value if isinstance(value, _Array) else value
