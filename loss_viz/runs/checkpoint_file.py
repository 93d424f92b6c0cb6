"""What one checkpoint holds: its tensors by name, still in their files, and never anything that could run code."""

import json
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from loss_viz.objective.layout import TensorSpec

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")

# What Hugging Face's Trainer writes into a folder, in the order in which transformers itself looks for it.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "_orig_mod")

# Names, shapes and whatever else is not a tensor. In memory it takes up to ten times as much.
MAX_STRUCTURE = 2**22

MAX_INDEX = 2**25

# What PyTorch would carry out while it reads, and a few bytes of which fill any memory.
GREEDY = {
    "builtins bytearray",
    "__builtin__ bytearray",
    "torch._utils _rebuild_device_tensor_from_numpy",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
}

N_PICKLES = 5  # before the numbers, in files of PyTorch before 1.6

REPAIR = "build `model` as it was when this checkpoint was written, or leave the file out."


def find_weights(path: Path) -> Path | None:
    """The file that holds the weights of a checkpoint, or tells which files do; none where it is no checkpoint."""
    files = [path / name for name in WEIGHTS] if path.is_dir() else [path] * (path.suffix.lower() in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Mapping[str, Any]]:
    """The tensors of a checkpoint by name, still in its files, as long as the block lasts."""
    stored: dict[str, Any] = {}
    at = path
    with ExitStack() as stack:
        try:
            for at in _list_files(path):
                stored.update(_open_file(at, stack))
        except Exception as error:  # a broken file may fail in any way
            raise ValueError(_explain(at, error)) from error
        yield stored


def _list_files(path: Path) -> list[Path]:
    weights = find_weights(path) or path
    if weights.suffix != ".json":
        return [weights]
    _require_small(weights.stat().st_size, MAX_INDEX)
    shards = json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()
    if not all(isinstance(name, str) and 0 < len(name) < 256 for name in shards):
        raise ValueError("its weight_map must lead to names of files")
    return [path / Path(name).name for name in sorted(set(shards))]


def check_header_size(path: Path) -> None:
    """Refuse a safetensors file that is little but names.

    Raises:
        ValueError: it is one.
    """
    with path.open("rb") as file:
        _require_small(int.from_bytes(file.read(8), "little"))


def _require_small(n_bytes: int, most: int = MAX_STRUCTURE) -> None:
    if n_bytes > most:
        raise ValueError(f"its names and numbers take more than {most >> 20} MiB beside the tensors")


