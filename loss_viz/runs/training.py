"""Train a small network on a function of x and record the run."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from loss_viz._compiler import without_compiler
from loss_viz._validation import argument_error, check_int, check_type, first_line
from loss_viz.objective.layout import parameter_layout
from loss_viz.objective.objective import Objective
from loss_viz.runs.optimizer_state import (
    Norms,
    check_track,
    explain_missing,
    list_state_names,
    measure_norms,
    stack_norms,
)
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import number_names
from loss_viz.settings import TrainSettings, preset_for
from loss_viz.tasks.networks import build_mlp
from loss_viz.tasks.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
    find_step,
    label_optimizer,
    list_parts,
)
from loss_viz.tasks.regression import Target, Task, build_task, check_same_loss

MAX_BYTES = 2**35  # of the recorded weights


def train(
    target: Target,
    *,
    preset: str = "post",
    steps: int | None = None,
    lr: float | None = None,
    width: int | None = None,
    depth: int = TrainSettings.depth,
    activation: str | Callable[[], nn.Module] = TrainSettings.activation,
    optimizer: str | OptimizerFactory = TrainSettings.optimizer,
    scheduler: str | SchedulerFactory | None = TrainSettings.scheduler,
    n_points: int = TrainSettings.n_points,
    seed: int | None = None,
    every: int = TrainSettings.every,
    dtype: torch.dtype = TrainSettings.dtype,
    track: Sequence[str] = (),
    progress: bool = True,
) -> Run:
    """Fit a multilayer perceptron to `target` on [-1, 1] by full-batch training and record the run.

    The loss is the mean squared error on `n_points` equispaced points. The defaults reproduce the curves of Liu's post
    "Seeing sticky plateau" (2026) for `"x"`, `"x^2"`, `"x^3"` and `"sin(3x)"`. Ctrl-C ends training and returns the
    run so far.

    Args:
        target: a formula in x such as `"2x^3 - x"`, or a function from a tensor `(n_points,)` to values of that shape.
        preset: defaults of `width`, `lr`, `seed` and `steps`: `"post"` (8 units, lr 0.01, seed 52, for `"x^2"` 56) or
            `"robust"` (64 units, lr 0.001, seed 0).
        steps: number of updates; 200 for `"x"`, 500 for `"x^2"`, otherwise 2000 by default.
        lr: learning rate.
        width: units in each hidden layer.
        depth: number of hidden layers.
        activation: `"tanh"`, `"silu"`, `"relu"`, `"gelu"` or a module factory.
        optimizer: the name of any optimizer of `torch.optim`, with PyTorch's defaults but for `"sgd"` (momentum 0.9)
            and `"muon"` (of matrices, with Adam for vectors); a class; or a function from the parameters to an
            optimizer or a list of them, which sets the learning rate itself.
        scheduler: `"cosine"` or `"linear"`, which bring the learning rate to zero at the last step, or a function from
            the optimizer to a schedule of `torch.optim.lr_scheduler`, which is stepped after each update.
        n_points: number of training points.
        seed: random seed of the initial weights. PyTorch's global random state is neither used nor changed.
        every: record one step in `every`; the last one is always recorded.
        dtype: `torch.float32` or `torch.float64`.
        track: names of tensors in the optimizer's state, such as `["exp_avg_sq"]`, whose norms are recorded in
            `run.optimizer_state`.
        progress: show a progress bar when training takes more than a second.

    Returns:
        The run. If the loss stops being finite, it ends at the last finite step; `run.note` and a `RuntimeWarning`
        say so.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the target is not a formula, a number is out of range, a preset, activation, optimizer or
            schedule is unknown, the optimizer does not keep a tensor in `track`, the loss differs between training and
            evaluation mode (dropout), the run would not fit in memory, or the loss is not finite before the first
            update.

    Example:
        >>> run = train("x^3", steps=100, progress=False)
        >>> bool(run.loss[-1] < 0.03 < run.loss[0])
        True
    """
    settings = TrainSettings(
        target=target,
        width=width,
        depth=depth,
        activation=activation,
        optimizer=optimizer,
        scheduler=scheduler,
        lr=lr,
        steps=steps,
        seed=seed,
        n_points=n_points,
        every=every,
        dtype=dtype,
    )
    training = build_training(settings, preset=preset, track=track)
    description = f"training on {training.task.name}"
    with tqdm(total=training.steps, desc=description, delay=1, leave=False, disable=not progress) as bar:

        def show(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
            bar.update(step - bar.n)

        run = run_training(training, on_step=show)
    if run.note:
        warnings.warn(run.note, RuntimeWarning, stacklevel=2)
    return run


class Training(NamedTuple):
    """Everything that `run_training` needs. It can be run once, since that trains `model` in place."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    steps: int
    every: int
    settings: Mapping[str, Any]
    scheduler: LRScheduler | None = None
    track: tuple[str, ...] = ()


