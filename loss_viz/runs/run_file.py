"""One self-describing file: named arrays and plain words about them, in safetensors. No pickle anywhere."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from loss_viz._validation import check_path, first_line
from loss_viz.runs.checkpoint_file import check_header_size
from loss_viz.runs.checkpoints import write_snapshot

FORMAT, VERSION = "loss_viz run", 1

ARRAYS = ("weights", "loss", "step", "buffers", "task.x", "task.y")  # what else is in a file is left there

KEY = "loss_viz"


def write_archive(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays and facts, in whole or not at all.

    Args:
        path: of the file; one that is there is replaced when the new one is complete.
        arrays: by name.
        metadata: anything that JSON can hold.

    Raises:
        TypeError: facts that JSON cannot hold.
        OSError: the folder is missing, or the disk is full.
    """
    try:
        about = json.dumps({"format": FORMAT, "version": VERSION, **metadata})
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"`settings` must be texts, numbers, lists and dicts of them; {error}. Leave out what is something else."
        ) from error
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    write_snapshot(Path(path), tensors, {KEY: about})


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts of a file that `write_archive` wrote.

    Raises:
        TypeError: no path.
        FileNotFoundError: there is none.
        ValueError: the file is truncated, of another kind, or of a later version.
    """
    path = check_path("path", path, advice="Pass the one that was given to run.save.")
    if not os.path.isfile(path):  # noqa: PTH113 - which a name that is too long does not stop
        raise FileNotFoundError(f"There is no file {path}. Pass the path that was given to run.save.")
    try:
        check_header_size(path)
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            there = set(file.keys()) if isinstance(about, dict) else ()
            arrays = {name: file.get_tensor(name).numpy() for name in ARRAYS if name in there}
    except (SafetensorError, ValueError, TypeError, RecursionError, RuntimeError, OSError, MemoryError) as error:
        raise ValueError(
            f"{path} cannot be read as a run: {first_line(error)}. It is truncated or of another kind; write "
            "it anew with run.save, or open checkpoints with Run.from_checkpoints."
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds tensors, but no run. "
            "Open checkpoints of a model with Run.from_checkpoints(model, loss_fn, paths)."
        )
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} was written in version {str(about.get('version'))[:20]} of the format, this is version {VERSION}. "
            "Install the loss_viz that wrote it, or a later one."
        )
    return arrays, about