def _open_file(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe is to wait for ever
        raise ValueError("it is a pipe or a device")
    if path.suffix.lower() == ".safetensors":
        check_header_size(path)
        file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        # A tensor without axes cannot be sliced.
        return [(name, part if part.get_shape() else file.get_tensor(name)) for name, part in parts.items()]
    zipped = zipfile.is_zipfile(path)
    (_look_through_zip if zipped else _look_through)(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*TorchScript")
        warnings.filterwarnings("ignore", message=".*pickle protocol")
        return _flatten(torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped), set())


def _look_through_zip(path: Path) -> None:
    """Refuse what would be read wrong, or would fill the memory, in a file of `torch.save`.

    Raises:
        ValueError: there is such a thing in it.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("constants.pkl") for entry in entries):
            raise ValueError("it is a TorchScript archive, which holds code")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:  # PyTorch would take the bytes as they are for numbers
                raise ValueError("it is compressed, as torch.save never does")
            if entry.filename.endswith("data.pkl"):
                _require_small(entry.file_size)
                greedy = [what for what in GREEDY if f"c{what}\n".replace(" ", "\n").encode() in archive.read(entry)]
                if greedy:
                    raise ValueError(f"GLOBAL {greedy[0].replace(' ', '.')}")


def _look_through(path: Path) -> None:
    """The same in one of a `torch.save` before PyTorch 1.6: pickles, and then the numbers."""
    with path.open("rb") as file:
        # PyTorch before 2.6 runs what is in tar files, whatever `weights_only` says.
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            raise ValueError("it is a tar file")
        file.seek(0)
        for position, name in _list_names(file):
            _require_small(position)
            if name in GREEDY:
                raise ValueError(f"GLOBAL {name.replace(' ', '.')}")


def _list_names(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Where each step of some pickles stands, and the name of what it fetches; up to where they are broken."""
    with suppress(ValueError, EOFError, UnicodeError):
        for _ in range(N_PICKLES):
            for opcode, argument, position in pickletools.genops(file):
                yield position or 0, str(argument) if opcode.name == "GLOBAL" else ""


def _flatten(value: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name; so a dictionary around them is a prefix like any other. None is entered twice."""
    if isinstance(value, Tensor):
        yield prefix[:-1], value.detach()
    elif isinstance(value, Mapping) and id(value) not in seen:
        seen.add(id(value))
        for name, part in value.items():
            yield from _flatten(part, seen, f"{prefix}{name}.")


def _explain(path: Path, error: Exception) -> str:
    if refused := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
        return (
            f"{path} cannot be read: it holds a {refused[1]}, and only tensors, numbers and texts are taken from a "
            "checkpoint, since other objects can run code. Write torch.save(model.state_dict(), path) instead."
        )
    reason = (str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines() or [""])[0].split(". ")[0]
    said = f"{type(error).__name__}: {reason}"
    return f"{path} cannot be read as a checkpoint ({said}). It may be truncated; leave it out or write it again."


def match_names(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec]) -> list[str]:
    """What the tensors of a layout are called in a checkpoint.

    Raises:
        ValueError: some are not in it, or it holds the model twice.
    """
    found = {prefix: _find_keys(stored, prefix, entries) for prefix in find_prefixes(stored, entries[0])}
    whole = sorted((prefix for prefix, keys in found.items() if len(keys) == len(entries)), key=_rank)
    if not whole:
        raise ValueError(_explain_missing(path, stored, entries))
    if len(whole) > 1 and _rank(whole[0])[0] == _rank(whole[1])[0]:
        where = _enumerate([repr(prefix) for prefix in whole])
        raise ValueError(f"{path} must hold `model` once, it does under {where}. Write one of them alone, or {REPAIR}")
    return [found[whole[0]][entry.name] for entry in entries]


def check_shapes(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Refuse a checkpoint whose tensors have other shapes than those of the model, or are of something else.

    Raises:
        ValueError: some have, or are.
    """
    parts = [stored[name] for name in names]
    for entry, part in zip(entries, parts, strict=True):
        if kind := _find_fault(part):
            raise ValueError(f"{path} must hold plain real numbers: {entry.name!r} is {kind} in it; {REPAIR}")
    shapes = [tuple(part.shape if isinstance(part, Tensor) else part.get_shape()) for part in parts]
    pairs = [(entry, shape) for entry, shape in zip(entries, shapes, strict=True) if entry.shape != shape]
    if pairs:
        told = _enumerate([f"{entry.name!r} is {shape} in it, {entry.shape} in `model`" for entry, shape in pairs])
        raise ValueError(f"{path} must hold tensors of the shapes of `model`: {told}; {REPAIR}")


def _find_fault(part: Any) -> str:
    """What a tensor is of, where that is not real numbers that lie in the file one by one; empty where it is."""
    if not isinstance(part, Tensor):  # of a safetensors file, which holds no others than plain ones
        return "" if part.get_dtype().startswith(("F", "BF")) else part.get_dtype()
    plain = part.is_floating_point() and part.layout == torch.strided and part.device.type == "cpu"
    return "" if plain and not part.is_quantized else f"{part.dtype}, {part.layout}, on {part.device}"


def _explain_missing(path: Path, stored: Collection[str], entries: Sequence[TensorSpec]) -> str:
    prefixes = sorted({""}.union(*(find_prefixes(stored, entry) for entry in entries)), key=_rank)
    most = max((_find_keys(stored, prefix, entries) for prefix in prefixes), key=len)
    missing = _enumerate([repr(entry.name) for entry in entries if entry.name not in most])
    there = _enumerate([repr(name) for name in stored]) or "no tensors"
    return f"{path} must hold every tensor of `model`: it lacks {missing}, and holds {there}; {REPAIR}"


def _enumerate(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _find_keys(stored: Collection[str], prefix: str, entries: Sequence[TensorSpec]) -> dict[str, str]:
    """By first name, under which of its names, tied ones included, a tensor is there."""
    return {e.name: prefix + name for e in entries for name in reversed(e.names) if prefix + name in stored}


def find_prefixes(stored: Collection[str], entry: TensorSpec) -> set[str]:
    """What stands before the name of a tensor in a checkpoint; nothing is found where it is not in it."""
    return {key.removesuffix(n) for n in entry.names for key in stored if key == n or key.endswith(f".{n}")}


def _rank(prefix: str) -> tuple[list[int], str]:
    """Order of preference: no prefix, then the usual wrappers, then any other."""
    return [WRAPPERS.index(part) if part in WRAPPERS else len(WRAPPERS) for part in prefix.split(".")[:-1]], prefix


def read_flat(part: Any, shape: tuple[int, ...], start: int, stop: int) -> Float[Tensor, " m"]:
    """Values `start` to `stop` of a flattened tensor; of its file only the rows in which they lie are read."""
    width = torch.Size(shape[1:]).numel()
    first = start // width
    rows = part[first : -(-stop // width)] if shape else part
    return rows.reshape(-1)[start - first * width : stop - first * width]
