"""The file format of `Run.save`: arrays and JSON metadata in safetensors, without pickle."""

import json
import math
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from loss_viz._files import atomic_write
from loss_viz._validation import check_array, check_path, first_line
from loss_viz.runs.checkpoint_file import check_header_size
from loss_viz.runs.weights import WeightRows, row_blocks
from loss_viz.tasks.networks import ACTIVATIONS, build_mlp
from loss_viz.tasks.regression import Task

FORMAT, VERSION = "loss_viz run", 1

# Others in a file are ignored.
ARRAYS = ("weights", "loss", "step", "buffers", "task.x", "task.y")
STATE = "optimizer_state."  # before the names of norms
KEY = "loss_viz"
DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64"}  # as safetensors calls them


Parameters = list[tuple[str, tuple[int, ...]]]  # names and shapes, in order


def rebuild_model(fields: Mapping[str, Any], parameters: Parameters) -> nn.Module | None:
    """Build the network of a run of `train` from `read_run_file`; return None for any other network."""
    task, n_params = fields["task"], fields["weights"].shape[1]
    depth, activation = len(parameters) // 2 - 1, str(fields["settings"].get("activation"))
    width = parameters[0][1][0] if parameters and parameters[0][1] else 0
    # The sizes are checked first: a small file must not be able to allocate any amount of memory.
    if task is None or activation not in ACTIVATIONS or not 0 < depth < n_params:
        return None
    if parameters != _list_parameters(width, depth) or sum(math.prod(shape) for _, shape in parameters) != n_params:
        return None
    return build_mlp(width=width, depth=depth, activation=activation, dtype=task.x.dtype, seed=0)


def _list_parameters(width: Any, depth: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return names and shapes of the parameters of an MLP, in order."""
    sizes = [1, *[width] * depth, 1]
    layers = [(f"{2 * i}", n_in, n_out) for i, (n_in, n_out) in enumerate(pairwise(sizes))]
    return [part for i, n_in, n_out in layers for part in ((f"{i}.weight", (n_out, n_in)), (f"{i}.bias", (n_out,)))]


def write_archive(path: str | os.PathLike[str], arrays: Mapping[str, WeightRows], metadata: Mapping[str, Any]) -> None:
    """Write arrays and metadata atomically, a block of rows at a time.

    safetensors itself writes only what is in memory as a whole. Its format is a header of JSON, preceded by its length
    in 8 bytes, and then the values of all tensors (https://huggingface.co/docs/safetensors).

    Args:
        path: file to write; an existing one is replaced.
        arrays: arrays of float32, float64 or int64 by name; those on disk are read block by block.
        metadata: values that JSON can represent.

    Raises:
        TypeError: if JSON cannot represent the metadata.
        OSError: if the folder does not exist or the disk is full.
    """
    try:
        about = json.dumps({"format": FORMAT, "version": VERSION, **metadata})
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"`settings` must be strings, numbers, lists and dicts of them; {error}. Leave out everything else."
        ) from error
    header: dict[str, Any] = {"__metadata__": {KEY: about}}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))  # so that all values are aligned
    end = 0
    for name, array in arrays.items():
        start, end = end, end + math.prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": DTYPES[str(array.dtype)], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(Path(path)) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for rows in row_blocks((array.shape[0], math.prod(array.shape[1:]))):
                file.write(np.ascontiguousarray(array[rows]).astype(array.dtype.newbyteorder("<"), copy=False).data)


def read_run_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Parameters]:
    """Read a file that `Run.save` wrote: the attributes of the run without its objective, and the parameters.

    Raises:
        TypeError: if `path` is not a path.
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, of another kind or of a later version.
    """
    arrays, about = _read_archive(path)
    try:
        fields = {name: arrays[name] for name in ("weights", "loss", "step")}
        fields["weights"] = check_array("weights", fields["weights"], ("n_steps", "n_params"), advice="")
        parameters = [(str(name), tuple(shape)) for name, shape in about["parameters"]]
        task = None if about["task"] is None else _read_task(arrays, str(about["task"]))
        texts = {name: str(about[name]) for name in ("note", "name")}
        return fields | texts | {
            "buffers": arrays.get("buffers"),
            "task": task,
            "settings": dict(about["settings"]),
            # Files before version 0.2 hold the floating-point buffers, without their names.
            "buffer_names": about.get("buffers"),
            "optimizer_state": {name.removeprefix(STATE): arrays[name] for name in arrays if name.startswith(STATE)},
        }, parameters
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a complete run: {error} is missing or invalid. Write it again with run.save."
        ) from error


def _read_task(arrays: Mapping[str, np.ndarray], name: str) -> Task:
    return Task(name, *(torch.from_numpy(arrays[f"task.{axis}"]) for axis in "xy"))


def _read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    path = check_path("path", path, advice="Pass the path given to run.save.")
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names that are too long
        raise FileNotFoundError(f"There is no file {path}. Pass the path given to run.save.")
    try:
        check_header_size(path)
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            names = set(file.keys()) if isinstance(about, dict) else ()
            wanted = [name for name in sorted(names) if name in ARRAYS or name.startswith(STATE)]
            arrays = {name: file.get_tensor(name).numpy() for name in wanted}
    except (SafetensorError, ValueError, TypeError, RecursionError, RuntimeError, OSError, MemoryError) as error:
        raise ValueError(
            f"{path} cannot be read as a run: {first_line(error)}. It is truncated or of another kind; write it again "
            "with run.save, or open checkpoints with Run.from_checkpoints."
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds tensors, but no run. "
            "Open checkpoints of a model with Run.from_checkpoints(model, loss_fn, paths)."
        )
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {str(about.get('version'))[:20]} of the format, this is version {VERSION}. "
            "Install the version of loss_viz that wrote it, or a later one."
        )
    return arrays, about
