"""Files of `torch.save`, read after what they declare was compared with what they hold.

`torch.load(weights_only=True)` runs no code, but believes sizes: it unpacks compressed members, takes as many bytes for
a storage as the pickle says (past its end, too), and lets a tensor of one number claim the shape of a billion.
"""

from __future__ import annotations

import mmap
import re
import tarfile
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor

from maskformer.conversion import pickle_check

_PICKLES = 5  # of the format before zip files: magic number, version, machine, the payload, names of its storages
_LARGEST_PICKLE = 1 << 28
_ADMITTED = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.(Size|device|[a-z]+[0-9]*|[A-Z][A-Za-z0-9]*Storage)"
    r"|torch\.storage\.[A-Za-z]+Storage|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
)
_BYTES = {
    "Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "ComplexFloat": 8,
    "ComplexDouble": 16, "QInt32": 4,
}  # fmt: skip


def load_torch(path: Path) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU; ValueError names the file and what is wrong with it."""
    try:
        _check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = _line(error)
        if "weights_only" in reason or "Weights only" in reason:  # torch's own words are a page of advice
            reason = reason[reason.find("Unsupported") :].split(" by default")[0] if "Unsupported" in reason else ""
        raise ValueError(f"{path}: refused: {reason[:200] or 'it is not a checkpoint of tensors alone'}") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails wherever its bytes happen to lead
        raise ValueError(f"{path}: not a checkpoint, or cut off: {_line(error)[:200]}") from error


def check_tensor(tensor: Tensor, what: str) -> None:
    """ValueError for what is no plain tensor in memory, or claims more numbers than are stored."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{what}: expected a plain tensor, found {tensor.layout} of {tensor.dtype} on {tensor.device}")
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > stored:
        raise ValueError(f"{what}: refused: its shape {tuple(tensor.shape)} claims {claimed} bytes of {stored} stored")


def _check(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path.stat().st_size)
    elif tarfile.is_tarfile(path):
        raise UnpicklingError("it is a tar archive, as PyTorch wrote them before 2017; save it again")
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            parts = [pickle_check.check(cast(Any, content), len(content), _is_admitted) for _ in range(_PICKLES)]
            sizes = {pid[2]: pid[4] * _number_size(str(pid[1])) for part in parts for pid in part.persistent}
            if sum(sizes.values()) > len(content):
                raise UnpicklingError(f"it wants {sum(sizes.values())} bytes of storage, and has {len(content)} in all")


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    members = {member.filename: member for member in archive.infolist()}
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnpicklingError(f"its member {member.filename} is compressed, which torch.save never does")
    if len(members) != len(archive.infolist()) or sum(member.file_size for member in members.values()) > size:
        raise UnpicklingError("its members overlap")
    payloads = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(payloads) != 1 or members[payloads[0]].file_size > _LARGEST_PICKLE:
        raise UnpicklingError(f"expected one data.pkl of less than {_LARGEST_PICKLE} bytes in it")
    with archive.open(payloads[0]) as file:
        asked = pickle_check.check(file, members[payloads[0]].file_size, _is_admitted)
    folder = payloads[0].removesuffix("data.pkl")
    for kind, storage, key, _, numbers in asked.persistent:
        member = members[f"{folder}data/{key}"]
        if kind != "storage" or numbers * _number_size(str(storage)) > member.file_size:
            raise UnpicklingError(f"it wants {numbers} numbers of the {member.file_size} bytes in {member.filename}")


def _is_admitted(name: str) -> bool:
    return _ADMITTED.fullmatch(name) is not None


def _number_size(storage: str) -> int:
    """Bytes of a number of a storage class, `torch.FloatStorage`."""
    return _BYTES.get(storage.rpartition(".")[2].removesuffix("Storage"), 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
