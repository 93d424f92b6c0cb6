"""Files from strangers: runs, checkpoints and exported settings, each changed in one way, for `test_mutations.py`.

    python mutants.py FOLDER

For each file a child is forked that reads it: it may crash, hang or fill the memory without taking the others with it.
One JSON line for each: how it ended, and what memory it took. LOSS_VIZ_FUZZ=10 for ten times as many.
"""

import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save, save_file
from torch import nn

import loss_viz as lv
from loss_viz.landscapes.provenance import VERSION, read_settings

OURS = str(Path(lv.__file__).parent)
MORE = int(os.environ.get("LOSS_VIZ_FUZZ", "1"))
SECONDS = 30
N_TOGETHER = 20  # files that one child reads
HOLES = 2**30  # bytes of a file that is almost all holes
ROOM = 2**32  # beyond what the process has: who asks for more is refused by the operating system


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 1))


X = torch.linspace(-1, 1, 600).reshape(30, 20)


def loss_fn(model):
    return model(X).square().mean()


# What is read, by the folder in which it lies, and the file in it that is changed.

STATES = {
    "safetensors": "step-1.safetensors",
    "pt": "step-1.pt",
    "pth": "step-1.pth",
    "ckpt": "step-1.ckpt",
    "trainer": "checkpoint-1/pytorch_model.bin",
    "shard": "checkpoint-1/model-00002-of-00002.safetensors",
    "index": "checkpoint-1/model.safetensors.index.json",
    "distributed": "checkpoint-1/.metadata",
    "piece": "checkpoint-1/__0_0.distcp",
}
EXPORTS = {"json": "a.json", "html": "a.html", "csv": "surface.csv"}
if find_spec("matplotlib"):
    EXPORTS |= {kind: f"a.{kind}" for kind in ("png", "pdf", "svg", "gif")}
FILES = {"run": "a.run", **STATES, **EXPORTS, "again": "a.json"}
ZIPS = ("pt", "ckpt", "trainer")


