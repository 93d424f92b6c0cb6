"""A private copy of a model and its loss, none of whose parts lead back to the user's objects.

`copy.deepcopy` copies modules and tensors but no functions. So a wrapped `forward`, a hook or a penalty that names the
model would still use the user's own one. Here such functions are copied too: with the same code, and with the copies of
the modules, tensors and lists that they name.
"""

import copy
import dis
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loss_viz._validation import first_line

LossFn = Callable[[nn.Module], Tensor]
ChooseShared = Callable[[nn.Module], Iterable[nn.Parameter]]
MAX_PARTS = 100  # of a list or an object that a loss names; those behind are taken for data


@dataclass(eq=False)
class PrivateCopy:
    """A model and its loss function.

    Attributes:
        model: the model.
        loss_fn: the loss of a model.
        companions: other modules, and trainable tensors, that `loss_fn` names, such as a criterion with weights; by
            the names of the variables.
    """

    model: nn.Module
    loss_fn: LossFn
    companions: dict[str, nn.Module | Tensor] = field(default_factory=dict)
    _modules: list[nn.Module] = field(default_factory=list, init=False, repr=False)
    _places: list[tuple[str, dict[Any, Any], Any]] = field(default_factory=list, init=False, repr=False)
    _seen: list[tuple[int, ...]] = field(default_factory=list, init=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers by name; those of companions as `loss_fn:variable.name`.

        Called at each step of a training, and so three times as fast as `named_parameters` and `named_buffers`: where
        the tensors are is looked up only if modules, or their numbers of tensors, have changed.
        """
        seen = self._look()
        if seen != self._seen or not self._places:
            self._modules = [m for part in self._parts() if isinstance(part, nn.Module) for m in part.modules()]
            self._places = list(self._find_places())
            self._seen = self._look()
        try:
            named = {name: place[key] for name, place, key in self._places}
        except KeyError:  # renamed
            self._places = []
            return self.tensors()
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _parts(self) -> list[nn.Module | Tensor]:
        return [self.model, *self.companions.values()]

    def _look(self) -> list[tuple[int, ...]]:
        return [(len(m._parameters), len(m._buffers), *map(id, m._modules.values())) for m in self._modules]

    def _find_places(self) -> Iterator[tuple[str, dict[Any, Any], Any]]:
        """Yield the name of each tensor, the dictionary that holds it, and its key there."""
        known: set[int] = set()
        for prefix, part in zip(("", *(f"loss_fn:{name}" for name in self.companions)), self._parts(), strict=True):
            if isinstance(part, Tensor):
                yield prefix, {"": part}, ""
                continue
            for kind in ("_parameters", "_buffers"):
                for path, module in part.named_modules(prefix=prefix):
                    held = getattr(module, kind)
                    for key, tensor in held.items():
                        if tensor is None or id(tensor) not in known:
                            known.add(id(tensor))
                            yield f"{path}.{key}" if path else key, held, key


def _has_tensors(module: nn.Module) -> bool:
    return any(m._parameters or m._buffers for m in module.modules())


def copy_program(
    model: nn.Module, loss_fn: LossFn, choose_shared: ChooseShared = lambda module: ()
) -> tuple[PrivateCopy, PrivateCopy]:
    """Copy a model together with its loss.

    Args:
        model: the model.
        loss_fn: its loss.
        choose_shared: returns the frozen parameters of a module whose memory the copy uses, too.

    Returns:
        The originals and the copies, with the same names. A function that names nothing to be copied is not copied.

    Raises:
        ValueError: if the model cannot be copied.
    """
    copier = _Copier(choose_shared)
    try:
        own = copier.copy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`model` must be one that copy.deepcopy can copy, got the error: {first_line(error)}. Keep no open files, "
            "locks or generators on the model or in its hooks."
        ) from error
    _restore_forward(own)
    loss = copier.rebind(loss_fn, "loss_fn")
    originals = {name: original for name, (original, _) in copier.companions.items()}
    return (
        PrivateCopy(model, loss_fn, originals),
        PrivateCopy(own, loss, {name: twin for name, (_, twin) in copier.companions.items()}),
    )


def _restore_forward(model: nn.Module) -> None:
    """Take off the autocast that accelerate has put around `forward`: losses are evaluated without it."""
    for module in model.modules():
        if "_original_forward" in vars(module):
            vars(module).pop("forward", None)


class _DetachResults(TorchFunctionMode):
    """A context in which deep copies of results of a forward pass, which PyTorch refuses to copy, are detached."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # left by a batched evaluation
            memo[id(tensor)] = torch.empty(0, device="cpu")
        elif tensor.grad_fn is not None:
            memo[id(tensor)] = tensor.detach().clone()
        else:
            return func(*args, **(kwargs or {}))
        return memo[id(tensor)]


class _Copier:
    """Copies of objects and of the functions that name them.

    Attributes:
        companions: original and copy of what a loss names besides the model, by the name of the variable.
    """

    def __init__(self, choose_shared: ChooseShared) -> None:
        self._choose_shared = choose_shared
        self.companions: dict[str, tuple[nn.Module | Tensor, nn.Module | Tensor]] = {}
        self._memo: dict[int, Any] = {}  # copies by the `id` of the original, as in copy.deepcopy
        self._functions: dict[int, Callable[..., Any]] = {}
        self._copies: set[int] = set()  # by `id`: what may be changed; some objects are shared by their copies
        self._seen: set[int] = set()

    def copy(self, value: Any) -> Any:
        """Return a deep copy, in which functions name the copies of what the originals name."""
        for parameter in self._choose_shared(value) if isinstance(value, nn.Module) else ():
            self._memo.setdefault(id(parameter), nn.Parameter(parameter.detach(), requires_grad=False))
        with torch.random.fork_rng([]), _DetachResults():  # __deepcopy__ of a module may draw random numbers
            twin = copy.deepcopy(value, self._memo)
        self._copies |= {id(part) for original, part in self._memo.items() if original != id(part)}
        return self._own(twin)

    def _own(self, value: Any) -> Any:
        """Replace the functions inside a copy, in place where possible, and return it."""
        if isinstance(value, FunctionType):
            return self._rebind_function(value, self._copy_all, self._names_anything)
        if isinstance(value, MethodType):
            self._own(value.__self__)
            function = self._own(value.__func__)
            return value if function is value.__func__ else MethodType(function, value.__self__)
        if isinstance(value, partial):
            arguments = tuple(map(self._own, value.args))
            return partial(self._own(value.func), *arguments, **self._own(dict(value.keywords)))
        if isinstance(value, tuple) and type(value) is tuple:
            parts = tuple(map(self._own, value))
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
        if id(value) in self._seen or id(value) not in self._copies:
            return value
        self._seen.add(id(value))
        inside = value if isinstance(value, dict | list) else vars(value) if _is_instance(value) else {}
        for key, part in list(inside.items() if isinstance(inside, dict) else enumerate(inside)):
            twin = self._own(part)
            if twin is not part:
                inside[key] = twin
        return value

    def _copy_all(self, value: Any, name: str) -> Any:
        """Return a copy of what a function of the model names."""
        if isinstance(value, FunctionType):
            return self._own(value)
        if not self._names_anything(value):
            return value
        try:
            return self.copy(value)
        except Exception:  # an open file, say
            return value

    def _names_anything(self, value: Any) -> bool:
        if isinstance(value, FunctionType):
            return self._needs_copy(value, self._names_anything, set())
        return isinstance(value, Tensor | MethodType | partial | list | dict | set) or _is_instance(value)

    def rebind(self, value: Any, name: str) -> Any:
        """Return what a loss names, with copies in place of modules and trainable tensors; data are shared."""
        if not self._leads_to_model(value):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, FunctionType):
            return self._rebind_function(value, self.rebind, self._leads_to_model)
        if isinstance(value, MethodType):
            return MethodType(self.rebind(value.__func__, name), self.rebind(value.__self__, name))
        if isinstance(value, partial):
            arguments = [self.rebind(part, name) for part in value.args]
            named = {key: self.rebind(part, key) for key, part in value.keywords.items()}
            return partial(self.rebind(value.func, name), *arguments, **named)
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(self.rebind(part, f"{name}[{i}]") for i, part in enumerate(value))
        if type(value) is dict:
            return {key: self.rebind(part, f"{name}[{key!r}]") for key, part in value.items()}
        if isinstance(value, nn.Module | Tensor):
            twin = self.copy(value)
            while name in self.companions:
                name += "'"
            self.companions[name] = value, twin
            return twin
        twin = copy.copy(value)
        self._memo[id(value)] = twin
        vars(twin).update({key: self.rebind(part, f"{name}.{key}") for key, part in vars(value).items()})
        return twin

    def _leads_to_model(self, value: Any, depth: int = 3) -> bool:
        """Return whether a loss that names `value` depends on a module with tensors, or on a trainable tensor."""
        if id(value) in self._memo:
            return True
        if isinstance(value, nn.Module):
            return _has_tensors(value)
        if isinstance(value, Tensor):
            return value.requires_grad and value.is_leaf
        if isinstance(value, FunctionType):
            return self._needs_copy(value, partial(self._leads_to_model, depth=depth - 1), set()) if depth else False
        parts: Any = ()
        if isinstance(value, MethodType):
            parts = (value.__self__, value.__func__)
        elif isinstance(value, partial):
            parts = (value.func, *value.args, *value.keywords.values())
        elif type(value) in (list, tuple):
            parts = value
        elif type(value) is dict or _is_instance(value):
            parts = (value if type(value) is dict else vars(value)).values()
        return depth > 0 and any(self._leads_to_model(part, depth - 1) for part in islice(parts, MAX_PARTS))

    def _needs_copy(self, function: FunctionType, wanted: Callable[[Any], bool], visited: set[int]) -> bool:
        if id(function) in visited:
            return False
        visited.add(id(function))
        return any(
            self._needs_copy(value, wanted, visited) if isinstance(value, FunctionType) else wanted(value)
            for value in _named_values(function).values()
        )

    def _rebind_function(
        self, function: FunctionType, convert: Callable[[Any, str], Any], wanted: Callable[[Any], bool]
    ) -> FunctionType:
        """Return a function with the same code, in which `convert` is applied to what it names."""
        if id(function) in self._functions:
            return self._functions[id(function)]  # type: ignore[return-value]
        if not self._needs_copy(function, wanted, set()):
            return function

        def copies(value: Any) -> bool:
            return self._needs_copy(value, wanted, set()) if isinstance(value, FunctionType) else wanted(value)

        names, originals = function.__code__.co_freevars, function.__closure__ or ()
        # Variables that are not copied stay shared: a loss sees what becomes of them.
        cells = tuple(CellType() if _is_filled(cell) and copies(cell.cell_contents) else cell for cell in originals)
        known = dict(function.__globals__)
        twin = FunctionType(function.__code__, known, function.__name__, None, cells)
        self._functions[id(function)] = twin  # first, because functions may name each other
        for cell, name, original in zip(cells, names, originals, strict=True):
            if cell is not original:
                cell.cell_contents = convert(original.cell_contents, name)
        for name in _global_names(function) if not _is_library(function) else ():
            if name in known:
                known[name] = convert(known[name], name)
        twin.__defaults__ = function.__defaults__ and tuple(
            convert(value, "default") for value in function.__defaults__
        )
        given = function.__kwdefaults__
        twin.__kwdefaults__ = given and {name: convert(value, name) for name, value in given.items()}
        twin.__dict__.update(function.__dict__)
        twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
        return twin


