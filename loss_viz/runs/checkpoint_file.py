"""Reading one checkpoint: its tensors by name, loaded on demand and without running code."""

import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Shaped
from torch import Tensor

from loss_viz.objective.layout import TensorSpec
from loss_viz.runs import unpickler
from loss_viz.runs.tensor_names import REPAIR, find_complete, join_some, unwrap_names
from loss_viz.runs.unpickler import MAX_STRUCTURE, Stub

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")

# Files with these endings, or none, are checkpoints if they begin as torch.save begins them.
OTHER_SUFFIXES = re.compile(r"(\.(tar|t7|pkl|pickle|model|\d+))?", re.IGNORECASE)
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before PyTorch 1.6

# Files with the weights in a folder, or with the index of their files: those of Hugging Face's Trainer, in the order in
# which transformers looks for them, those of PEFT, and that of torch.distributed.checkpoint.
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin"),
    ".metadata",
)
# An average of the weights beside the weights.
AVERAGE = re.compile(r"(?<![a-z])(ema|avg|averaged?|swa|shadow|teacher)(?![a-z])", re.IGNORECASE)

# Counters beside the weights. `meta` is where OpenMMLab keeps them.
COUNTERS = {"step": ("global_step", "step", "iteration", "iter", "iter_num"), "epoch": ("epoch",)}

MAX_INDEX = 2**25


def find_weights(path: Path) -> Path | None:
    """Return the file of a checkpoint with the weights, or with the index of their files; None if it is not one."""
    if path.is_dir():
        return next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    suffix = path.suffix.lower()
    known = suffix in SUFFIXES or (OTHER_SUFFIXES.fullmatch(suffix) and _is_from_torch(path))
    return path if known and path.is_file() else None


def _is_from_torch(path: Path) -> bool:
    """Return whether a file begins as `torch.save` begins it."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(1024)
            return start.startswith(LEGACY_START) or (start.startswith(b"PK\x03\x04") and b"/data.pkl" in start)
    return False


@contextmanager
def open_checkpoint(path: Path, key: str = "") -> Iterator[Mapping[str, Any]]:
    """Yield the tensors of a checkpoint by name; where possible they stay in the file until they are sliced.

    Args:
        path: checkpoint.
        key: yield only those in the dictionary of this dotted name.

    Raises:
        ValueError: if the checkpoint cannot be read, or holds nothing under `key`.
    """
    stored: dict[str, Any] = {}
    file = path
    with ExitStack() as stack:
        try:
            for file in _list_files(path):
                stored.update(_get_reader(file)(_check_kind(file), stack))
        except Exception as error:  # a broken file may fail in any way
            raise ValueError(explain_failure(file, error)) from error
        plain = unwrap_names(stored)
        chosen = {
            plain[name]: part
            for name, part in stored.items()
            if not key or name.startswith(f"{key}.") or plain[name].startswith(f"{key}.")
        }
        if stored and not chosen:
            present = join_some(sorted({repr(name.rpartition(".")[0]) for name in stored if "." in name})) or "none"
            raise ValueError(
                f"{path} must hold tensors under `key`, {key!r}; it does under {present}. Pass one of these, "
                "or leave it out."
            )
        yield chosen


def read_counters(path: Path) -> dict[str, int]:
    """Return the step and the epoch that are stored in a checkpoint beside the weights, as far as there are any."""
    try:
        file = find_weights(path)
        if file is None:
            return {}
        about = file.stat()
        return dict(_read_counters(file, about.st_mtime_ns, about.st_size))
    except Exception:  # a broken file is reported where its weights are read
        return {}


@lru_cache(maxsize=2**14)  # a folder that grows is read again and again
def _read_counters(file: Path, time: int, size: int) -> dict[str, int]:
    values = _read_values(_check_kind(file))
    places = [place for place in (values, values.get("meta")) if isinstance(place, Mapping)]
    found = {
        kind: [place[name] for name in names for place in places if type(place.get(name)) is int]
        for kind, names in COUNTERS.items()
    }
    return {kind: numbers[0] for kind, numbers in found.items() if numbers}


def _read_values(file: Path) -> Mapping[str, Any]:
    value = _load_torch(file) if _get_reader(file) is _read_torch else {}
    return value if isinstance(value, Mapping) else {}


def _check_kind(path: Path) -> Path:
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would block
        raise ValueError("it is a pipe or a device")
    return path


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


def _read_safetensors(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    check_header_size(path)
    file = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    # A zero-dimensional tensor cannot be sliced.
    return [(name, part if part.get_shape() else file.get_tensor(name)) for name, part in parts.items()]


def _read_distributed(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    from loss_viz.runs.distributed_checkpoint import read_parts  # PyTorch may be built without it

    return read_parts(path.parent)


def _read_torch(path: Path, stack: ExitStack) -> Iterable[tuple[str, Any]]:
    value = _load_torch(path)
    parts = list(_flatten(value, set()))
    stubs = [part for _, part in parts if isinstance(part, Stub)]
    if stubs and len(stubs) == len(parts):
        raise ValueError(f"GLOBAL {stubs[0].name}")
    return parts


READERS = {".safetensors": _read_safetensors, ".metadata": _read_distributed}  # of files other than those of torch.save


def _get_reader(file: Path) -> Callable[[Path, ExitStack], Iterable[tuple[str, Any]]]:
    return READERS.get((file.suffix or file.name).lower(), _read_torch)


def _load_torch(path: Path) -> Any:
    """Return what `torch.save` wrote, with stubs in place of all objects that are not tensors or plain values."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_zip(path)
    elif _is_tar(path):
        raise ValueError("it is a tar, as PyTorch before 0.1.10 wrote it")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*TorchScript")
        # Safe because the unpickler is ours: PyTorch's own refuses all that is not a tensor or a plain value.
        return torch.load(str(path), map_location="cpu", weights_only=False, pickle_module=unpickler, mmap=zipped)


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


