"""Reading a folder of `torch.distributed.checkpoint`, one tensor at a time and without running code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from loss_viz.runs import unpickler
from loss_viz.runs.checkpoint_file import explain_failure

MAX_AXES = 64  # as many as a tensor can have; a few bytes could copy a longer tuple a million times

RECORDS = (
    *(metadata.Metadata, metadata.MetadataIndex, metadata.StorageMeta, metadata.TensorProperties),
    *(metadata.TensorStorageMetadata, metadata.ChunkStorageMetadata, metadata.BytesStorageMetadata),
    filesystem._StorageInfo,
)
CALLS = {
    **unpickler.CALLS,
    "torch.Size": lambda sizes: torch.Size(sizes[:MAX_AXES]),
    "torch.serialization._get_layout": torch.serialization._get_layout,
    **{f"{kind.__module__}.{kind.__name__}": kind for kind in (*RECORDS, metadata._MEM_FORMAT_ENCODING)},
}


class _Unpickler(unpickler.Unpickler):
    calls = CALLS
    built = RECORDS


class _Reader(FileSystemReader):
    """PyTorch's reader, which would load the metadata with `pickle`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._found = self._read_safely()

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        return self._found

    def _read_safely(self) -> metadata.Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, metadata.Metadata):
            raise ValueError("its .metadata describes no tensors")
        for place in found.storage_data.values():
            name = place.relative_path
            if Path(name).name != name or not (Path(self.path) / name).is_file():
                raise ValueError(f"its .metadata must name files beside it, {str(name)[:50]!r} is not one")
        for about in found.state_dict_metadata.values():
            if isinstance(about, metadata.TensorStorageMetadata):
                _check_pieces(about)
        found.storage_meta = metadata.StorageMeta()
        return found


def _check_pieces(about: metadata.TensorStorageMetadata) -> None:
    if not isinstance(about.properties.dtype, torch.dtype) or not isinstance(about.size, torch.Size):
        raise ValueError("its .metadata must tell the shapes of tensors")
    if sum(torch.Size(chunk.sizes).numel() for chunk in about.chunks) != about.size.numel():
        raise ValueError("its .metadata must name all pieces of a tensor once")


class Part:
    """A tensor in the folder, read when it is sliced."""

    def __init__(self, reader: _Reader, name: str, about: metadata.TensorStorageMetadata) -> None:
        self._reader, self._name, self._about = reader, name, about

    def get_shape(self) -> list[int]:
        """Return the shape, as a slice of a safetensors file does."""
        return list(self._about.size)

    def get_dtype(self) -> str:
        """Return a name of the dtype that starts with F for real floating-point numbers."""
        dtype = self._about.properties.dtype
        return f"F ({dtype})" if dtype.is_floating_point else str(dtype)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read()[rows]

    def read(self) -> Tensor:
        """Read the whole tensor from the files in which its pieces are."""
        tensor = torch.zeros(self._about.size, dtype=self._about.properties.dtype)
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)  # what is not in any piece must not look like a weight
        try:
            _load_state_dict({self._name: tensor}, self._reader, no_dist=True)
        except (Exception, CheckpointException) as error:  # a broken file may fail in any way
            failures = getattr(error, "failures", {}).values()
            cause = next((failure for failure, _ in failures), error)
            raise ValueError(explain_failure(Path(self._reader.path), cause)) from error
        return tensor


def read_parts(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors in a folder by name."""
    reader = _Reader(folder)
    for name, about in reader.read_metadata().state_dict_metadata.items():
        if isinstance(about, metadata.TensorStorageMetadata):
            part = Part(reader, name, about)
            yield name, part if about.size else part.read()