def build_training(settings: TrainSettings, *, preset: str = "post", track: Sequence[str] = ()) -> Training:
    """Check the settings and build task, network and optimizer, without training.

    Raises:
        TypeError, ValueError: as for `train`.
    """
    target, activation, dtype = settings.target, settings.activation, settings.dtype
    optimizer, scheduler = settings.optimizer, settings.scheduler
    track = check_track(track)
    task = build_task(target, n_points=settings.n_points, dtype=dtype)  # first, since it limits a formula's length
    defaults = preset_for(target, preset)
    width = defaults.width if settings.width is None else settings.width
    steps = defaults.steps if settings.steps is None else settings.steps
    seed = defaults.seed if settings.seed is None else settings.seed
    steps = check_int("steps", steps, 1, advice="The post trains for 200 to 2000 steps.")
    every = check_int("every", settings.every, 1, advice="With 1 every step is recorded.")
    model = build_mlp(width=width, depth=settings.depth, activation=activation, dtype=dtype, seed=seed)
    check_memory(model, steps, every, MAX_BYTES)
    if callable(activation):  # the named ones are the same in training and evaluation
        check_same_loss(model, task)
    with without_compiler(Optimizer.add_param_group):
        built = build_optimizer(optimizer, model, lr=settings.lr, default_lr=defaults.lr)
    lr = built.param_groups[0].get("lr")  # a custom optimizer may have none
    kinds = [type(one).__name__ for one in list_parts(built)]
    recorded = {
        "target": task.name,
        "width": int(width),
        "depth": int(settings.depth),
        "activation": activation if isinstance(activation, str) else "own",
        "optimizer": optimizer.lower() if isinstance(optimizer, str) else "+".join(kinds),
        "scheduler": scheduler if scheduler is None or isinstance(scheduler, str) else "own",
        "lr": None if lr is None else float(lr),
        "steps": steps,
        "seed": int(seed),
    }
    schedule = build_scheduler(scheduler, built, steps=steps)  # which may change the learning rate of the first update
    return Training(model, task, built, steps, every, recorded, schedule, track)


def check_memory(model: nn.Module, steps: int, every: int, max_bytes: int) -> None:
    """Raise `ValueError` if the recorded weights would take more than `max_bytes` in float32."""
    n_params, n_rows = sum(parameter.numel() for parameter in model.parameters()), steps // every + 1
    if 4 * n_params * n_rows > max_bytes:
        raise argument_error(
            "steps",
            f"`steps` times the number of weights must stay below {max_bytes // 4:,}, got {n_rows:,} x {n_params:,}. "
            "Take fewer steps, or record fewer with lv.train(..., every=10) and pass the run.",
        )