def _is_tar(path: Path) -> bool:
    """Return whether `torch.load` would unpack a file."""
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def _flatten(value: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor | Stub]]:
    """Yield the tensors and stubs in nested dictionaries by dotted name, visiting each dictionary once."""
    if isinstance(value, Tensor):
        yield prefix[:-1], value.detach()
    elif isinstance(value, Stub) and not value:
        yield prefix[:-1], value
    elif isinstance(value, Mapping) and id(value) not in seen:
        seen.add(id(value))
        for name, part in value.items():
            yield from _flatten(part, seen, f"{prefix}{name}.")


def explain_failure(path: Path, error: BaseException) -> str:
    """Return a sentence that says why a checkpoint cannot be read, and how to repair it."""
    if refused := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
        return (
            f"{path} cannot be read: it holds a {refused[1]}, and only tensors and plain values are read from a "
            "checkpoint, because other objects can run code. Write torch.save(model.state_dict(), path) instead."
        )
    reason = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    cause = f"{type(error).__name__}: {reason}"
    return f"{path} cannot be read as a checkpoint ({cause}). It may be truncated; leave it out or write it again."


def choose_key(path: Path, entries: Sequence[TensorSpec], key: str = "") -> str:
    """Return the dotted name of the dictionary to read: `key`, or the weights themselves if their average is there too.

    Warns:
        UserWarning: if there is a choice.
    """
    with open_checkpoint(path, key) as stored:
        names = [prefix[:-1] for prefix in find_complete(stored, entries)]
    plain = [name for name in names if not AVERAGE.search(name)]
    if len(plain) != 1 or len(names) == 1:
        return key
    others = join_some([repr(name) for name in names if name not in plain])
    warnings.warn(
        f"{path} holds `model` twice: the weights of {plain[0]!r} are shown, not those of {others}. Pass "
        f"key={plain[0]!r}, or the other, to choose.",
        stacklevel=3,
    )
    return plain[0]


def check_shapes(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Check that the tensors of a checkpoint are real, strided and of the shapes of the model.

    Raises:
        ValueError: if some are not.
    """
    parts = [stored[name] for name in names]
    for entry, part in zip(entries, parts, strict=True):
        if isinstance(part, Stub):
            raise ValueError(f"{path} must hold plain numbers: {entry.name!r} is a {part.name} in it; {REPAIR}")
    shapes = [tuple(part.shape if isinstance(part, Tensor) else part.get_shape()) for part in parts]
    # Complex numbers may be written as pairs of real ones.
    entries = [
        TensorSpec(entry.names, shape) if entry.kind == "complex" and shape == (*entry.shape, 2) else entry
        for entry, shape in zip(entries, shapes, strict=True)
    ]
    for entry, part in zip(entries, parts, strict=True):
        if kind := _find_fault(part, entry.kind):
            what = {"real": "real numbers", "complex": "complex numbers", "nominal": "whole numbers or flags"}
            raise ValueError(f"{path} must hold plain {what[entry.kind]}: {entry.name!r} is {kind} in it; {REPAIR}")
    pairs = [(entry, shape) for entry, shape in zip(entries, shapes, strict=True) if entry.shape != shape]
    if pairs:
        where = join_some([f"{entry.name!r} is {shape} in it, {entry.shape} in `model`" for entry, shape in pairs])
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


def read_flat(part: Any, entry: TensorSpec, start: int, stop: int) -> Shaped[Tensor, " m"]:
    """Return values `start` to `stop` of a flattened tensor, reading only the rows of the file that contain them."""
    if entry.kind == "complex":
        whole = part if isinstance(part, Tensor) else part[:]
        return (torch.view_as_real(whole) if whole.is_complex() else whole).reshape(-1)[start:stop]
    width = torch.Size(entry.shape[1:]).numel()
    first = start // width
    rows = part[first : -(-stop // width)] if entry.shape else part
    return rows.reshape(-1)[start - first * width : stop - first * width]
