"""Optimizers and learning-rate schedules by name."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from loss_viz._compiler import COMPILER
from loss_viz._validation import argument_error, check_choice, check_float, check_type, first_line

OptimizerFactory = Callable[..., Optimizer | Sequence[Optimizer]]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class JointOptimizer(Optimizer):
    """Several optimizers, each of some of the parameters, behind one `step`.

    A schedule of this one changes the learning rates of all, because they share their `param_groups`.

    Args:
        optimizers: at least one, without parameters in common.

    Raises:
        ValueError: if a parameter belongs to two of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        super().__init__([group for one in self.optimizers for group in one.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """Evaluate the loss and its gradients once, and step each optimizer; return the loss before the step."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss


def list_parts(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """Return the optimizers of a `JointOptimizer`, or the one that it is."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else (optimizer,)


def _build_muon(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Build Muon for matrices, with Adam for vectors such as biases, which Muon cannot update."""
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        parts[parameter.ndim == 2].append(parameter)
    return JointOptimizer([torch.optim.Muon(parts[True], lr=lr), torch.optim.Adam(parts[False], lr=lr)])


def find_step(optimizer: Optimizer) -> Callable[..., Any]:
    """Return `optimizer.step`; of PyTorch's own optimizers without the wrapper that imports the compiler."""
    own = type(optimizer)
    is_plain = own.__module__.startswith("torch.optim.") and "step" not in vars(optimizer)  # schedules replace it
    hooks = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    is_watched = any(getattr(sys.modules[Optimizer.__module__], name, None) for name in hooks)
    if COMPILER in sys.modules or not is_plain or is_watched or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return partial(torch.no_grad()(inspect.unwrap(own.step)), optimizer)


UNSUPPORTED = {"sparseadam": "it updates sparse gradients only, and those of this network are dense"}


def _list_optimizers() -> dict[str, OptimizerFactory]:
    """Return the optimizers of this version of PyTorch by their name in lower case, the best known first."""
    classes = {
        name.lower(): one
        for name, one in vars(torch.optim).items()
        if isinstance(one, type) and issubclass(one, Optimizer) and one is not Optimizer
    }
    classes = dict(sorted(classes.items()))
    first = {name: classes.pop(name) for name in ("adam", "adamw", "sgd", "rmsprop")}
    given = {"sgd": partial(torch.optim.SGD, momentum=0.9)} | ({"muon": _build_muon} if "muon" in classes else {})
    return {name: given.get(name, one) for name, one in (first | classes).items() if name not in UNSUPPORTED}


OPTIMIZERS: Mapping[str, OptimizerFactory] = MappingProxyType(_list_optimizers())
LABELS = {"sgd": "SGD + momentum", "muon": "Muon"}


def label_optimizer(optimizer: str | OptimizerFactory) -> str:
    """Return the name of an optimizer in legends.

    Example:
        >>> label_optimizer("sgd"), label_optimizer("NADAM"), label_optimizer(torch.optim.SGD)
        ('SGD + momentum', 'NAdam', 'SGD')
    """
    if isinstance(optimizer, str):
        name = optimizer.lower()
        return LABELS.get(name, str(getattr(OPTIMIZERS.get(name), "__name__", optimizer)))
    return getattr(optimizer, "__name__", type(optimizer).__name__)


def find_optimizer(name: str) -> OptimizerFactory:
    """Return the optimizer of a name, in upper or lower case.

    Raises:
        ValueError: if there is none, or it cannot update the networks of `train`.
    """
    known = name.lower()
    if known in OPTIMIZERS:
        return OPTIMIZERS[known]
    if known in UNSUPPORTED:
        raise argument_error("optimizer", f"`optimizer` cannot be {name!r}: {UNSUPPORTED[known]}. Use 'adam'.")
    if known == "muon":
        raise argument_error(
            "optimizer",
            f"`optimizer` cannot be {name!r}: torch.optim.Muon came with PyTorch 2.9, this is {torch.__version__}. "
            "Update PyTorch, or pass a function from the parameters to optimizers.",
        )
    near = get_close_matches(known, OPTIMIZERS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    advice = f"{hint}Others are passed as a class, or as a function of the parameters."
    check_choice("optimizer", name, OPTIMIZERS, advice=advice)
    raise AssertionError  # check_choice has raised


def build_optimizer(
    optimizer: str | OptimizerFactory, model: nn.Module, *, lr: float | None, default_lr: float
) -> Optimizer:
    """Build an optimizer of the parameters of `model` from a name, a class of `torch.optim`, or a function.

    Raises:
        TypeError: if `optimizer` is neither a name, a class nor a function, or the function returns something else.
        ValueError: if the name is unknown, `lr` is not positive or is given with a function, which sets its own, or
            the optimizer does not update the parameters of `model`.
    """
    if lr is not None:
        check_lr(lr)
    if isinstance(optimizer, str):
        optimizer = find_optimizer(optimizer)
    elif not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        advice = "Pass 'adam', a class of torch.optim, or a function of the parameters."
        check_type("optimizer", optimizer, Callable, "a name, a class or a function", advice=advice)
        if lr is not None:
            raise argument_error(
                "lr",
                f"`lr` = {lr} has no effect on an `optimizer` function, which sets its own. "
                "Leave `lr` out, or pass the optimizer's class.",
            )
        return _check_optimizer(optimizer(model.parameters()), model)  # type: ignore[call-arg]
    try:
        return optimizer(model.parameters(), lr=default_lr if lr is None else float(lr))  # type: ignore[return-value, call-arg]
    except (TypeError, ValueError, RuntimeError) as error:
        raise argument_error(
            "optimizer",
            f"`optimizer` must be a class that takes parameters and a learning rate; {label_optimizer(optimizer)} "
            f"fails: {first_line(error)}. Pass a function of the parameters, or 'adam'.",
        ) from error


def _check_optimizer(built: Any, model: nn.Module) -> Optimizer:
    advice = "Write it as lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
    several = built if isinstance(built, list | tuple) else [built]
    if not several or not all(isinstance(one, Optimizer) for one in several):
        raise TypeError(
            f"`optimizer` must return a torch.optim.Optimizer or a list of them, it returned {type(built).__name__}. "
            f"{advice}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    for one in several:
        if not any(id(parameter) in own for group in one.param_groups for parameter in group["params"]):
            raise argument_error(
                "optimizer", f"`optimizer` must update the parameters that it is given, it updates others. {advice}"
            )
    if built is several:
        try:
            return JointOptimizer(several)
        except ValueError as error:
            raise argument_error(
                "optimizer",
                f"`optimizer` must return optimizers without parameters in common: {first_line(error)}. Give each "
                "parameter to one of them.",
            ) from error
    return built


def check_lr(lr: Any) -> None:
    """Raise `TypeError` unless `lr` is a number, `ValueError` unless it is finite and positive."""
    number = check_float("lr", lr, "a positive number", advice="The post uses 0.01.")
    if not (math.isfinite(number) and number > 0):
        raise argument_error("lr", f"`lr` must be a positive number, got {lr}. The post uses 0.01.")


# By name: functions of an optimizer and the number of updates. Both bring the learning rate to zero at the end.
SCHEDULERS: Mapping[str, Callable[[Optimizer, int], LRScheduler]] = MappingProxyType(
    {
        "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
        "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, total_iters=steps),
    }
)


def build_scheduler(
    scheduler: str | SchedulerFactory | None, optimizer: Optimizer, *, steps: int
) -> LRScheduler | None:
    """Build a learning-rate schedule from a name, or from a function of the optimizer such as a class with its options.

    Raises:
        TypeError: if `scheduler` is neither a name nor a function, or the function returns something else.
        ValueError: if the name is unknown, or the function fails.
    """
    if scheduler is None:
        return None
    advice = "Others are passed as a function, such as lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 9)."
    check_type("scheduler", scheduler, (str, Callable), "a name or a function", advice=advice)
    if isinstance(scheduler, str):
        check_choice("scheduler", scheduler, SCHEDULERS, advice=advice)
        return SCHEDULERS[scheduler](optimizer, steps)
    try:
        built: Any = scheduler(optimizer)  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise argument_error(
            "scheduler",
            f"`scheduler` must be a function of the optimizer, it fails: {first_line(error)}. {advice}",
        ) from error
    if not isinstance(built, LRScheduler):
        raise TypeError(
            f"`scheduler` must return a schedule of torch.optim.lr_scheduler, it returned {type(built).__name__}. "
            f"{advice}"
        )
    return built