def write_state(kind, folder, step):
    state = {name: tensor * (1 + step) for name, tensor in build().state_dict().items()}
    path = folder / FILES[kind].replace("-1", f"-{step}", 1)
    path.parent.mkdir(exist_ok=True)
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "ckpt":
        torch.save({"state_dict": {f"net.{name}": t for name, t in state.items()}, "global_step": step}, path)
    elif kind in ("distributed", "piece"):
        dcp.save({"model": state}, checkpoint_id=str(path.parent))
    elif kind in ("shard", "index"):
        parts = {f"model-0000{i}-of-00002.safetensors": names for i, names in ((1, ["0.weight"]), (2, list(state)[1:]))}
        for name, held in parts.items():
            save_file({one: state[one] for one in held}, path.parent / name)
        where = {one: name for name, held in parts.items() for one in held}
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
        (path.parent / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    else:
        torch.save(state, path)


def make(folder):
    """All files as they should be."""
    for kind in STATES:
        (folder / kind).mkdir()
        for step in range(3):
            write_state(kind, folder / kind, step)
    run = lv.train("x^2", steps=60, progress=False)
    land = lv.landscape(run, k=5, resolution=9, progress=False)
    for kind in ("run", "again", *EXPORTS):
        (folder / kind).mkdir()
    run.save(folder / "run" / "a.run")
    for kind in ("json", "again"):
        (folder / kind / "a.json").write_text(land.to_json(), encoding="utf-8")
    land.to_csv(folder / "csv")
    lv.export_html(land, folder / "html" / "a.html", k=[5], sigma=["auto"], progress=False)
    if "png" in EXPORTS:
        for kind in ("png", "pdf", "svg"):
            lv.export_image(land, folder / kind / f"a.{kind}", kind="contour", dpi=50)
        lv.export_gif(land, folder / "gif" / "a.gif", n_frames=3, width=320, height=320, progress=False)


def read(kind, path):
    """What there is to be had from a file."""
    if kind == "run":
        run = lv.load_run(path)
    elif kind in STATES:
        place = path.parent if path.parent.name == kind else path.parent.parent
        run = lv.Run.from_checkpoints(build(), loss_fn, place, progress=False)
    elif kind == "again":
        assert np.isfinite(lv.reproduce(path, progress=False).loss).all()
        return
    else:
        settings = read_settings(path)
        assert settings["format"] == "loss_viz settings"
        assert settings["version"] == VERSION
        return
    weights = run.weights[:]
    assert np.isfinite(weights).all()
    rows = [0, len(run) // 2, len(run) - 1]
    np.testing.assert_allclose(run.objective(weights[rows]), run.loss[rows], rtol=1e-3)


# Changes to bytes, whatever they mean.


def change_bytes(data, rng):
    """A dozen ways to damage a file, each at a place of its own."""
    n = len(data)
    at = sorted(rng.randrange(n) for _ in range(2))
    some = rng.randbytes(rng.choice([1, 8, 300]))
    flipped = bytearray(data)
    for _ in range(rng.choice([2, 20, 200])):
        flipped[rng.randrange(n)] ^= 1 << rng.randrange(8)
    one = bytearray(data)
    one[rng.randrange(n)] ^= 1 << rng.randrange(8)
    early = bytearray(data)
    early[rng.randrange(min(n, 200))] = rng.randrange(256)
    late = bytearray(data)
    late[-1 - rng.randrange(min(n, 200))] = rng.randrange(256)
    yield "cut short", data[: at[0]]
    yield "cut short by little", data[: n - rng.randint(1, 20)]
    yield "cut to a few bytes", data[: rng.randint(1, 16)]
    yield "without its start", data[at[0] :]
    yield "one bit flipped", bytes(one)
    yield "bits flipped", bytes(flipped)
    yield "a byte at its start changed", bytes(early)
    yield "a byte at its end changed", bytes(late)
    yield "a part zeroed", data[: at[0]] + bytes(at[1] - at[0]) + data[at[1] :]
    yield "a part removed", data[: at[0]] + data[at[1] :]
    yield "a part twice", data[: at[1]] + data[at[0] :]
    yield "something put in", data[: at[0]] + some + data[at[0] :]
    yield "something behind", data + some
    yield "something before", some + data


# Changes to the header of a safetensors file.


def take_apart(data):
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def change_header(data):
    """What a header may claim, and a text that is none."""
    for n in (0, 1, 2**20, 2**31, 2**40, 2**63 - 1, 2**64 - 1):
        yield f"header of {n} bytes", n.to_bytes(8, "little") + data[8:]
    header, body = take_apart(data)
    name = next(one for one in header if one != "__metadata__")
    own = header[name]
    (start, end), shape = own["data_offsets"], own["shape"]
    claims = {
        "negative offsets": {"data_offsets": [-8, end]},
        "offsets the wrong way round": {"data_offsets": [end, start]},
        "offsets beyond the end": {"data_offsets": [start, 2**50]},
        "offsets as fractions": {"data_offsets": [0.5, 1e300]},
        "offsets as texts": {"data_offsets": ["0", "8"]},
        "one offset": {"data_offsets": [start]},
        "a huge shape": {"shape": [2**50]},
        "a shape that overflows": {"shape": [2**32, 2**32]},
        "a shape of nothing": {"shape": [0, 2**62]},
        "a negative shape": {"shape": [-1, *shape[1:]]},
        "many axes": {"shape": [1] * 100_000},
        "another shape": {"shape": [*shape, 1]},
        "no shape": {"shape": None},
        "another width": {"dtype": "F64"},
        "whole numbers": {"dtype": "I32"},
        "flags": {"dtype": "BOOL"},
        "an unknown dtype": {"dtype": "F7"},
        "a dtype that is none": {"dtype": 5},
    }
    for what, claim in claims.items():
        yield what, join(header | {name: own | claim}, body)
    others = [one for one in header if one not in ("__metadata__", name)]
    yield "two tensors at one place", join(header | {others[0]: own}, body)
    yield "a tensor missing", join({one: header[one] for one in header if one != name}, body)
    yield "a tensor that is none", join(header | {name: 5}, body)
    yield (
        "many tensors of nothing",
        join(
            header | {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [start, start]} for i in range(20_000)},
            body,
        ),
    )
    yield "no header", join(b"", body)
    yield "a list for a header", join([header], body)
    yield "a deep header", join(b"[" * 1_000_000, body)
    yield "a deep object", join(b'{"a":' * 500_000, body)
    yield "blanks for a header", join(b" " * 4_000_000, body)
    yield "a header that is no text", join(b"\xff\xfe" * 50, body)
    text = json.dumps(header).encode()
    yield "every name twice", join(text[:-1] + b", " + text[1:], body)
    yield "no numbers", join(text.replace(b'"shape": [', b'"shape": [NaN, ', 1), body)
    yield "a long number", join(text.replace(b'"shape": [', b'"shape": [' + b"9" * 100_000 + b", ", 1), body)


HOSTILE = [None, 5, -1, 1e308, True, "", "\0", "\ud800", [], {}, [[]], [None], {"a": None}, "x" * 100_000, [2**70]]


def change_run(data):
    """The facts of a run in its file, and its numbers."""
    header, body = take_apart(data)
    facts = json.loads(header["__metadata__"]["loss_viz"])

    def tell(report):
        text = report if isinstance(report, str) else json.dumps(report)
        return join(header | {"__metadata__": {"loss_viz": text}}, body)

    for key in facts:
        for i, value in enumerate(HOSTILE):
            if (i + len(key)) % 3 == 0:
                yield f"{key} is {str(value)[:20]!r}", tell(facts | {key: value})
        yield f"{key} is missing", tell({one: facts[one] for one in facts if one != key})
    for key in facts["settings"]:
        for value in (None, -1, "x", [2**70]):
            yield f"{key} of the settings is {value}", tell(facts | {"settings": facts["settings"] | {key: value}})
    wide = [["0.weight", [2**40, 1]], ["0.bias", [2**40]], ["2.weight", [1, 2**40]], ["2.bias", [1]]]
    shapes = {"wide": wide, "deep": facts["parameters"] * 5000, "negative": [["0.weight", [-8, 1]]] * 4}
    shapes |= {"texts": [["0.weight", "81"]], "fractions": [[name, [1.5]] for name, _ in facts["parameters"]]}
    for what, parameters in shapes.items():
        yield f"parameters are {what}", tell(facts | {"parameters": parameters})
    yield (
        "settings that are deep",
        tell(json.dumps(facts).replace('"settings": {', '"settings": {"a": ' + "[" * 99_999, 1)),
    )
    yield "facts twice", tell(json.dumps(facts)[:-1] + ", " + json.dumps(facts | {"task": "y"})[1:])
    yield "no facts", tell("null")
    yield "facts that are no numbers", tell('{"format": NaN, "version": Infinity}')
    yield "metadata as a text", join(header | {"__metadata__": "loss_viz"}, body)
    yield from change_arrays(facts, read_arrays(data))


def read_arrays(data):
    from safetensors.torch import load

    return load(data)


def change_arrays(facts, arrays):
    def write(**changed):
        kept = {name: tensor.contiguous() for name, tensor in (arrays | changed).items() if tensor is not None}
        return save(kept, {"loss_viz": json.dumps(facts)})

    weights, loss, step, x = (arrays[name] for name in ("weights", "loss", "step", "task.x"))
    for name in arrays:
        own = arrays[name]
        yield f"{name} missing", write(**{name: None})
        yield f"{name} empty", write(**{name: own[:0]})
        yield f"{name} shorter", write(**{name: own[:-1]})
        yield f"{name} with an axis more", write(**{name: own[None]})
        yield f"{name} of flags", write(**{name: own > 0})
        yield f"{name} of nothing", write(**{name: torch.ones(())})
        if own.is_floating_point():
            yield f"{name} not finite", write(**{name: own * float("nan")})
            yield f"{name} in half precision", write(**{name: own.half()})
            yield f"{name} in bfloat16", write(**{name: own.bfloat16()})
            yield f"{name} in float8", write(**{name: own.to(torch.float8_e4m3fn)})
    yield "losses of another run", write(loss=loss + 1)
    yield "steps that fall", write(step=step.flip(0))
    yield "steps below zero", write(step=step - 5)
    yield "steps beyond all numbers", write(step=step + 2**60)
    yield "fractions of steps", write(step=step.double() / 2)
    yield "no weights in many rows", write(weights=weights[:, :0])
    yield "complex weights", write(weights=weights.to(torch.complex64))
    yield "inputs of two axes", write(**{"task.x": x.expand(len(x), 2)})
    yield "buffers where there are none", write(buffers=torch.ones(len(step), 3))


# Changes to what torch.save writes.


class Harm:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Call:
    """A pickle that calls anything."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def save_bytes(value, zipped):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def repack(data, change, **entry):
    """A zip whose entries went through a function from name and bytes to bytes, or None."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", **entry) as new:
        for info in old.infolist():
            body = change(info.filename, old.read(info))
            if body is not None:
                new.writestr(zipfile.ZipInfo(info.filename) if not entry else info.filename, body)
    return file.getvalue()