def _is_instance(value: Any) -> bool:
    """Return whether a value is an ordinary object with attributes: no class, Python module, function or tensor."""
    if isinstance(value, type | ModuleType | FunctionType | Tensor | torch.dtype | torch.device):
        return False
    # Runs and tasks lead to models, but not to that of the loss.
    return hasattr(value, "__dict__") and not type(value).__module__.startswith("loss_viz.")


def _named_values(function: FunctionType) -> dict[str, Any]:
    """Return what a function names: closure, globals that its code uses, and defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    named = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    if not _is_library(function):
        known = function.__globals__
        named |= {name: known[name] for name in _global_names(function) if name in known}
    defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    return named | {f"default {name}": value for name, value in defaults.items()}


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_library(function: FunctionType) -> bool:
    """Return whether a function is installed code, whose globals are not the user's."""
    return function.__code__.co_filename.startswith(_library_folders())


@cache
def _library_folders() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (*(path for path in paths if path), str(Path(__file__).parents[1]), "<frozen")


def _global_names(function: FunctionType) -> set[str]:
    """Return the names of globals in the code of a function and of the functions inside it."""

    def search(code: CodeType) -> Iterator[str]:
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield instruction.argval
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from search(constant)

    return set(search(function.__code__))


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Return the attributes of all modules of a model that are neither parameters nor buffers, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }


def changed_attributes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of numbers, texts, tensors and lists of them that differ, or were or are not there."""
    return [name for name in {**before, **after} if not _is_same(before.get(name), after.get(name))]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.detach(), other.detach().to(one.device))
    if isinstance(one, bool | int | float | complex | str | None):
        return type(one) is type(other) and (one == other or one != one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and all(_is_same(value, other.get(key)) for key, value in one.items())
    return True
