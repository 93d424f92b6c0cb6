"""Unpickling without running code: tensors and plain values are read, and an empty stub replaces everything else.

`torch.load` takes this module in place of `pickle`. Nothing that a file names is imported.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

# Bytes of names, shapes and other values that are not tensors; in memory they take up to ten times as much.
MAX_STRUCTURE = 2**22

# A file that names one of these was made to do harm, although nothing of it is called here.
HARMFUL_MODULES = {"os", "posix", "nt", "sys", "subprocess"}
HARMFUL = {
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "bytearray")),
    *(f"{module}.open" for module in ("io", "_io")),
    "torch.serialization.load",
    "torch._utils._rebuild_device_tensor_from_numpy",  # a few bytes make these two and bytearray fill the memory
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
}

# What a file may name and use as a value, and what it may call.
VALUES = {
    "torch.Tensor": torch.Tensor,
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
CALLS: dict[str, Callable] = {
    "collections.OrderedDict": lambda *pairs: _order(*pairs),
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, arguments, _: _rebuild(rebuild, kind, arguments),
    **{
        f"torch._utils.{name}": getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_meta_tensor_no_storage")
    },
}


PlainUnpickler: Any = pickle._Unpickler  # the one in Python: its opcodes can be replaced


class Stub(dict):
    """What is left of an object that is not built: its name, and the items that were put into it."""

    __slots__ = ("name",)
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def append(self, *_: Any) -> None:
        """Do nothing, as if this were a list."""

    extend = add = append

    def get_dtype(self) -> str:
        """Return what this is, where a tensor has its dtype."""
        return f"a {self.name}"


def _order(pairs: list | None = None) -> OrderedDict:
    """Return a dictionary of a list of pairs, which is emptied: a few bytes could copy it a million times."""
    made = OrderedDict(pairs or [])
    if pairs:
        pairs.clear()
    return made


def _rebuild(rebuild: Any, kind: Any, arguments: Any) -> Any:
    """Return a tensor without the attributes that were set on it; a stub if its class may give it other numbers."""
    if _is_one_of(kind, (torch.Tensor, torch.nn.Parameter)) and _is_one_of(rebuild, CALLS.values()):
        return rebuild(*arguments)
    return Stub(getattr(kind, "name", str(kind)))


def _is_one_of(value: Any, known: Iterable[Any]) -> bool:
    return any(value is one for one in known)  # not ==, which tensors define


class Unpickler(PlainUnpickler):  # type: ignore[misc]
    """An unpickler that imports nothing, calls only `calls`, and reads at most `MAX_STRUCTURE` bytes.

    Raises:
        ValueError: if the file does more, or holds a command.

    Example:
        >>> import argparse, io
        >>> text = pickle.dumps({"epoch": 3, "args": argparse.Namespace(lr=0.1)})
        >>> value = Unpickler(io.BytesIO(text)).load()
        >>> value["epoch"], value["args"].name
        (3, 'argparse.Namespace')
    """

    calls: Mapping[str, Callable] = CALLS
    built: tuple[type, ...] = ()  # classes whose objects are built with what they hold

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(_Limited(file), **options)

    def find_class(self, module: str, name: str) -> Any:
        """Return what a file names if it is known, else a stub."""
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if module in HARMFUL_MODULES or full in HARMFUL:
            raise ValueError(f"GLOBAL {full}")
        return VALUES.get(full) or self.calls.get(full) or Stub(full)

    def _call(self, called: Any, arguments: Any) -> Any:
        if isinstance(called, Stub):
            return Stub(called.name)
        if not _is_one_of(called, self.calls.values()):
            raise ValueError(f"it calls a {type(called).__name__}")
        return called(*arguments)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def _new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(kind.__new__(kind, *arguments) if _is_one_of(kind, self.built) else self._call(kind, arguments))

    def _new_from_keywords(self) -> None:
        self.stack.pop()
        self._new()

    def _build(self) -> None:
        if type(self.stack[-2]) in self.built:
            super().load_build()
        elif not isinstance(self.stack[-2], Stub | OrderedDict):
            raise ValueError(f"it changes a {type(self.stack[-2]).__name__}")
        else:
            self.stack.pop()

    def _load_storage(self) -> None:
        if not isinstance(self.stack[-1], tuple) or self.stack[-1][:1] not in (("storage",), ("module",)):
            raise ValueError("it refers to something else than numbers")
        if self.stack[-1][0] == "module":  # a class and its source, before PyTorch 1.6
            self.stack[-1] = self.stack[-1][1]
        else:
            super().load_binpersid()


def _restrict(opcode: bytes, kinds: tuple[type, ...], at: int) -> Callable[[Unpickler], None]:
    """Return an opcode that puts something only into containers, not for example into a tensor."""
    load = PlainUnpickler.dispatch[opcode[0]]

    def run(unpickler: Unpickler) -> None:
        stack = unpickler.stack if at < -1 else unpickler.metastack[-1]
        if not isinstance(stack[at], kinds):
            raise ValueError(f"it changes a {type(stack[at]).__name__}")
        load(unpickler)

    return run


# These would call or allocate anything; torch.save never writes them.
EXCLUDED = {pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BYTEARRAY8}
Unpickler.dispatch = {
    **{code: load for code, load in PlainUnpickler.dispatch.items() if bytes([code]) not in EXCLUDED},
    pickle.REDUCE[0]: Unpickler._reduce,
    pickle.NEWOBJ[0]: Unpickler._new,
    pickle.NEWOBJ_EX[0]: Unpickler._new_from_keywords,
    pickle.BUILD[0]: Unpickler._build,
    pickle.BINPERSID[0]: Unpickler._load_storage,
    pickle.APPEND[0]: _restrict(pickle.APPEND, (list, Stub), -2),
    pickle.APPENDS[0]: _restrict(pickle.APPENDS, (list, Stub), -1),
    pickle.SETITEM[0]: _restrict(pickle.SETITEM, (dict,), -3),
    pickle.SETITEMS[0]: _restrict(pickle.SETITEMS, (dict,), -1),
    pickle.ADDITEMS[0]: _restrict(pickle.ADDITEMS, (set, Stub), -1),
}


class _Limited:
    """A file of which at most `MAX_STRUCTURE` bytes are read."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MAX_STRUCTURE

    def read(self, n: int) -> bytes:
        return self._count(self._file.read(min(n, self._left + 1)))

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._left + 1))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it has more than {MAX_STRUCTURE >> 20} MiB of data beside the tensors")
        return data


def load(file: Any, **options: Any) -> Any:
    """Read one pickle from a file, as `pickle.load` does."""
    return Unpickler(file, **options).load()