@without_compiler(Optimizer.zero_grad)
def run_training(training: Training, *, on_step: Callable[[int, float], object]) -> Run:
    """Train and record the weights before each update with the loss at exactly those weights.

    Args:
        training: from `build_training`; its model is trained in place.
        on_step: called with each step and its loss. A `KeyboardInterrupt` during training, raised here or by Ctrl-C,
            ends it with the run so far; other exceptions propagate.

    Raises:
        ValueError: if the loss is not finite before the first update, the optimizer cannot update the network, or it
            does not keep a tensor that is tracked.
    """
    model, task, optimizer, steps, every, settings, scheduler, track = training

    def closure() -> float:
        optimizer.zero_grad()
        loss = task.loss(model)
        loss.backward()
        return loss.item()

    rows: list[tuple[int, Tensor, float, Norms]] = []
    own, parts = {id(parameter) for parameter in model.parameters()}, list_parts(optimizer)
    layout, parameters = parameter_layout(model), dict(model.named_parameters())
    note, step = "", find_step(optimizer)
    try:
        for t in range(steps + 1):
            weights = layout.join(parameters)
            norms = measure_norms(parts, own, track) if track else {}
            if t == 1 and (missing := [name for name in track if name not in norms]):
                raise argument_error("track", explain_missing(missing, list_state_names(parts, own)))
            # All optimizers accept a closure, and L-BFGS needs one; step() returns the loss before the update.
            loss = _step(step, optimizer, closure, scheduler) if t < steps else task.loss(model).item()
            if not (math.isfinite(loss) and weights.isfinite().all()):
                note = _note_divergence(loss, t)
                break
            if rows and rows[-1][0] % every:
                rows.pop()  # kept only in case it was the last one
            rows.append((t, weights, loss, norms))
            on_step(t, loss)
    except KeyboardInterrupt:
        if not rows:
            raise
        note = f"Training was interrupted; the run is kept up to step {rows[-1][0]} of {steps}."
    if note:
        vector_to_parameters(rows[-1][1], model.parameters())
    numbers, recorded, losses, states = zip(*rows, strict=True)
    return Run(
        weights=torch.stack(recorded).numpy(),
        loss=np.array(losses),
        step=np.array(numbers),
        objective=Objective(model, task.loss),
        task=task,
        note=note,
        settings=settings,
        optimizer_state=stack_norms(states, track),
    )


def _step(
    step: Callable[..., Any], optimizer: Optimizer, closure: Callable[[], float], scheduler: LRScheduler | None
) -> float:
    try:
        loss: float = step(closure)
    except (RuntimeError, TypeError) as error:
        raise argument_error(
            "optimizer",
            f"`optimizer` must be able to update this network, but {type(optimizer).__name__} fails: "
            f"{first_line(error)}. Use another one, such as 'adam'.",
        ) from error
    try:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss)
        elif scheduler is not None:
            scheduler.step()
    except (RuntimeError, ValueError) as error:
        raise argument_error(
            "scheduler",
            f"`scheduler` must be stepped after each of `steps` updates, {type(scheduler).__name__} fails: "
            f"{first_line(error)}. Build it for that number.",
        ) from error
    return loss


def _note_divergence(loss: float, step: int) -> str:
    if step == 0:
        raise argument_error(
            "target",
            f"The loss on `target` must be finite before training, it is {loss}. Choose one with smaller values.",
        )
    return (
        f"The loss became {loss} at step {step}; the run is kept up to step {step - 1}. "
        "Lower `lr` to keep the loss finite."
    )


Optimizers = Sequence[str | OptimizerFactory] | Mapping[str, str | OptimizerFactory]


def compare(target: Target, optimizers: Optimizers = ("adam", "sgd", "rmsprop"), **settings: Any) -> list[Run]:
    """Train one network on one task with several optimizers, each from the same initial weights.

    Pass the list on as a whole: `landscape(runs)` draws all runs on one plane, `Explorer(runs)` shows them side by
    side.

    Args:
        target: as for `train`.
        optimizers: a list of optimizers as for `train`, or a dict of them by name.
        settings: other arguments of `train`, the same for all runs.

    Returns:
        One run for each optimizer, in that order, named after it.

    Raises:
        TypeError, ValueError: as for `train`; or if `optimizers` is empty or not a list or dict.

    Example:
        >>> runs = compare("x^2", ["adam", "sgd"], steps=20, progress=False)
        >>> [run.name for run in runs], bool((runs[0].weights[0] == runs[1].weights[0]).all())
        (['Adam', 'SGD + momentum'], True)
    """
    advice = 'Pass a list such as ["adam", "sgd"], or leave it out for three of them.'
    check_type("optimizers", optimizers, (Sequence, Mapping), "a list or a dict", advice=advice)
    if isinstance(optimizers, str) or not optimizers:
        raise argument_error("optimizers", f"`optimizers` must hold at least one, got {optimizers!r}. {advice}")
    if isinstance(optimizers, Mapping):
        names, chosen = tuple(map(str, optimizers)), list(optimizers.values())
    else:
        names, chosen = number_names(map(label_optimizer, optimizers)), list(optimizers)
    runs = [train(target, optimizer=one, **settings) for one in chosen]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
