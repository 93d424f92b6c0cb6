import argparse
import collections
import datetime
import functools
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from loss_viz.objective.layout import float_buffers, parameter_layout
from loss_viz.runs.checkpoints import Checkpoints, find_checkpoints, write_snapshot
from loss_viz.runs.run import Run


class Net(nn.Module):
    """A model with tensors of four, one and zero axes, an empty one, and a tied one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.conv = nn.Conv2d(3, 4, (2, 5))
        self.none = nn.Parameter(torch.empty(0, 3))
        self.embed = nn.Embedding(6, 7)
        self.head = nn.Linear(7, 6)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(5)


def build(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
    return model


def flatten(model):
    return np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()])


def untied(model, lost="head.weight"):
    return {name: tensor for name, tensor in model.state_dict().items() if name != lost}


def write_shards(folder, state, save, single):
    """Write two shards and an index, as transformers does."""
    folder.mkdir()
    stem, suffix = single.split(".")
    names = sorted(state)
    parts = {f"{stem}-00001-of-00002.{suffix}": names[:4], f"{stem}-00002-of-00002.{suffix}": names[4:]}
    for file, held in parts.items():
        save({name: state[name] for name in held}, folder / file)
    where = {name: file for file, held in parts.items() for name in held}
    (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write(kind, model, folder):
    state, path = model.state_dict(), folder / kind
    if kind == "step_1.safetensors":
        save_file(untied(model), path)
    elif kind == "other_alias_1.safetensors":
        save_file(untied(model, "embed.weight"), path)
    elif kind == "old_1.pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "parameters_1.pt":
        torch.save(dict(model.named_parameters()), path)
    elif kind == "epoch=0-step=1.ckpt":
        states = {"state_dict": {f"model.{name}": t for name, t in state.items()}, "optimizer_states": [{"lr": 0.1}]}
        torch.save({"epoch": 0, "global_step": 1, **states}, path)
    elif kind == "compiled_1.bin":
        torch.save({f"module._orig_mod.{name}": t for name, t in state.items()}, path)
    elif kind == "wrapped_1.pt":
        torch.save({"step": 1, "net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, path)
    elif kind == "model_1.pt":
        torch.save({"model_ema": build(9).state_dict(), "model": state}, path)
    elif kind == "checkpoint-1":
        path.mkdir()
        save_file(untied(model), path / "model.safetensors", metadata={"format": "pt"})
    elif kind == "checkpoint-2":
        write_shards(path, untied(model), save_file, "model.safetensors")
    elif kind == "checkpoint-3":
        path.mkdir()
        torch.save(state, path / "pytorch_model.bin")
    else:
        write_shards(path, state, torch.save, "pytorch_model.bin")
    return path


KINDS = [
    "step_1.safetensors",
    "other_alias_1.safetensors",
    "old_1.pth",
    "parameters_1.pt",
    "epoch=0-step=1.ckpt",
    "compiled_1.bin",
    "wrapped_1.pt",
    "model_1.pt",
    "checkpoint-1",
    "checkpoint-2",
    "checkpoint-3",
    "checkpoint-4",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_holds_the_weights_of_the_model(kind, tmp_path):
    model = build()
    path = write(kind, model, tmp_path)
    assert find_checkpoints(path) == ([path], [int(kind[-1]) if path.is_dir() else 1])
    rows = Checkpoints([path], parameter_layout(model))
    expected = flatten(model)
    np.testing.assert_array_equal(rows[0], expected)
    assert rows.shape == (1, len(expected)) == (1, 1 + 120 + 4 + 0 + 42 + 6 + 5 + 5)
    for start, stop in [(0, 1), (0, 2), (1, 121), (37, 38), (50, 123), (121, 140), (130, 172), (7, -3), (-1, None)]:
        np.testing.assert_array_equal(rows[0, start:stop], expected[start:stop])


@pytest.mark.parametrize("kind", ["step_1.safetensors", "epoch=0-step=1.ckpt", "checkpoint-2"])
def test_every_range_of_columns(kind, tmp_path):
    model = build()
    model.embed = model.head = model.norm = None
    expected = flatten(model)
    rows = Checkpoints([write(kind, model, tmp_path)], parameter_layout(model))
    for start in range(0, len(expected), 3):
        for stop in range(start, len(expected) + 2, 7):
            np.testing.assert_array_equal(rows[0, start:stop], expected[start:stop])


def test_indexes_as_an_array_does(tmp_path):
    models = [build(seed) for seed in range(5)]
    for step, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    paths, _ = find_checkpoints(tmp_path)
    rows, array = Checkpoints(paths, parameter_layout(models[0])), np.stack([flatten(model) for model in models])
    assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (5, array.shape, array.dtype, 0)
    for index in (
        3,
        -1,
        np.int64(2),
        slice(1, 4),
        slice(None, None, -2),
        [4, 0, 0],
        np.array([-1, 2]),
        array[:, 0] > 0,
    ):
        np.testing.assert_array_equal(rows[index], array[index])
        np.testing.assert_array_equal(rows[index, 30:131], array[index, 30:131])
        assert rows[index].shape == array[index].shape
    assert rows[2:2].shape == (0, array.shape[1])
    assert rows[:, 9:3].shape == (5, 0)
    np.testing.assert_array_equal(np.asarray(rows), array)
    np.testing.assert_array_equal(np.stack(list(rows)), array)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    with pytest.raises(IndexError):
        rows[5]


@pytest.mark.parametrize("columns", [slice(0, 9, 2), slice(None, None, -1), 3])
def test_columns_must_be_one_range(columns, tmp_path):
    rows = Checkpoints([write("checkpoint-1", build(), tmp_path)], parameter_layout(build()))
    with pytest.raises(ValueError, match=r"Columns must be one slice without a step, got .* Index the array"):
        rows[0, columns]


def test_arrays_are_always_copies(tmp_path):
    rows = Checkpoints([write("checkpoint-1", build(), tmp_path)], parameter_layout(build()))
    with pytest.raises(ValueError, match="always a copy"):
        rows.__array__(copy=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_values_have_the_dtype_of_the_layout(dtype, suffix, tmp_path):
    model = build().to(dtype)
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(untied(model), path)
    layout = parameter_layout(build())
    expected = layout.join(dict(model.named_parameters())).numpy()
    row = Checkpoints([path], layout)[0]
    np.testing.assert_array_equal(row, expected)
    assert row.dtype == np.float32
    assert Checkpoints([path], parameter_layout(build().double()))[0].dtype == np.float64


def test_buffers_and_frozen_parameters_are_rows_too(tmp_path):
    model = build()
    model.norm.running_mean.copy_(torch.arange(5.0))
    for kind in ("checkpoint-2", "epoch=0-step=1.ckpt"):
        path = write(kind, model, tmp_path)
        layout = float_buffers(model)
        assert Checkpoints([path], layout)[0].tolist() == [0, 1, 2, 3, 4, 1, 1, 1, 1, 1]
    model.conv.requires_grad_(False)
    np.testing.assert_array_equal(Checkpoints([path], parameter_layout(model))[0, 1:43], flatten(model)[125:167])


def test_an_empty_layout_has_empty_rows(tmp_path):
    rows = Checkpoints([write("checkpoint-1", build(), tmp_path)], float_buffers(nn.Linear(1, 1)))
    assert rows[:].shape == (1, 0)


def test_no_file_stays_mapped(tmp_path):
    paths = [write(kind, build(), tmp_path) for kind in KINDS]
    rows = Checkpoints(paths, parameter_layout(build()))
    rows[:]
    assert not any(isinstance(value, np.ndarray | torch.Tensor) for value in vars(rows).values())
    if sys.platform == "linux":
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        assert not any(str(tmp_path) in str(Path(file).resolve()) for file in Path("/proc/self/fd").iterdir())


def test_rows_are_read_again_each_time(tmp_path):
    path = tmp_path / "a.safetensors"
    rows = Checkpoints([path], parameter_layout(build()))
    for seed in range(2):
        write_snapshot(path, dict(build(seed).named_parameters()), {})
        np.testing.assert_array_equal(rows[0], flatten(build(seed)))


# Finding files, their order and their steps.


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names_and_steps(paths, *options, **more):
    found, steps = find_checkpoints(paths, *options, **more)
    assert steps.dtype == np.int64
    return [path.name for path in found], steps.tolist()


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["w2.pt", "w10.pt", "w100.pt"], [2, 10, 100]),
        (["step-00000009.safetensors", "step-00000010.safetensors"], [9, 10]),
        (["step_0.bin", "step_12.bin"], [0, 12]),
        (["epoch=9-step=400.ckpt", "epoch=10-step=440.ckpt"], [400, 440]),
        (["epoch=0-step=10.ckpt", "epoch=0-step=20-v1.ckpt"], [10, 20]),
        (["epoch=3-val_loss=0.25.ckpt", "epoch=12-val_loss=0.19.ckpt"], [3, 12]),
        (["Step=7.pth", "Step=30.pth"], [7, 30]),
        (["ckpt.5.pt", "ckpt.15.pt"], [5, 15]),
        (["b-step1.pt", "a-step2.pt"], [1, 2]),
        (["1-of-9.pt", "2-of-9.pt"], [1, 2]),
        (["lr=0.1_seed=3_w5.pt", "lr=0.1_seed=3_w40.pt"], [5, 40]),
        (["w1_acc0.5.pt", "w2_acc1.pt"], [1, 2]),
        (["iter_100.pth", "iter_900.pth"], [100, 900]),
        (["0/model.pt", "20/model.pt"], [0, 20]),
        (["checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors"], [500, 1000]),
        (["step_5/state/a.pt", "step_10/state/a.pt"], [5, 10]),
        (["init.pt", "epoch5.pt", "epoch10.pt"], [0, 5, 10]),
        (["lr=[0.1]/w3.pt", "lr=[0.1]/w20.pt"], [3, 20]),
        ([f"w{10**20}.pt", f"w{10**21}.pt"], [0, 1]),
        (["model_12.pt"], [12]),
    ],
)
def test_order_and_steps_by_the_names(names, steps, tmp_path):
    touch(tmp_path, *reversed(names))
    pattern = tmp_path.joinpath(*["*"] * len(Path(names[0]).parts))
    listed = [tmp_path / name for name in reversed(names)]
    for place in (pattern, str(pattern), listed, *[Path(tmp_path, names[0]).parent] * (names[0].count("/") == 1)):
        if place != tmp_path and isinstance(place, Path) and place != pattern:
            continue
        found, numbers = find_checkpoints(place)
        assert [str(path.relative_to(tmp_path)) for path in found] == [str(Path(name)) for name in names]
        assert (numbers.tolist(), numbers.dtype) == (steps, np.int64)


UNCERTAIN = [
    ["a.pt", "b.pt", "c.PT"],
    ["a.pt", "b7.pt"],
    ["epoch=0-step=10-v1.ckpt", "epoch=0-step=10.ckpt"],
    ["seed_1.pt", "seed_2.pt"],
    ["fold1_epoch5.pt", "fold2_epoch5.pt"],
    ["e1_b10.pt", "e2_b5.pt"],
    ["2024-05-31.pt", "2024-06-01.pt"],
    ["best.pt", "last.pt"],
    ["bestmodel.pt", "w1.pt", "w2.pt"],
]


@pytest.mark.parametrize("names", UNCERTAIN)
def test_an_uncertain_order_is_said_to_be(names, tmp_path):
    touch(tmp_path, *names)
    with pytest.warns(
        UserWarning, match=rf"order of these .* uncertain.*{names[0]}.*by name.*steps=\[0, 100.*order="
    ) as said:
        assert names_and_steps(tmp_path) == (names, [*range(len(names))])
    assert len(said) == 1
    paths = [tmp_path / name for name in reversed(names)]
    assert names_and_steps(paths, "given") == (names[::-1], [*range(len(names))])
    assert names_and_steps(paths, steps=range(len(names))) == (names[::-1], [*range(len(names))])
    assert names_and_steps(paths, steps=range(len(names), 0, -1)) == (names, [*range(1, len(names) + 1)])
    for i, path in enumerate(paths):
        os.utime(path, (i, i))
    assert names_and_steps(tmp_path, "modified") == (names[::-1], [*range(len(names))])


def test_numbers_that_disagree_are_said_to(tmp_path):
    touch(tmp_path, "epoch=1-step=9.pt", "epoch=2-step=4.pt")
    with pytest.warns(UserWarning, match=r"tell different orders: epoch=1.*steps are 9, 4. Pass"):
        assert names_and_steps(tmp_path) == (["epoch=2-step=4.pt", "epoch=1-step=9.pt"], [4, 9])


@pytest.mark.parametrize(
    ("names", "counters", "steps"),
    [
        ("ab", [{"global_step": 7, "epoch": 0}, {"global_step": 3, "epoch": 0}], [7, 3]),
        ("ab", [{"epoch": 2}, {"epoch": 1}], [2, 1]),
        ("ab", [{"meta": {"epoch": 1, "iter": 50}}, {"meta": {"epoch": 2, "iter": 100}}], [50, 100]),
        (("w1", "w2"), [{"step": 10}, {"step": 20}], [10, 20]),
        (("step10", "step20"), [{"epoch": 1}, {"epoch": 2}], [10, 20]),
        (("w1", "w2"), [{"epoch": 5}, {"epoch": 5}], [1, 2]),
        (("w1", "w2"), [{"epoch": 5}, {}], [1, 2]),
        (("w1", "w2"), [{"step": -1}, {"step": 0}], [1, 2]),
        (("w1", "w2"), [{"epoch": True}, {"epoch": "9"}], [1, 2]),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_steps_stored_in_the_files(names, counters, steps, zipped, tmp_path):
    for name, one in zip(names, counters, strict=True):
        torch.save({"net": {}, **one}, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    found, numbers = find_checkpoints(tmp_path)
    assert dict(zip([path.stem for path in found], numbers.tolist(), strict=True)) == dict(
        zip(names, steps, strict=True)
    )
    assert numbers.tolist() == sorted(steps)


@pytest.mark.parametrize(
    "numbered", ["epoch{}.pt", "epoch_{}.pth", "model_{}.pth.tar", "{}.pt", "checkpoint-{}/model.safetensors"]
)
@pytest.mark.parametrize(
    "copies",
    [["best"], ["last"], ["latest"], ["model_best", "model_final"], ["best_acc_epoch_4", "LAST"], ["ema_0.9999_010"]],
)
def test_copies_are_left_out_and_named(numbered, copies, tmp_path):
    kept, ending = [numbered.format(i) for i in (2, 10)], numbered.partition("}")[2]
    touch(tmp_path, *kept, *[f"{name}{ending}" for name in copies])
    for name in kept:
        if numbered.endswith("tar"):
            torch.save({}, tmp_path / name)
    for name in copies * numbered.endswith("tar"):
        torch.save({}, tmp_path / f"{name}{ending}")
    with pytest.warns(UserWarning, match=r"a copy or an average: .*Pass a list of paths") as said:
        names, steps = names_and_steps(tmp_path)
    assert (names, steps) == ([Path(name).parts[0] for name in kept], [2, 10])
    assert all(name in str(said[0].message) for name in copies)
    listed = [tmp_path / name for name in (*kept, f"{copies[0]}{ending}")]
    assert names_and_steps(listed, steps=[2, 10, 11])[1] == [2, 10, 11]


def test_the_start_comes_first(tmp_path):
    touch(tmp_path, "a.pt", "init.pt")
    assert names_and_steps(tmp_path) == (["init.pt", "a.pt"], [0, 1])
    touch(tmp_path, "b.pt")
    with pytest.warns(UserWarning, match="uncertain"):
        assert names_and_steps(tmp_path) == (["init.pt", "a.pt", "b.pt"], [0, 1, 2])


def test_another_start_is_left_out_and_named(tmp_path):
    touch(tmp_path, "init.pt", "w0.pt", "w5.pt")
    with pytest.warns(UserWarning, match=r"another one is of step 0: init\.pt"):
        assert names_and_steps(tmp_path) == (["w0.pt", "w5.pt"], [0, 5])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"order": "time"}, ValueError, "`order` must be one of step, modified, given"),
        ({"order": "modified"}, ValueError, "were written at the same time|no two files"),
        ({"steps": [-1, 2]}, ValueError, "`steps` must be a whole number"),
        ({"steps": [1, 1]}, ValueError, "2 different numbers, one for each path"),
        ({"steps": [1]}, ValueError, "2 different numbers"),
        ({"steps": [1, 2], "order": "given"}, ValueError, "already tells the order"),
    ],
)
def test_wrong_orders_and_steps_raise(options, error, text, tmp_path):
    touch(tmp_path, "w1.pt", "w2.pt")
    for path in tmp_path.iterdir():
        os.utime(path, (9, 9))
    with pytest.raises(error, match=text):
        find_checkpoints([tmp_path / "w1.pt", tmp_path / "w2.pt"], **options)
    if "steps" in options or options["order"] == "given":
        with pytest.raises(ValueError, match="only if `paths` is a list"):
            find_checkpoints(tmp_path, **options)


def test_a_list_is_sorted_by_steps_and_kept_where_there_are_none(tmp_path, recwarn):
    touch(tmp_path, "w2.pt", "w10.pt", "init.pt", "final.pt", "a.pt")
    assert names_and_steps([tmp_path / "w10.pt", str(tmp_path / "w2.pt")]) == (["w2.pt", "w10.pt"], [2, 10])
    assert names_and_steps([tmp_path / "final.pt", tmp_path / "a.pt"]) == (["final.pt", "a.pt"], [0, 1])
    os_path = os.path.join(tmp_path, "w2.pt")  # noqa: PTH118
    assert names_and_steps(os_path) == (["w2.pt"], [2])
    assert not recwarn.list
    listed = ["init.pt", "w10.pt", "w2.pt", "final.pt"]
    with pytest.warns(UserWarning, match="as in the list"):
        assert names_and_steps([tmp_path / name for name in listed]) == (listed, [0, 1, 2, 3])


@pytest.mark.parametrize("name", ["[0.1]", "lr=[0.1],n=[1-3]", "a[b"])
def test_brackets_in_the_name_of_a_folder_are_taken_as_they_are(name, tmp_path):
    touch(tmp_path, f"{name}/w1.pt", f"{name}/w2.pt", "0/w7.pt")
    for place in (tmp_path / name, tmp_path / name / "*.pt", tmp_path / "**" / name / "w[0-9].pt"):
        assert names_and_steps(place) == (["w1.pt", "w2.pt"], [1, 2])
    assert names_and_steps(tmp_path / name / "w[2-9].pt") == (["w2.pt"], [2])
    with pytest.raises(ValueError, match="must lead to checkpoints, none is in"):
        find_checkpoints(tmp_path / "w[0-9].pt")


def test_other_files_are_ignored(tmp_path):
    touch(tmp_path, "w1.pt", "w2.pt", ".w3.pt", ".w4.pt.17.tmp", "w5.pt.tmp", "optimizer.pt", "opt010.pt", "notes.txt")
    touch(tmp_path, "rng_state.pth", "rng_state_0.pth", "training_args.bin", "trainer_state.json", "plots/a.png")
    assert names_and_steps(tmp_path) == (["w1.pt", "w2.pt"], [1, 2])
    assert names_and_steps(tmp_path / "*") == (["w1.pt", "w2.pt"], [1, 2])


def test_lightning_s_copies_of_the_last_checkpoint_are_left_out(tmp_path):
    touch(tmp_path, "epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt", "last.ckpt", "last-v1.ckpt")
    with pytest.warns(UserWarning, match=r"average: last.*ckpt, last"):
        assert names_and_steps(tmp_path) == (["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"], [10, 20])
    touch(tmp_path / "alone", "last.ckpt")
    assert names_and_steps(tmp_path / "alone") == (["last.ckpt"], [0])


def test_folders_of_the_trainer(tmp_path):
    run = tmp_path / "run"
    touch(run, "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "checkpoint-1000/pytorch_model.bin")
    touch(run, "checkpoint-90/model.safetensors.index.json", "checkpoint-2000/trainer_state.json")
    expected = (["checkpoint-90", "checkpoint-500", "checkpoint-1000"], [90, 500, 1000])
    assert names_and_steps(run) == expected
    touch(run, "model.safetensors")
    touch(tmp_path / "accelerate", "step_10/model.safetensors", "step_5/model.safetensors", "model.safetensors")
    touch(tmp_path / "beside", "model.safetensors", "step_1.safetensors", "step_2.safetensors")
    for place, found in {
        run: expected,
        run / "*": expected,
        tmp_path / "accelerate": (["step_5", "step_10"], [5, 10]),
        tmp_path / "beside": (["step_1.safetensors", "step_2.safetensors"], [1, 2]),
    }.items():
        with pytest.warns(UserWarning, match=r"average: model\.safetensors"):
            assert names_and_steps(place) == found
    assert names_and_steps(tmp_path / "*" / "checkpoint-?00") == (["checkpoint-500"], [500])
    assert names_and_steps(run / "checkpoint-90") == (["checkpoint-90"], [90])
    touch(tmp_path / "final", "model.safetensors", "training_args.bin", "model-00001-of-00002.safetensors")
    assert names_and_steps(tmp_path / "final") == (["final"], [0])


def test_the_home_folder_and_relative_paths(tmp_path, monkeypatch):
    touch(tmp_path, "run/w1.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for place in ("~/run", "~/run/*.pt", "run", "run/*.pt", "**/*.pt", "run/w1.pt"):
        assert names_and_steps(place) == (["w1.pt"], [1])


@pytest.mark.parametrize("place", [".", "*.pt", []])
def test_nothing_found(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "notes.txt", "optimizer.pt")
    with pytest.raises(
        ValueError, match=r"`paths` must lead to checkpoints, none is in .*safetensors, \.pt,"
    ) as caught:
        find_checkpoints(place)
    assert str(place) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [("gone.pt", "does not exist"), ("notes.txt", "is not one"), ("plots", "is not one")],
)
def test_other_paths_raise(name, what, tmp_path):
    touch(tmp_path, "notes.txt", "w1.pt", "plots/a.png")
    for paths in ([tmp_path / "w1.pt", tmp_path / name], tmp_path / name):
        if name != "plots" or isinstance(paths, list):
            with pytest.raises(
                ValueError, match=rf"`paths` must be checkpoints, .*{name} {what}. Give files ending in"
            ):
                find_checkpoints(paths)


# Invalid files.


def refuse(path, layout, *parts):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Checkpoints([path], layout)[0, :1]
    for part in (str(path), *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_model_with_other_names_or_shapes_raises(suffix, tmp_path):
    path = tmp_path / f"step_1.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save({f"net.{name}": t for name, t in nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).state_dict().items()}, path)
    repair = "; build `model` as it was when this checkpoint was written"

    deeper = nn.Sequential(*[nn.Linear(3, 4) for _ in range(2)], *[nn.Linear(4, 4, bias=False) for _ in range(7)])
    text = refuse(path, parameter_layout(deeper), "must hold every tensor of `model`", "'2.weight', '3.weight'", repair)
    assert "'6.weight' and 2 more, and holds 'net.0.bias'" in text.replace("'net.0.weight', ", "")
    refuse(
        path,
        parameter_layout(nn.Linear(3, 4)),
        "once, it does under 'net.0.', 'net.1.'. Choose one, as in key='net.0', or build",
    )
    refuse(path, parameter_layout(nn.RNNCell(1, 1, bias=False)), "lacks 'weight_ih', 'weight_hh', and holds 'net.")

    wider = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    text = refuse(path, parameter_layout(wider), "'1.weight' is (2, 4) in it, (5, 4) in `model`", repair)
    assert "'1.bias' is (2,) in it, (5,) in `model`" in text
    assert "0.weight" not in text


def test_a_missing_first_layer_is_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {f"model.{i}.weight": torch.ones(2, 2) for i in (1, 2)}}, path)
    layout = parameter_layout(nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(3)]))
    assert "lacks '0.weight', and holds 'state_dict.model.1.weight', " in refuse(path, layout)


def test_two_models_in_one_file_raise_unless_one_has_a_usual_name(tmp_path):
    model, other = build(1), build(2)
    path = tmp_path / "a.pt"
    torch.save({"generator": model.state_dict(), "discriminator": other.state_dict()}, path)
    refuse(path, parameter_layout(model), "must hold `model` once", "'generator.'", "'discriminator.'")
    torch.save({"state_dict_ema": other.state_dict(), "state_dict": model.state_dict()}, path)
    np.testing.assert_array_equal(Checkpoints([path], parameter_layout(model))[0], flatten(model))
    torch.save({**{f"ema.{name}": t for name, t in other.state_dict().items()}, **model.state_dict()}, path)
    np.testing.assert_array_equal(Checkpoints([path], parameter_layout(model))[0], flatten(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_raises(kind, tmp_path):
    path = write(kind, build(), tmp_path)
    file = next(path.glob("*00002*"), None) or next(path.glob("*model*")) if path.is_dir() else path
    whole = file.read_bytes()
    for length in (0, 1, 4, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refuse(
            path,
            parameter_layout(build()),
            str(file),
            "cannot be read as a checkpoint (",
            "may be truncated",
            "leave it",
        )
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            Checkpoints([path], float_buffers(nn.BatchNorm1d(2)))[0]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt"])
@pytest.mark.parametrize("text", ["This is not a checkpoint.\n" * 40, "PK\x03\x04", "{}", "\x80\x02"])
def test_a_text_file_raises(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    refuse(path, parameter_layout(build()), "cannot be read as a checkpoint (")


def test_missing_files_raise(tmp_path):
    layout = parameter_layout(build())
    refuse(tmp_path / "gone.pt", layout, "FileNotFoundError")
    refuse(tmp_path / "gone.safetensors", layout, "FileNotFoundError")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", layout, "IsADirectoryError")
    sharded = write("checkpoint-2", build(), tmp_path)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refuse(sharded, layout, "FileNotFoundError", "model-00002-of-00002.safetensors")
    (sharded / "model.safetensors.index.json").write_text("{")
    refuse(sharded, layout, "JSONDecodeError")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/secret.safetensors"])
def test_an_index_cannot_leave_its_folder(name, tmp_path):
    path = write("checkpoint-2", build(), tmp_path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"scale": name}}))
    refuse(path, parameter_layout(build()), f"{path / 'secret.safetensors'} cannot be read")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo 1 > {self.target}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "protocol 2", "tar"])
def test_code_in_a_checkpoint_is_not_run(kind, tmp_path):
    path, target = tmp_path / "a.pt", tmp_path / "was_here"
    harm = {**build().state_dict(), "extra": Malicious(target)}
    if kind in ("zip", "legacy"):
        torch.save(harm, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name in ("storages", "tensors", "pickle"):
                data = pickle.dumps(Malicious(target), protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        path.write_bytes(pickle.dumps(Malicious(target), protocol=2 if kind == "protocol 2" else None))
    refuse(path, parameter_layout(build()))
    assert not target.exists()
    if kind != "pickle" and kind != "tar":
        refuse(path, parameter_layout(build()), f"holds a {os.system.__module__}.system", "can run code", "torch.save(")
        pickle.loads(pickle.dumps(Malicious(target)))
        assert target.exists()  # it would have worked


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_pickled_modules_and_torchscript_raise(tmp_path):
    model = nn.Linear(2, 2)
    torch.save(model, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", parameter_layout(model), "holds a torch.nn.modules.linear.Linear", "model.state_dict()")
    torch.jit.trace(model, torch.ones(1, 2)).save(str(tmp_path / "b.pt"))
    refuse(tmp_path / "b.pt", parameter_layout(model), "TorchScript")


# What else a file may hold.


class Custom(dict):
    pass


NESTED = nn.Linear(2, 2, bias=False)
BESIDE = {
    "Namespace": {"args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(path=Path("a")))},
    "NumPy scalar": {"best": np.float64(0.9), "n": np.int64(3), "flag": np.bool_(True)},
    "NumPy array": {"history": np.arange(3.0), "names": np.array(["a"]), "objects": np.array([None, {}], dtype=object)},
    "NumPy generator": {"rng": np.random.default_rng(0).bit_generator.state, "state": np.random.RandomState(0)},
    "path": {"root": Path("data")},
    "time": {"when": datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc)},
    "class": {"hyper_parameters": {"act": nn.ReLU, "function": torch.nn.functional.relu, "type": type}},
    "criterion": {"hyper_parameters": {"criterion": nn.SmoothL1Loss(), "loss": nn.CrossEntropyLoss(torch.ones(3))}},
    "model among others": {"config": {"net": NESTED}},
    "containers": {"meters": collections.defaultdict(list, a=[1]), "last": collections.deque([1, 2]), "set": {1}},
    "counter": {"count": collections.Counter("aab"), "frozen": frozenset([1]), "range": range(3), "slice": slice(3)},
    "subclass of dict": {"config": Custom(a=Custom(b=1))},
    "enumeration": {"kind": signal.SIGINT, "by": {signal.SIGINT: 1}},
    "partial and bytes": {"make": functools.partial(print, 1), "raw": b"ab", "complex": 1j},
    "exception": {
        "error": ValueError("a"),
        "device": torch.device("cpu"),
        "size": torch.Size([2]),
        "dtype": torch.half,
    },
    "sparse": {"s": torch.eye(2).to_sparse()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_things_beside_the_weights_are_not_built(what, zipped, tmp_path):
    model, path = build(), tmp_path / "w_1.pt"
    for protocol in (2, 4):
        torch.save(
            {"state_dict": model.state_dict(), "step": 7, **BESIDE[what]},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        np.testing.assert_array_equal(Checkpoints([path], parameter_layout(model))[0], flatten(model))
        assert find_checkpoints(path)[1].tolist() == [7]


def test_nothing_that_a_file_names_is_imported(tmp_path):
    (tmp_path / "unheard_of.py").write_text("raise SystemExit")
    program = f"""
