"""Reading one checkpoint: its tensors by name, loaded on demand and without running code."""

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from jaxtyping import Shaped
from torch import Tensor

from loss_viz.objective.layout import TensorSpec

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")

# Files that Hugging Face's Trainer writes into a folder, in the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "_orig_mod")

# Bytes of names, shapes and other values that are not tensors; in memory they take up to ten times as much.
MAX_STRUCTURE = 2**22
MAX_INDEX = 2**25

# Functions that PyTorch allows in checkpoints, although a few bytes can make them fill the memory.
GREEDY = {
    "builtins bytearray",
    "__builtin__ bytearray",
    "torch._utils _rebuild_device_tensor_from_numpy",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
}

N_PICKLES = 5  # in front of the numbers, in files written before PyTorch 1.6
REPAIR = "build `model` as it was when this checkpoint was written, or leave the file out."


def find_weights(path: Path) -> Path | None:
    """Return the file of a checkpoint with the weights, or with the index of its shards; None if it is not one."""
    files = [path / name for name in WEIGHTS] if path.is_dir() else [path] * (path.suffix.lower() in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the tensors of a checkpoint by name; where possible they stay in the file until they are sliced.

    Raises:
        ValueError: if the checkpoint cannot be read.
    """
    stored: dict[str, Any] = {}
    file = path
    with ExitStack() as stack:
        try:
            for file in _list_files(path):
                stored.update(_open_file(file, stack))
        except Exception as error:  # a broken file may fail in any way
            raise ValueError(_explain(file, error)) from error
        yield stored


def _list_files(path: Path) -> list[Path]:
    weights = find_weights(path) or path
    if weights.suffix != ".json":
        return [weights]
    _check_size(weights.stat().st_size, MAX_INDEX)
    shards = json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()
    if not all(isinstance(name, str) and 0 < len(name) < 256 for name in shards):
        raise ValueError("its weight_map must map to file names")
    return [path / Path(name).name for name in sorted(set(shards))]


def check_header_size(path: Path) -> None:
    """Check the size of the header of a safetensors file before it is parsed.

    Raises:
        ValueError: if it is too large.
    """
    with path.open("rb") as file:
        _check_size(int.from_bytes(file.read(8), "little"))


def _check_size(n_bytes: int, limit: int = MAX_STRUCTURE) -> None:
    if n_bytes > limit:
        raise ValueError(f"it has more than {limit >> 20} MiB of data beside the tensors")


def _open_file(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would block
        raise ValueError("it is a pipe or a device")
    if path.suffix.lower() == ".safetensors":
        check_header_size(path)
        file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        # A zero-dimensional tensor cannot be sliced.
        return [(name, part if part.get_shape() else file.get_tensor(name)) for name, part in parts.items()]
    zipped = zipfile.is_zipfile(path)
    (_check_zip if zipped else _check_legacy)(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*TorchScript")
        warnings.filterwarnings("ignore", message=".*pickle protocol")
        return _flatten(torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped), set())


def _check_zip(path: Path) -> None:
    """Check a file of `torch.save` for contents that would be misread or fill the memory.

    Raises:
        ValueError: if there are any.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("constants.pkl") for entry in entries):
            raise ValueError("it is a TorchScript archive, which holds code")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:  # PyTorch would read the compressed bytes as numbers
                raise ValueError("it is compressed, as torch.save never does")
            if entry.filename.endswith("data.pkl"):
                _check_size(entry.file_size)
                greedy = [name for name in GREEDY if f"c{name}\n".replace(" ", "\n").encode() in archive.read(entry)]
                if greedy:
                    raise ValueError(f"GLOBAL {greedy[0].replace(' ', '.')}")


def _check_legacy(path: Path) -> None:
    """Check a file written before PyTorch 1.6, some pickles followed by the numbers, in the same way."""
    with path.open("rb") as file:
        for position, name in _list_globals(file):
            _check_size(position)
            if name in GREEDY:
                raise ValueError(f"GLOBAL {name.replace(' ', '.')}")


