"""Where a picture comes from: the settings in any file that was exported, and the landscape made again from them."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .bundle import Runs
from .describing import FORMAT, TRAINED_WITH, VERSION
from .landscapes import Landscape
from .landscaping import landscape
from .training import train
from .trajectory import Run

START = f'{{"format": "{FORMAT}"'.encode()
BLOCK = 2**20
MOST = 2**24  # bytes of settings; what takes more is none of ours
TRAIN = {*TRAINED_WITH, "steps", "n_points", "every", "dtype"}
VIEW = {"k", "sigma", "resolution", "plane", "n_anchors", "seed"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
RTOL = 1e-3  # two machines differ by rounding, two runs by far more


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file that was exported: a GIF, MP4, PNG, CSV or NetCDF, or any other that holds their JSON.

    Returns:
        What `Landscape.settings` was, and for a picture `"export"`, the function that wrote it, with `"view"`, its
        arguments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no settings, or those of a later version.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "settings.json"
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> _ = path.write_text(land.to_json(), encoding="utf-8")
        >>> read_settings(path) == land.settings
        True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Pass the path of a picture or a table of loss_viz.")
    try:
        settings, _ = json.JSONDecoder().raw_decode(_read_from_start(path).decode("latin-1"))
        told = settings.get("version")
    except (ValueError, RecursionError):
        settings, told = {}, VERSION
    if told != VERSION:
        raise ValueError(
            f"{path} holds settings of version {str(told)[:20]}, this is version {VERSION}. Install the loss_viz that "
            "wrote it, or a later one."
        )
    if not (isinstance(settings.get("runs"), list) and isinstance(settings.get("landscape"), dict)):
        raise ValueError(
            f"{path} holds no settings of loss_viz, or only a part of them. Pass a file as it was exported: a "
            "conversion to another format loses them."
        )
    return settings


def reproduce(
    settings: str | os.PathLike[str] | Mapping[str, Any], *, runs: Runs | None = None, progress: bool = True
) -> Landscape:
    """Make the landscape of an exported file again: train what was trained, and draw the same planes.

    Args:
        settings: a file that was exported, or what `read_settings` says of it.
        runs: the runs that it was of, for those that `train` cannot make again: runs of your own, as `load_run` opens
            them.
        progress: show progress bars.

    Returns:
        The landscape. Where the runs come out otherwise, as after an update of PyTorch or on another machine they
        may, a warning says so.

    Raises:
        ValueError: a run that `train` cannot make, or no settings in the file.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> again = reproduce(land.settings, progress=False)
        >>> bool((again.loss == land.loss).all())
        True
    """
    told = settings if isinstance(settings, Mapping) else read_settings(settings)
    _require_whole(told)
    if runs is None:
        made = [_train_again(run, progress) for run in told["runs"]]
        names = [run["name"] for run in told["runs"]]
        runs = dict(zip(names, made, strict=True)) if any(names) else made
    view = told["landscape"]
    n_x, n_y = view["resolution"]
    again = landscape(runs, **view | {"resolution": (n_x, n_y)}, progress=progress)
    _compare(again, told)
    return again


def _train_again(told: Mapping[str, Any], progress: bool) -> Run:
    if told["train"] is None:
        name = told["name"] or told["task"] or "of this file"
        raise ValueError(
            f"The run {name!r} is none that `train` can make again from settings: its model, function or optimizer "
            "was code. Pass it, as in reproduce(path, runs=load_run(...))."
        )
    return train(**told["train"] | {"dtype": DTYPES[told["train"]["dtype"]]}, progress=progress)


def _require_whole(told: Mapping[str, Any]) -> None:
    """Refuse settings that lack what is needed to draw from them; the values are looked at where they are used."""
    try:
        whole = set(told["landscape"]) == VIEW and np.shape(told["landscape"]["resolution"]) == (2,)
        whole &= bool(told["runs"]) and isinstance(told["complete"], bool) and isinstance(told["torch"], str)
        for run in told["runs"]:
            given = run["train"]
            whole &= given is None or (set(given) == TRAIN and given["dtype"] in DTYPES)
            whole &= all(isinstance(run[name], str | None) for name in ("name", "task"))
            whole &= isinstance(run["n_rows"], int) and np.shape(run["loss"]) == (2,)
            whole &= np.asarray(run["loss"]).dtype.kind in "if"
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            "`settings` must be those of a landscape, and whole: some are missing or of another kind. Pass "
            "`Landscape.settings`, or the path of a file as it was exported."
        )


def _compare(again: Landscape, told: Mapping[str, Any]) -> None:
    for run, was in zip(again.settings["runs"], told["runs"], strict=True):
        if run["n_rows"] != was["n_rows"] or not np.allclose(run["loss"], was["loss"], rtol=RTOL):
            warnings.warn(
                f"The run came out otherwise: loss {run['loss'][0]:.4g} to {run['loss'][1]:.4g} in {run['n_rows']} "
                f"rows, where it was {was['loss'][0]:.4g} to {was['loss'][1]:.4g} in {was['n_rows']}. It was made with "
                f"torch {told['torch']}, here is {torch.__version__}.",
                RuntimeWarning,
                stacklevel=3,
            )
    if not told["complete"]:
        warnings.warn(
            "The landscape of this file was interrupted, and on fewer points than this one.",
            RuntimeWarning,
            stacklevel=3,
        )


def _read_from_start(path: Path) -> bytes:
    """What stands in a file from its settings on, or nothing; only a block of it is ever in memory beside them."""
    window, end = b"", 0
    with path.open("rb") as file:
        is_gif = file.read(4) == b"GIF8"
        file.seek(0)
        while block := file.read(BLOCK):
            window, end = window[-len(START) :] + block, end + len(block)
            if (at := window.find(START)) >= 0:
                file.seek(max(end - len(window) + at - is_gif, 0))
                return _join_blocks(file.read(MOST)) if is_gif else file.read(MOST)
    return b""


def _join_blocks(data: bytes) -> bytes:
    """The comment of a GIF; it is stored in blocks, each after its length."""
    at, parts = 0, []
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(parts)
