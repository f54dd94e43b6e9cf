"""Tensors in files of safetensors, which are data and cannot run code; with a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from metaloss.errors import RunFolderError, first_line
from metaloss.machine.files import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a file in one move, with a checksum, which the format itself has not.

    Raises:
        RunFolderError: it cannot be written.
    """
    from safetensors.torch import save

    # Copies: safetensors refuses tensors that share memory, as tied parameters do.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(own, {"sha256": digest(own)})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own.

    Raises:
        RunFolderError: it is not there, damaged, or no file of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read: {first_line(error)}") from error
    if metadata.get("sha256") not in (None, digest(tensors)):  # None: of another program
        raise RunFolderError(f"{path} is damaged: its checksum does not match")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
