"""Train a small network on a function of x, and record every step."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters
from torch.optim import Optimizer
from tqdm.auto import tqdm

from loss_viz._validation import check_choice, check_int, check_type, first_line
from loss_viz.objective.layout import parameter_layout
from loss_viz.objective.objective import Objective
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import number_names
from loss_viz.tasks.formula import normalize_formula
from loss_viz.tasks.networks import OptimizerFactory, build_mlp, build_optimizer
from loss_viz.tasks.regression import Target, Task, build_task, check_same_loss


class Preset(NamedTuple):
    """What `train` takes where nothing else is said."""

    width: int
    lr: float
    seed: int
    steps: int


# "post" is the look-alike of the post's four curves (dwell on the plateau 76 / 988 / 574 steps against its
# 76 / 1038 / 672), "robust" the net on which x^3 and sin(3x) stick for every seed.
PRESETS = MappingProxyType(
    {
        "post": Preset(width=8, lr=0.01, seed=52, steps=2000),
        "robust": Preset(width=64, lr=0.001, seed=0, steps=2000),
    }
)

POST_SEEDS = MappingProxyType({"x^2": 56})

POST_STEPS = MappingProxyType({"x": 200, "x^2": 500})

MAX_BYTES = 2**35  # of the recorded weights


def train(
    target: Target,
    *,
    preset: str = "post",
    steps: int | None = None,
    lr: float | None = None,
    width: int | None = None,
    depth: int = 1,
    activation: str | Callable[[], nn.Module] = "silu",
    optimizer: str | OptimizerFactory = "adam",
    n_points: int = 100,
    seed: int | None = None,
    every: int = 1,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Run:
    """Fit a perceptron to `target` on [-1, 1] by full-batch training and record the run.

    The loss is the mean squared error on `n_points` equispaced points. What is left out is taken from `preset`;
    the defaults reproduce the curves of Liu's post "Seeing sticky plateau" (2026) on `"x"`, `"x^2"`, `"x^3"`
    and `"sin(3x)"`. Interrupting the kernel (Ctrl-C) ends training and returns the run so far.

    Args:
        target: a formula in x such as `"2x^3 - x"`, or a function from a tensor `(n_points,)` to as many values.
        preset: `"post"` (8 units, lr 0.01, seed 52, for `"x^2"` 56) or `"robust"` (64 units, lr 0.001, seed 0).
        steps: number of updates; 200 for `"x"`, 500 for `"x^2"`, otherwise 2000.
        lr: learning rate.
        width: units in each hidden layer.
        depth: number of hidden layers.
        activation: `"tanh"`, `"silu"`, `"relu"`, `"gelu"` or a module factory.
        optimizer: `"adam"`, `"adamw"`, `"sgd"` (momentum 0.9), `"rmsprop"`, a class of `torch.optim`, or a
            function from the parameters to an optimizer, which then sets its own learning rate.
        n_points: number of training points.
        seed: of the initialization. PyTorch's global random state is neither used nor changed.
        every: record one step in `every`; the last one is always recorded.
        dtype: `torch.float32` or `torch.float64`.
        progress: show a progress bar when training takes more than a second.

    Returns:
        The run. If the loss stops being finite, the run is kept up to the last finite step and says so, in
        `run.note` and in a `RuntimeWarning`.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a target that is no formula, a number out of its range, an unknown preset, activation or
            optimizer, a net that is not one and the same in training and evaluation (dropout), a run that no memory
            holds, or a loss that is not finite at the very first step.

    Example:
        >>> run = train("x^3", steps=100, progress=False)
        >>> bool(run.loss[-1] < 0.03 < run.loss[0])
        True
    """
    training = build_training(
        target,
        preset=preset,
        steps=steps,
        lr=lr,
        width=width,
        depth=depth,
        activation=activation,
        optimizer=optimizer,
        n_points=n_points,
        seed=seed,
        every=every,
        dtype=dtype,
    )
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
    """All that a training needs, checked and built; `descend` carries it out, once."""

    model: nn.Module
    task: Task
    optimizer: Optimizer
    steps: int
    every: int
    settings: Mapping[str, Any]


def preset_for(target: Target, preset: str = "post") -> Preset:
    """What `train` takes where nothing is said.

    Raises:
        ValueError: an unknown preset.

    Example:
        >>> preset_for("x²")
        Preset(width=8, lr=0.01, seed=56, steps=500)
    """
    check_choice("preset", preset, PRESETS, advice="'post' is the default.")
    chosen = PRESETS[preset]
    name = normalize_formula(target).replace(" ", "") if isinstance(target, str) else ""
    if preset == "post":
        chosen = chosen._replace(seed=POST_SEEDS.get(name, chosen.seed))
    return chosen._replace(steps=POST_STEPS.get(name, chosen.steps))


def build_training(
    target: Target,
    *,
    preset: str = "post",
    steps: int | None = None,
    lr: float | None = None,
    width: int | None = None,
    depth: int = 1,
    activation: str | Callable[[], nn.Module] = "silu",
    optimizer: str | OptimizerFactory = "adam",
    n_points: int = 100,
    seed: int | None = None,
    every: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Training:
    """Check the arguments of `train` and build what they describe; nothing is trained yet.

    Raises:
        ValueError, TypeError: as `train` does.
    """
    task = build_task(target, n_points=n_points, dtype=dtype)  # first: what is no target may be of any length
    defaults = preset_for(target, preset)
    steps = defaults.steps if steps is None else steps
    steps = check_int("steps", steps, 1, advice="The post trains 200 to 2000 steps.")
    every = check_int("every", every, 1, advice="With 1 every step is recorded.")
    width = defaults.width if width is None else width
    seed = defaults.seed if seed is None else seed
    model = build_mlp(width=width, depth=depth, activation=activation, dtype=dtype, seed=seed)
    check_memory(model, steps, every, MAX_BYTES)
    check_same_loss(model, task)
    built = build_optimizer(optimizer, model, lr=lr, default_lr=defaults.lr)
    rate = built.param_groups[0].get("lr")  # an optimizer of one's own may have none
    settings = {
        "target": task.name,
        "width": int(width),
        "depth": int(depth),
        "activation": activation if isinstance(activation, str) else "own",
        "optimizer": optimizer if isinstance(optimizer, str) else type(built).__name__,
        "lr": None if rate is None else float(rate),
        "steps": steps,
        "seed": int(seed),
    }
    return Training(model, task, built, steps, every, settings)


def check_memory(model: nn.Module, steps: int, every: int, n_bytes: int) -> None:
    """Refuse a run whose recorded weights would take more than so many bytes, in float32.

    Raises:
        ValueError: they would.
    """
    n_params, n_rows = sum(parameter.numel() for parameter in model.parameters()), steps // every + 1
    if 4 * n_params * n_rows > n_bytes:
        raise ValueError(
            f"`steps` times the number of weights must stay below {n_bytes // 4:,}, got {n_rows:,} x {n_params:,}. "
            "Take fewer, or record fewer with lv.train(..., every=10) and pass the run."
        )


def run_training(training: Training, *, on_step: Callable[[int, float], object]) -> Run:
    """Take the updates; every row is the weights before an update and the loss at just those weights.

    Args:
        training: from `build_training`; its model is trained in place.
        on_step: called with each step and its loss. A `KeyboardInterrupt`, raised there or sent to the kernel, ends
            training with the run so far; anything else that it raises is passed on.

    Raises:
        ValueError: the loss is not finite at the very first step.
    """
    model, task, optimizer, steps, every, settings = training

    def closure() -> float:
        optimizer.zero_grad()
        loss = task.loss(model)
        loss.backward()
        return loss.item()

    rows: list[tuple[int, Tensor, float]] = []
    layout, parameters = parameter_layout(model), dict(model.named_parameters())
    note = ""
    try:
        for t in range(steps + 1):
            weights = layout.join(parameters)
            # A closure serves every optimizer, L-BFGS too; what step() returns is the loss before the update.
            loss = _step(optimizer, closure) if t < steps else task.loss(model).item()
            if not (math.isfinite(loss) and weights.isfinite().all()):
                note = _note_divergence(loss, t)
                break
            if rows and rows[-1][0] % every:
                rows.pop()  # it was only kept in case it should be the last
            rows.append((t, weights, loss))
            on_step(t, loss)
    except KeyboardInterrupt:
        if not rows:
            raise
        note = f"Training was interrupted; the run is kept up to step {rows[-1][0]} of {steps}."
    if note:
        vector_to_parameters(rows[-1][1], model.parameters())
    return Run(
        weights=torch.stack([weights for _, weights, _ in rows]).numpy(),
        loss=np.array([loss for _, _, loss in rows]),
        step=np.array([t for t, _, _ in rows]),
        objective=Objective(model, task.loss),
        task=task,
        note=note,
        settings=settings,
    )


def _step(optimizer: Optimizer, closure: Callable[[], float]) -> float:
    try:
        return optimizer.step(closure)  # type: ignore[return-value, arg-type]
    except RuntimeError as error:
        raise ValueError(
            f"`optimizer` must be able to update this net; {type(optimizer).__name__} says: "
            f"{first_line(error)}. Use another one, such as 'adam'."
        ) from error


def _note_divergence(loss: float, step: int) -> str:
    if step == 0:
        raise ValueError(
            f"The loss on `target` must be finite before training, it is {loss}. Choose one with smaller values."
        )
    return (
        f"The loss became {loss} at step {step}; the run is kept up to step {step - 1}. "
        "Lower `lr` to train on without diverging."
    )


LABELS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD + momentum", "rmsprop": "RMSprop"}

Optimizers = Sequence[str | OptimizerFactory] | Mapping[str, str | OptimizerFactory]


def compare(target: Target, optimizers: Optimizers = ("adam", "sgd", "rmsprop"), **settings: Any) -> list[Run]:
    """Train one network on one task with several optimizers, each from the same first weights.

    The runs go together wherever one goes: `landscape(runs)` draws them on one plane, `Explorer(runs)` lets them race.

    Args:
        target: as for `train`.
        optimizers: names, classes of `torch.optim` or functions of the parameters, as for `train`; in a dict by the
            names that the legend shall show.
        settings: anything else that `train` takes; the same for all.

    Returns:
        One run for each, in that order.

    Raises:
        TypeError, ValueError: as `train` does; no optimizer, or no list of them.

    Example:
        >>> runs = compare("x^2", ["adam", "sgd"], steps=20, progress=False)
        >>> [run.name for run in runs], bool((runs[0].weights[0] == runs[1].weights[0]).all())
        (['Adam', 'SGD + momentum'], True)
    """
    advice = 'Pass a list such as ["adam", "sgd"], or leave it out for three of them.'
    check_type("optimizers", optimizers, (Sequence, Mapping), "a list or a dict", advice=advice)
    if isinstance(optimizers, str) or not optimizers:
        raise ValueError(f"`optimizers` must hold at least one, got {optimizers!r}. {advice}")
    chosen = list(optimizers.values() if isinstance(optimizers, Mapping) else optimizers)
    names = (
        list(map(str, optimizers)) if isinstance(optimizers, Mapping) else number_names(map(_label_optimizer, chosen))
    )
    runs = [train(target, optimizer=one, **settings) for one in chosen]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _label_optimizer(optimizer: str | OptimizerFactory) -> str:
    if isinstance(optimizer, str):
        return LABELS.get(optimizer, optimizer)
    return str(getattr(optimizer, "__name__", type(optimizer).__name__))