def change_pickle(data, zipped, marker):
    state = build().state_dict()
    for protocol in (0, 2, 4, 5):
        yield f"a pickle that runs a command, protocol {protocol}", pickle.dumps(Harm(marker), protocol)
    for what, harm in list_harm(marker):
        for name, value in (
            ("alone", harm),
            ("beside", state | {"extra": harm}),
            ("inside", {"a": [state, {"b": harm}]}),
        ):
            yield f"{what} {name}", save_bytes(value, zipped)
    deep = []
    for _ in range(300):
        deep = [deep]
    round_ = dict(state)
    round_["self"] = round_
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (60, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(state["0.weight"], 0.1, 0, torch.qint8)
    others = {
        "a list": list(state.values()),
        "a number": 5,
        "nothing": None,
        "no tensors": {},
        "a deep list": {**state, "deep": deep},
        "a dictionary in itself": round_,
        "numbers for names": dict(enumerate(state.values())),
        "sparse weights": state | {"0.weight": sparse},
        "a sparse tensor of any size": state
        | {"0.weight": torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**31, 2**31))},
        "quantized weights": state | {"0.weight": quantized},
        "complex weights": state | {"0.weight": state["0.weight"] * 1j},
        "whole weights": state | {"0.weight": state["0.weight"].long()},
        "weights that are not there": state | {"0.weight": torch.empty(60, 20, device="meta")},
        "one number for all weights": state | {"0.weight": torch.ones(1, 1).expand(60, 20)},
        "a tensor of one number and any size": state | {"0.weight": torch.ones(1).expand(2**40)},
        "not finite": {name: tensor * float("nan") for name, tensor in state.items()},
        "weights transposed": state | {"0.weight": state["0.weight"].T},
    }
    for what, value in others.items():
        yield what, save_bytes(value, zipped)
    yield "a pickle as it is", pickle.dumps(state)
    yield "a hundred thousand lists", b"\x80\x02" + b"]" * 100_000 + b"."
    yield "a memory of any size", b"\x80\x02" + b"]r\xff\xff\xff\x7f."
    yield "a text of any size", b"\x80\x02X\xff\xff\xff\x7fx."
    yield "bytes of any size", b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."
    yield "a frame of any size", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N."
    yield "bytes to be filled, of any size", b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x."
    yield "a tar", write_tar(marker)
    yield from change_objects(zipped)
    if not zipped:
        for what, change in list(claim_storages())[:3]:
            yield what, change(data)


