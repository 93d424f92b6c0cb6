"""What one checkpoint holds: its tensors by name, still in their files, and never anything that could run code."""

import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from .parameters import Entry

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# What Hugging Face's Trainer writes into a folder, in the order in which transformers itself looks for it.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "_orig_mod")
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
    shards = json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()
    return [path / Path(name).name for name in sorted(set(shards))]


def _open_file(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    if path.suffix.lower() == ".safetensors":
        file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        # A tensor without axes cannot be sliced.
        return [(name, part if part.get_shape() else file.get_tensor(name)) for name, part in parts.items()]
    # PyTorch before 2.6 runs what is in tar files and TorchScript, whatever `weights_only` says.
    if tarfile.is_tarfile(path):
        raise ValueError("it is a tar file")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*TorchScript")
        return _flatten(torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name; so a dictionary around them is a prefix like any other."""
    if isinstance(value, Tensor):
        yield prefix[:-1], value.detach()
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flatten(part, f"{prefix}{name}.")


def _explain(path: Path, error: Exception) -> str:
    if refused := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
        return (
            f"{path} cannot be read: it holds a {refused[1]}, and only tensors, numbers and texts are taken from a "
            "checkpoint, since other objects can run code. Write torch.save(model.state_dict(), path) instead."
        )
    reason = (str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines() or [""])[0].split(". ")[0]
    said = f"{type(error).__name__}: {reason}"
    return f"{path} cannot be read as a checkpoint ({said}). It may be truncated; leave it out or write it again."


def match_names(path: Path, stored: Mapping[str, Any], entries: Sequence[Entry]) -> list[str]:
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


def require_shapes(path: Path, stored: Mapping[str, Any], entries: Sequence[Entry], names: Sequence[str]) -> None:
    """Refuse a checkpoint whose tensors have other shapes than those of the model.

    Raises:
        ValueError: some have.
    """
    parts = [stored[name] for name in names]
    shapes = [tuple(part.shape if isinstance(part, Tensor) else part.get_shape()) for part in parts]
    pairs = [(entry, shape) for entry, shape in zip(entries, shapes, strict=True) if entry.shape != shape]
    if pairs:
        told = _enumerate([f"{entry.name!r} is {shape} in it, {entry.shape} in `model`" for entry, shape in pairs])
        raise ValueError(f"{path} must hold tensors of the shapes of `model`: {told}; {REPAIR}")


def _explain_missing(path: Path, stored: Collection[str], entries: Sequence[Entry]) -> str:
    prefixes = sorted({""}.union(*(find_prefixes(stored, entry) for entry in entries)), key=_rank)
    most = max((_find_keys(stored, prefix, entries) for prefix in prefixes), key=len)
    missing = _enumerate([repr(entry.name) for entry in entries if entry.name not in most])
    there = _enumerate([repr(name) for name in stored]) or "no tensors"
    return f"{path} must hold every tensor of `model`: it lacks {missing}, and holds {there}; {REPAIR}"


def _enumerate(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _find_keys(stored: Collection[str], prefix: str, entries: Sequence[Entry]) -> dict[str, str]:
    """By first name, under which of its names, tied ones included, a tensor is there."""
    return {e.name: prefix + name for e in entries for name in reversed(e.names) if prefix + name in stored}


def find_prefixes(stored: Collection[str], entry: Entry) -> set[str]:
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
