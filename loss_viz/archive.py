"""One self-describing file: named arrays and plain words about them, in safetensors. No pickle anywhere."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .checkpoints import write_snapshot

FORMAT, VERSION = "loss_viz run", 1
KEY = "loss_viz"


def write_archive(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and facts, in whole or not at all.

    Args:
        path: of the file; one that is there is replaced when the new one is complete.
        arrays: by name.
        facts: anything that JSON can hold.

    Raises:
        OSError: the folder is missing, or the disk is full.
    """
    about = {"format": FORMAT, "version": VERSION, **facts}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    write_snapshot(Path(path), tensors, {KEY: json.dumps(about)})


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts of a file that `write_archive` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is truncated, of another kind, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Pass the path that was given to run.save.")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            arrays = {name: file.get_tensor(name).numpy() for name in (file.keys() if about else ())}
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a run: {str(error).splitlines()[0]}. It is truncated or of another kind; write "
            "it anew with run.save, or open checkpoints with Run.from_checkpoints."
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds tensors, but no run. "
            "Open checkpoints of a model with Run.from_checkpoints(model, loss_fn, paths)."
        )
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} was written in version {about.get('version')} of the format, this is version {VERSION}. "
            "Install the loss_viz that wrote it, or a later one."
        )
    return arrays, about