def change_objects(zipped):
    """What a pickle may do to the objects that it names."""
    state = build().state_dict()
    whole = save_bytes(state, True)
    pairs = b"(" + b"K\x01K\x02\x86" * 100_000 + b"l"
    for what, change in {
        "attributes set on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__name__K\x01sb",
        "attributes set on a class": b"ctorch\nTensor\n}X\x01\0\0\0aK\x01sb",
        "a class called": b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R",
        "a tensor called": b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R",
        "a number called": b"K\x01)R",
        "an object of a number": b"K\x01)\x81",
        "something put into a number": b"K\x01K\x01a",
        "something put into a class": b"ctorch\nTensor\n(K\x01K\x02u",
        "a registered class": b"\x82\x01",
        "an object in the old way": b"(ios\nsystem\n",
        "a reference to another thing": b"X\x01\0\0\0a\x85Q",
        "a list copied many times": pairs + b"q\xff0" + b"ccollections\nOrderedDict\nh\xff\x85R0" * 5000 + b"N",
        "many stubs": b"ca\nb\nq\xff0(" + b"h\xff)\x81" * 50_000 + b"l",
        "many names": b"(" + b"".join(f"ca\n{i}\n".encode() for i in range(50_000)) + b"l",
        "an unknown function called with much": b"ca\nb\n" + pairs + b"\x85R",
    }.items():
        code = b"\x80\x02" + change + b"."
        yield f"{what} in a pickle", repack_raw(whole, lambda own, code=code: code) if zipped else LEGACY + code