def _list_globals(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the position of each opcode of the pickles and the name that it imports, up to the first invalid one."""
    with suppress(ValueError, EOFError, UnicodeError):
        for _ in range(N_PICKLES):
            for opcode, argument, position in pickletools.genops(file):
                yield position or 0, str(argument) if opcode.name == "GLOBAL" else ""


def _flatten(value: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dictionaries by dotted name, visiting each dictionary once."""
    if isinstance(value, Tensor):
        yield prefix[:-1], value.detach()
    elif isinstance(value, Mapping) and id(value) not in seen:
        seen.add(id(value))
        for name, part in value.items():
            yield from _flatten(part, seen, f"{prefix}{name}.")


def _explain(path: Path, error: Exception) -> str:
    if refused := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
        return (
            f"{path} cannot be read: it holds a {refused[1]}, and only tensors, numbers and strings are read from a "
            "checkpoint, because other objects can run code. Write torch.save(model.state_dict(), path) instead."
        )
    reason = (str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines() or [""])[0].split(". ")[0]
    cause = f"{type(error).__name__}: {reason}"
    return f"{path} cannot be read as a checkpoint ({cause}). It may be truncated; leave it out or write it again."


def match_names(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec]) -> list[str]:
    """Return the name of each tensor of a layout in a checkpoint.

    Raises:
        ValueError: if some are missing, or the checkpoint holds the model twice.
    """
    found = {prefix: _find_keys(stored, prefix, entries) for prefix in find_prefixes(stored, entries[0])}
    complete = sorted((prefix for prefix, keys in found.items() if len(keys) == len(entries)), key=_rank)
    if not complete:
        raise ValueError(_explain_missing(path, stored, entries))
    if len(complete) > 1 and _rank(complete[0])[0] == _rank(complete[1])[0]:
        where = _enumerate([repr(prefix) for prefix in complete])
        raise ValueError(f"{path} must hold `model` once, it does under {where}. Write only one of them, or {REPAIR}")
    return [found[complete[0]][entry.name] for entry in entries]


def check_shapes(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Check that the tensors of a checkpoint are real, strided and of the shapes of the model.

    Raises:
        ValueError: if some are not.
    """
    parts = [stored[name] for name in names]
    for entry, part in zip(entries, parts, strict=True):
        if kind := _find_fault(part, entry.kind):
            what = {"real": "real numbers", "complex": "complex numbers", "nominal": "whole numbers or flags"}
            raise ValueError(f"{path} must hold plain {what[entry.kind]}: {entry.name!r} is {kind} in it; {REPAIR}")
    shapes = [tuple(part.shape if isinstance(part, Tensor) else part.get_shape()) for part in parts]
    pairs = [(entry, shape) for entry, shape in zip(entries, shapes, strict=True) if entry.shape != shape]
    if pairs:
        where = _enumerate([f"{entry.name!r} is {shape} in it, {entry.shape} in `model`" for entry, shape in pairs])
        raise ValueError(f"{path} must hold tensors of the shapes of `model`: {where}; {REPAIR}")


def _find_fault(part: Any, kind: str) -> str:
    """Describe a tensor that is not a plain array of numbers of a kind (see `TensorSpec`), or return ""."""
    if not isinstance(part, Tensor):  # a slice of a safetensors file, which holds plain tensors only
        dtype = part.get_dtype()
        found = "real" if dtype.startswith(("F", "BF")) else "complex" if dtype.startswith("C") else "nominal"
        return "" if found == kind else dtype
    found = "real" if part.is_floating_point() else "complex" if part.is_complex() else "nominal"
    plain = found == kind and part.layout == torch.strided and part.device.type == "cpu"
    return "" if plain and not part.is_quantized else f"{part.dtype}, {part.layout}, on {part.device}"


def _explain_missing(path: Path, stored: Collection[str], entries: Sequence[TensorSpec]) -> str:
    prefixes = sorted({""}.union(*(find_prefixes(stored, entry) for entry in entries)), key=_rank)
    best = max((_find_keys(stored, prefix, entries) for prefix in prefixes), key=len)
    missing = _enumerate([repr(entry.name) for entry in entries if entry.name not in best])
    present = _enumerate([repr(name) for name in stored]) or "no tensors"
    return f"{path} must hold every tensor of `model`: it lacks {missing}, and holds {present}; {REPAIR}"


def _enumerate(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _find_keys(stored: Collection[str], prefix: str, entries: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the names in a checkpoint of the tensors with a given prefix, by their first name in the model."""
    return {e.name: prefix + name for e in entries for name in reversed(e.names) if prefix + name in stored}


def find_prefixes(stored: Collection[str], entry: TensorSpec) -> set[str]:
    """Return all prefixes with which a checkpoint holds a tensor under one of its names."""
    return {key.removesuffix(n) for n in entry.names for key in stored if key == n or key.endswith(f".{n}")}


def _rank(prefix: str) -> tuple[list[int], str]:
    """Return a sort key: no prefix first, then the usual wrappers, then any other prefix."""
    return [WRAPPERS.index(part) if part in WRAPPERS else len(WRAPPERS) for part in prefix.split(".")[:-1]], prefix


def read_flat(part: Any, entry: TensorSpec, start: int, stop: int) -> Shaped[Tensor, " m"]:
    """Return values `start` to `stop` of a flattened tensor, reading only the rows of the file that contain them."""
    if entry.kind == "complex":
        return torch.view_as_real(part[:] if entry.shape else part).reshape(-1)[start:stop]
    width = torch.Size(entry.shape[1:]).numel()
    first = start // width
    rows = part[first : -(-stop // width)] if entry.shape else part
    return rows.reshape(-1)[start - first * width : stop - first * width]