import sys, types, torch
sys.path.insert(0, {str(tmp_path)!r})
module = types.ModuleType("unheard_of")
module.Thing = type("Thing", (), {{"__module__": "unheard_of"}})
sys.modules["unheard_of"] = module
torch.save({{"weight": torch.ones(1, 1), "extra": module.Thing()}}, {str(tmp_path / "w.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    layout = parameter_layout(nn.Linear(1, 1, bias=False))
    assert Checkpoints([tmp_path / "w.pt"], layout)[0].tolist() == [1]
    assert "unheard_of" not in sys.modules


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (np.ones((1, 1)), r"'weight' is a numpy\.\w*\.?multiarray\._reconstruct in it"),
        (torch.ones(1, 1).to_sparse(), r"'weight' is a torch\._utils\._rebuild_sparse_tensor in it"),
        (nn.Linear(1, 1), r"'weight' is a torch\.nn\.modules\.linear\.Linear in it"),
    ],
)
def test_weights_of_another_kind_are_named(weight, what, tmp_path):
    torch.save({"weight": weight, "other": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=what):
        Checkpoints([tmp_path / "w.pt"], parameter_layout(nn.Linear(1, 1, bias=False)))[0]


def test_the_numbers_of_a_zip_stay_in_the_file(tmp_path):
    torch.save({"a": torch.zeros(25_000_000), "weight": torch.ones(1, 1)}, tmp_path / "w.pt")
    program = f"""
from pathlib import Path
from loss_viz.runs.checkpoint_file import open_checkpoint
size = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with open_checkpoint(Path({str(tmp_path / "w.pt")!r})):  # warm up
    pass
before = size()
with open_checkpoint(Path({str(tmp_path / "w.pt")!r})) as stored:
    assert stored["weight"].item() == 1
    assert size() - before < 20_000_000, size() - before
"""
    if sys.platform == "linux":
        subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("suffix", [".pth.tar", ".tar", ".t7", ".pkl", ".model", "", ".25", ".PKL"])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_endings_are_known_by_their_content(suffix, zipped, tmp_path):
    model = build()
    for step in range(1, 3):
        path = tmp_path / f"ck_{step}{suffix}"
        torch.save({"state_dict": model.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    touch(tmp_path, f"ck_3{suffix}", "README", "LICENSE.txt")
    (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / f"other{suffix}", "w") as archive:
        archive.writestr("data.txt", "a")
    found, _ = find_checkpoints(tmp_path)
    assert [path.name for path in found] == [f"ck_{step}{suffix}" for step in range(1, 3)]
    np.testing.assert_array_equal(Checkpoints(found, parameter_layout(model))[1], flatten(model))


# Folders of torch.distributed.checkpoint.


def write_distributed(folder, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder))
    return folder


@pytest.mark.parametrize("prefix", ["", "model", "app.model"])
def test_distributed_checkpoints(prefix, tmp_path):
    for step in (5, 10):
        state = build(step).state_dict()
        for part in reversed(prefix.split(".") if prefix else []):
            state = {part: state}
        write_distributed(tmp_path / f"step-{step}", {**state, "counter": {"n": 3, "args": argparse.Namespace(lr=1)}})
    found, steps = find_checkpoints(tmp_path)
    assert ([path.name for path in found], steps.tolist()) == (["step-5", "step-10"], [5, 10])
    assert find_checkpoints(tmp_path / "step-10")[0] == [tmp_path / "step-10"]
    model = build(10)
    rows = Checkpoints(found, parameter_layout(model))
    np.testing.assert_array_equal(rows[1], flatten(model))
    np.testing.assert_array_equal(rows[0], flatten(build(5)))
    np.testing.assert_array_equal(rows[1, 30:130], flatten(model)[30:130])
    wider = nn.Sequential(nn.Linear(3, 4))
    refuse(found[0], parameter_layout(wider), "must hold every tensor of `model`: it lacks '0.weight'")


def test_distributed_checkpoints_of_another_shape_or_kind_raise(tmp_path):
    layout = parameter_layout(nn.Linear(2, 1, bias=False))
    refuse(write_distributed(tmp_path / "a", {"weight": torch.ones(1, 3)}), layout, "(1, 3) in it, (1, 2) in `model`")
    refuse(write_distributed(tmp_path / "b", {"weight": torch.ones(1, 2).long()}), layout, "is torch.int64 in it")
    broken = write_distributed(tmp_path / "d", {"weight": torch.ones(1, 2)})
    data = (broken / "__0_0.distcp").read_bytes()
    (broken / "__0_0.distcp").write_bytes(data[: len(data) // 2])
    refuse(broken, layout, "cannot be read as a checkpoint (", "may be truncated")
    about = pickle.loads((broken / ".metadata").read_bytes())
    about.state_dict_metadata["weight"].chunks = []
    (broken / ".metadata").write_bytes(pickle.dumps(about))
    refuse(broken, layout, "must name all pieces of a tensor once")
    whole = write_distributed(tmp_path / "c", {"weight": torch.ones(1, 2)})
    (whole / "__0_0.distcp").unlink()
    refuse(whole, layout, ".metadata cannot be read", "must name files beside it, '__0_0.distcp' is not one")


@pytest.mark.parametrize("kind", ["a command", "a file elsewhere", "cut"])
def test_metadata_runs_no_code_and_leads_nowhere_else(kind, tmp_path):
    folder, target = write_distributed(tmp_path / "a", {"weight": torch.ones(1, 2)}), tmp_path / "was_here"
    file = folder / ".metadata"
    about = pickle.loads(file.read_bytes())
    if kind == "a command":
        about.planner_data = Malicious(target)
    elif kind == "a file elsewhere":
        (tmp_path / "b.distcp").write_bytes((folder / "__0_0.distcp").read_bytes())
        next(iter(about.storage_data.values())).relative_path = "../b.distcp"
    data = pickle.dumps(about)
    file.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    refuse(folder, parameter_layout(nn.Linear(2, 1, bias=False)), str(file), "cannot be read")
    assert not target.exists()


# Two copies of the model in a file.


def open_copies(names, folder, **options):
    states = {name: {"weight": torch.full((1, 1), float(i))} for i, name in enumerate(names)}
    for step in (1, 2):
        torch.save(states, folder / f"w{step}.pt")
    model = nn.Linear(1, 1, bias=False)
    run = Run.from_checkpoints(model, lambda m: m(torch.ones(1, 1)).sum(), folder, progress=False, **options)
    assert run.cut(slice(1, 2)).weights[0] == run.weights[1]
    return run.weights[:].ravel().tolist()


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("params", "params_ema"),
        ("net", "ema"),
        ("student", "teacher"),
        ("generator", "g_ema"),
        ("w", "swa"),
        ("n", "n_avg"),
    ],
)
def test_the_plain_weights_are_taken_and_their_average_is_named(plain, average, tmp_path):
    with pytest.warns(
        UserWarning, match=rf"twice: the weights of '{plain}' are shown, not those of '{average}'.*key='{plain}'"
    ) as said:
        assert open_copies([average, plain], tmp_path) == [1, 1]
    assert len(said) == 1
    assert open_copies([average, plain], tmp_path, key=average) == [0, 0]
    assert open_copies([average, plain], tmp_path, key=plain) == [1, 1]


@pytest.mark.parametrize("names", [["generator", "discriminator"], ["ema", "swa"], ["a", "b", "ema"]])
def test_other_copies_are_named(names, tmp_path):
    with pytest.raises(ValueError, match=rf"must hold `model` once.*'{names[0]}\.'.* Choose one, as in key='\w+'"):
        open_copies(names, tmp_path)
    assert open_copies(names, tmp_path, key=names[1]) == [1, 1]
    with pytest.raises(
        ValueError, match=rf"must hold tensors under `key`, 'c'; it does under .*'{names[0]}'.*Pass one"
    ):
        open_copies(names, tmp_path, key="c")


def test_every_row_is_of_the_same_copy(tmp_path):
    torch.save({"net": {"weight": torch.ones(1, 1)}, "ema": {"weight": torch.zeros(1, 1)}}, tmp_path / "w1.pt")
    torch.save({"ema": {"weight": torch.zeros(1, 1)}}, tmp_path / "w2.pt")
    model = nn.Linear(1, 1, bias=False)
    with (
        pytest.warns(UserWarning, match="key='net'"),
        pytest.raises(ValueError, match=r"w2\.pt must hold tensors under"),
    ):
        Run.from_checkpoints(model, lambda m: m(torch.ones(1, 1)).sum(), tmp_path, progress=False)


# Writing.


def test_a_snapshot_is_a_plain_file_that_can_be_read_back(tmp_path):
    model, path = build(), tmp_path / "step-00000003.safetensors"
    layout = parameter_layout(model)
    views = layout.split(torch.from_numpy(flatten(model)))
    write_snapshot(path, {**views, "turned": torch.arange(6).reshape(2, 3).T, "tied": views["scale"]}, {"loss": "0.5"})
    assert load_file(path)["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"loss": "0.5"}
    assert names_and_steps(tmp_path) == ([path.name], [3])
    np.testing.assert_array_equal(Checkpoints([path], layout)[0], flatten(model))
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("before", [False, True])
def test_a_failed_write_keeps_the_old_file(place, before, tmp_path, monkeypatch):
    path = tmp_path / "step-1.safetensors"
    if before:
        write_snapshot(path, {"w": torch.zeros(3)}, {})

    def fail(*args):
        [part] = tmp_path.glob(".step-1.*")
        assert part.stat().st_size
        with pytest.raises(ValueError, match="none is in"):
            find_checkpoints(tmp_path / ".*")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, fail)
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(path, {"w": torch.ones(3)}, {})
    assert list(tmp_path.iterdir()) == [path] * before
    if before:
        assert load_file(path)["w"].tolist() == [0, 0, 0]


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(OSError, match="gone"):
        write_snapshot(tmp_path / "gone" / "a.safetensors", {"w": torch.ones(3)}, {})