LEGACY = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def list_harm(marker):
    yield "a command", Harm(marker)
    yield "code to be run", Call(exec, f"open({str(marker)!r}, 'w')")
    yield "code to be valued", Call(eval, f"open({str(marker)!r}, 'w')")
    yield "a file to be opened", Call(open, str(marker), "w")
    yield "another file to be loaded", Call(torch.load, str(marker))
    yield "a module to be imported", Call(__import__, "antigravity")
    yield "gigabytes", Call(bytearray, 2**34)


def write_tar(marker):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            body = pickle.dumps(Harm(marker), 2)
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return file.getvalue()


def change_zip(data, marker):
    bomb = bytes(200_000_000)
    is_pickle = "data.pkl".__eq__

    def replace(body):
        return lambda name, own: body if is_pickle(name.split("/")[-1]) else own

    yield "compressed", repack(data, lambda name, own: own, compression=zipfile.ZIP_DEFLATED)
    yield "a bomb", repack(data, replace(bomb), compression=zipfile.ZIP_DEFLATED)
    yield "a bomb of lists", repack(data, replace(b"\x80\x02" + b"]" * 50_000_000), compression=zipfile.ZIP_DEFLATED)
    yield "no pickle", repack(data, replace(None))
    yield "another pickle", repack(data, replace(pickle.dumps(Harm(marker), 2)))
    yield "no numbers", repack(data, lambda name, own: None if "/data/" in name else own)
    yield "fewer numbers", repack(data, lambda name, own: own[:4] if "/data/" in name else own)
    yield "more numbers", repack(data, lambda name, own: own * 3 if "/data/" in name else own)
    yield "another order of bytes", repack(data, lambda name, own: b"big" if name.endswith("byteorder") else own)
    for what, change in claim_storages():
        yield what, repack_raw(data, change)
    for what, more in {
        "entries twice": ["/data.pkl", "/version", "/data/0"],
        "an entry outside": ["/../../outside.pkl"],
        "code beside": ["/constants.pkl", "/code/x.py"],
    }.items():
        file = io.BytesIO(data)
        with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
            warnings.simplefilter("ignore")
            stem = archive.namelist()[0].split("/")[0]
            for name in more:
                held = stem + name in archive.namelist()
                archive.writestr(stem + name, archive.read(stem + name) if held else b"x")
        yield what, file.getvalue()
    yield "many entries", write_many()


def claim_storages():
    """Changes to the pickle: how many numbers the first tensor of 1200 has, and where in them it begins."""
    n = b"M\xb0\x04"
    for claim in (2**31 - 1, 5, 0):
        yield f"a storage of {claim} numbers", lambda own, claim=claim: own.replace(n, b"J" + struct.pack("<i", claim))
    for at in (1, 1_000_000, 2**31 - 1):

        def move(own, at=at):
            far = b"J" + struct.pack("<i", at)
            begins = re.compile(rb"(tq.Q)K\x00(?=K<K\x14)", re.DOTALL)
            moved, times = begins.subn(lambda found: found[1] + far, own)
            assert times == 1
            return moved.replace(n, b"J" + struct.pack("<i", 2**31 - 1))

        yield f"a tensor that begins at {at}", move


def repack_raw(data, change):
    return repack(data, lambda name, own: change(own) if name.endswith("data.pkl") else own)


def write_many():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"a/{i}", b"")
    return file.getvalue()


def change_index(data):
    index = json.loads(data)
    where = index["weight_map"]
    name = next(iter(where))
    maps = {
        "leads outside": dict.fromkeys(where, "../../../secret.safetensors"),
        "leads to the root": dict.fromkeys(where, "/etc/passwd"),
        "leads to itself": dict.fromkeys(where, "model.safetensors.index.json"),
        "leads to its folder": dict.fromkeys(where, "."),
        "leads above": dict.fromkeys(where, ".."),
        "leads nowhere": dict.fromkeys(where, ""),
        "leads to a number": where | {name: 5},
        "leads to a list": where | {name: ["a"]},
        "lacks a name": {one: where[one] for one in where if one != name},
        "leads to a device": where | {name: "zero.pt"},
        "is empty": {},
        "is a list": [],
        "is none": None,
        "leads to many": {str(i): f"{i}.safetensors" for i in range(20_000)},
        "has a long name": where | {name: "x" * 10_000},
        "has a zero byte": where | {name: "a\0b"},
    }
    for what, one in maps.items():
        yield f"the map {what}", json.dumps(index | {"weight_map": one}).encode()
    yield "no map", b"{}"
    yield "a deep index", b"[" * 1_000_000
    yield "a long index", b'{"weight_map": {}, "a": "' + b"x" * 40_000_000 + b'"}'
    yield "no numbers", b'{"weight_map": NaN}'
    yield "an index twice", data[:-1] + b', "weight_map": {}}'


# Changes to the metadata of a distributed checkpoint.


def change_metadata(data, marker):
    def change(act):
        about = pickle.loads(data)
        act(about, about.storage_data[next(iter(about.storage_data))], about.state_dict_metadata["model.0.weight"])
        return pickle.dumps(about)

    for what, harm in list_harm(marker):
        yield f"{what} beside", change(lambda about, place, one, harm=harm: setattr(about, "planner_data", harm))
        yield f"{what} for a tensor", pickle.dumps(harm)
    for path in (
        "../../../secret.distcp",
        "/etc/passwd",
        "",
        ".",
        "..",
        "nothing.distcp",
        5,
        None,
        "/dev/zero",
        ".metadata",
    ):
        yield f"a piece in {path}", change(lambda about, place, one, path=path: setattr(place, "relative_path", path))
    for name in ("offset", "length"):
        for value in (-1, 2**62, 0.5, "8", None):
            yield f"{name} {value}", change(lambda about, place, one, v=value, n=name: setattr(place, n, v))
    for size in ((2**50,), (2**32, 2**32), (), (60, 20, 1), (1,) * 1000):
        yield f"a size of {size[:3]}", change(lambda about, place, one, s=size: setattr(one, "size", torch.Size(s)))
    for name in ("chunks", "properties", "size"):
        for value in ([], None, 5):
            yield f"{name} {value}", change(lambda about, place, one, v=value, n=name: setattr(one, n, v))
    for name in ("state_dict_metadata", "storage_data", "storage_meta", "planner_data"):
        for value in ({}, None, [1]):
            yield f"{name} {value}", change(lambda about, place, one, v=value, n=name: setattr(about, n, v))
    yield "no metadata", pickle.dumps({"a": 1})


# Changes to settings, wherever they stand.


def change_settings(data):
    start = b'{"format": "loss_viz settings"'
    at = data.index(start)
    before = data[:at]
    for what, text in {
        "alone": "}",
        "without a version": ', "torch": "2"}',
        "version NaN": ', "version": NaN}',
        "version as a list": ', "version": [1]}',
        "version and nothing else": ', "version": 1}',
        "version twice": ', "version": 1, "version": 2}',
        "runs as a number": ', "version": 1, "runs": 5, "landscape": {}}',
        "open": ', "version": 1, "runs": [',
        "deep": ', "version": 1, "runs": ' + "[" * 1_000_000,
        "deep and closed": ', "version": 1, "runs": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "deep objects": ', "version": 1, "runs": ' + '{"a":' * 500_000,
        "a long number": ', "version": ' + "9" * 1_000_000 + "}",
        "a long text": ', "version": 1, "runs": "' + "x" * 30_000_000 + '"}',
        "control signs": ', "version": "\0\1"}',
        "surrogates": ', "version": "\\ud800"}',
        "many": "}" + start.decode() * 100_000,
    }.items():
        yield what, before + start + text.encode()
    yield "with megabytes behind", data + bytes(60_000_000)
    yield "with megabytes before", bytes(60_000_000) + data


def change_plan(data):
    """What a landscape is made again from."""
    settings = json.loads(data)
    [run] = settings["runs"]
    trained = run["train"]

    def write(part, changed):
        return settings | {"": changed, "landscape": {"landscape": changed}}.get(part, {"runs": [changed]})

    parts = {"": settings, "landscape": settings["landscape"], "run": run}
    for part, own in parts.items():
        for i, key in enumerate(own):
            yield f"{key} of the {part} missing", write(part, {one: own[one] for one in own if one != key})
            for value in (HOSTILE * 2)[i % 7 :: 7][:1]:
                yield f"{key} of the {part} is {str(value)[:20]!r}", write(part, own | {key: value})
    for i, key in enumerate(trained):
        lacking = {one: trained[one] for one in trained if one != key}
        yield f"{key} of the training missing", write("run", run | {"train": lacking})
        for value in (HOSTILE * 2)[i % 7 :: 7][:1]:
            yield f"{key} of the training is {str(value)[:20]!r}", write("run", run | {"train": trained | {key: value}})
    for dtype in ("load", "float16", "nothing", "__class__"):
        yield f"numbers of {dtype}", write("run", run | {"train": trained | {"dtype": dtype}})
    for steps in (2**62, 10**12):
        yield f"{steps} steps", write("run", run | {"train": trained | {"steps": steps, "width": 1000}})
    yield "a word more", write("run", run | {"train": trained | {"callback": "os.system"}})
    yield "a grid of any size", write("landscape", settings["landscape"] | {"resolution": [10**9, 10**9]})
    yield "many runs", settings | {"runs": [run] * 3}
    yield "no runs", settings | {"runs": []}


# Changes to what lies at the path.


def replace_file(path):
    """Something else than a file, or one that leads to another place."""

    def put(make):
        def change():
            path.unlink()
            make()

        return change

    yield "nothing", put(lambda: None)
    yield "an empty file", put(path.touch)
    yield "a folder", put(path.mkdir)
    yield "a link to itself", put(lambda: path.symlink_to(path))
    yield "a link to nothing", put(lambda: path.symlink_to(path.parent / "nothing"))
    yield "a link to its folder", put(lambda: path.symlink_to(path.parent))
    yield "a link to a device without end", put(lambda: path.symlink_to("/dev/zero"))
    yield "a link to an empty device", put(lambda: path.symlink_to("/dev/null"))
    yield "a pipe", put(lambda: os.mkfifo(path))
    yield "a file of holes", lambda: os.truncate(path, HOLES)

    def move():
        other = path.with_name("moved.txt")
        path.rename(other)
        path.symlink_to(other)

    yield "a link to where it is", move


def list_mutants(folder, marker, rng):
    """The kind of a file, what is done to it, and a function that does it; or its new bytes."""
    for kind, name in FILES.items():
        whole = (folder / kind / name).read_bytes()
        for _ in range(MORE if kind != "again" else 0):
            for what, data in change_bytes(whole, rng):
                yield kind, what, data
        if kind != "again":
            yield kind, "a place", None
        if kind in ("run", "safetensors", "shard"):
            for what, data in change_header(whole):
                yield kind, what, data
        if kind == "run":
            for what, data in change_run(whole):
                yield kind, what, data
        if kind == "distributed":
            for what, data in change_metadata(whole, marker):
                yield kind, what, data
        if kind in ("pt", "pth"):
            for what, data in change_pickle(whole, kind == "pt", marker):
                yield kind, what, data
        if kind in ZIPS:
            for what, data in change_zip(whole, marker):
                yield kind, what, data
        if kind == "index":
            for what, data in change_index(whole):
                yield kind, what, data
        if kind == "again":
            for what, changed in change_plan(whole):
                yield kind, what, json.dumps({**changed}).encode()
        if kind in EXPORTS and kind != "gif":
            for what, data in change_settings(whole):
                yield kind, what, data


def measure_memory():
    """Of this process, in bytes: what it holds, and what it held at its height."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM")]


def judge(kind, path):
    """How reading ends, and in which words."""
    try:
        read(kind, path)
        return "loaded", ""
    except BaseException as error:
        said, frames = f"{type(error).__name__}: {error}", traceback.extract_tb(error.__traceback__)
        ours = frames[-1].filename.startswith(OURS) and type(error) in (ValueError, TypeError)
        known = ours or isinstance(error, OSError)
        where = "" if known else f" ({frames[-1].filename}:{frames[-1].lineno})"
        return "refused" if known else "other", said.encode("utf-8", "backslashreplace").decode()[:600] + where


def work_off(kind, paths, whole, speak):
    """Read a few files one after the other, after one that is whole, and tell how each ended."""
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ROOM, virtual + ROOM))
    judge(kind, whole)
    for path in paths:
        signal.alarm(SECONDS)
        Path("/proc/self/clear_refs").write_text("5")  # the height is measured from here on
        before, _ = measure_memory()
        end, said = judge(kind, path)
        report = {"end": end, "said": said, "grown": measure_memory()[1] - before}
        os.write(speak, json.dumps(report).encode() + b"\n")


def try_out(kind, paths, whole):
    """How reading each file ends, in a child that may crash; another child goes on behind the file that did it."""
    reports = []
    while len(reports) < len(paths):
        listen, speak = os.pipe()
        child = os.fork()
        if not child:
            try:
                work_off(kind, paths[len(reports) :], whole, speak)
            finally:
                os._exit(0)
        os.close(speak)
        with os.fdopen(listen, "rb") as pipe:
            reports += [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        if len(reports) < len(paths):
            code = os.waitstatus_to_exitcode(status)
            reports.append({"end": "crashed", "said": f"exit status {code}", "grown": 0})
    return reports


def in_a_child(work):
    child = os.fork()
    if not child:
        code = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0


def prepare_cases(originals, place, mutants):
    """For each change a copy of the folder with the file changed: its kind, what is changed, and where the file is."""
    for kind, what, data in mutants:
        names = [what] if data is not None else [name for name, _ in replace_file(Path())]
        for i, name in enumerate(names):
            case = Path(tempfile.mkdtemp(dir=place))
            shutil.copytree(originals / kind, case / kind)
            path = case / kind / FILES[kind]
            if data is None:
                [change for _, change in replace_file(path)][i]()
            else:
                path.write_bytes(data)
            yield kind, name, path


def measure_folder(path, kind):
    while path.name != kind:
        path = path.parent
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def main(folder):
    """Make, warm up, change and read."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, rng = Path(folder), random.Random(0)
    originals, place, marker = folder / "originals", folder / "cases", folder / "was_here"
    originals.mkdir()
    place.mkdir()
    in_a_child(lambda: make(originals))
    for kind in FILES:
        read(kind, originals / kind / FILES[kind])  # what is imported late is there
    pickle.loads(pickle.dumps(Harm(marker)))
    assert marker.exists()  # it would have worked
    marker.unlink()

    cases = prepare_cases(originals, place, list_mutants(originals, marker, rng))
    for kind, some in itertools.groupby(cases, key=lambda case: case[0]):
        while batch := list(itertools.islice(some, N_TOGETHER)):
            reports = try_out(kind, [path for _, _, path in batch], originals / kind / FILES[kind])
            for (_, what, path), one in zip(batch, reports, strict=True):
                line = {"kind": kind, "what": what, "size": measure_folder(path, kind), "ran": marker.exists(), **one}
                print(json.dumps(line), flush=True)
            shutil.rmtree(place)
            place.mkdir()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as somewhere:
            main(somewhere)
