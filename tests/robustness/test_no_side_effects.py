"""What belongs to the user is as it was after every public call, also after one that fails."""

import copy
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv

X = torch.linspace(-1, 1, 24)[:, None]


class Failing(Exception):
    pass


class Theirs:
    """A model in the midst of a training, with all that hangs on it."""

    def __init__(self):
        torch.manual_seed(3)
        layers = [nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 6), nn.Linear(6, 1)]
        self.model = nn.Sequential(*layers)
        self.model[4].requires_grad_(False)
        self.model[1].eval()  # modes differ within the model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.01)
        self.n_allowed = 10**9
        self.step()

    def step(self):
        self.optimizer.zero_grad()
        (self.model(X) - X.sin()).square().mean().backward()
        self.optimizer.step()

    def loss_fn(self, model):
        self.n_allowed -= 1
        if self.n_allowed < 0:
            raise Failing
        return (model(X) - X.sin()).square().mean()

    def state(self):
        # Python's own random state is left out: the checker of shapes, which is on in tests, draws from it.
        tensors = [*self.model.state_dict().values(), *(p.grad for p in self.model.parameters() if p.grad is not None)]
        tensors += [t for slots in self.optimizer.state.values() for t in slots.values() if torch.is_tensor(t)]
        numpy_state = np.random.get_state()  # noqa: NPY002
        return [
            [t.clone() for t in (*tensors, torch.get_rng_state(), torch.from_numpy(numpy_state[1].astype(np.int64)))],
            [module.training for module in self.model.modules()],
            [p.requires_grad for p in self.model.parameters()],
            [id(p) for p in self.model.parameters()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self.model.modules()],
            len(self.optimizer._optimizer_step_post_hooks),
            numpy_state[2],
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        ]


def require_same(before, after):
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


@pytest.fixture(scope="module")
def theirs():
    return Theirs()


@pytest.fixture(scope="module")
def made(theirs, tmp_path_factory):
    """A run of the model, in memory and in a folder."""
    folder = tmp_path_factory.mktemp("run")
    recorders = [lv.Recorder(theirs.model, theirs.loss_fn), lv.Recorder(theirs.model, theirs.loss_fn, folder=folder)]
    for _ in range(12):
        theirs.step()
        for recorder in recorders:
            recorder.record()
    run = recorders[0].run()
    run.save(folder / "saved")
    return {"run": run, "folder": folder, "recorder": recorders[0], "land": lv.landscape(run, k=2, resolution=4)}


CALLS = {
    "Objective": lambda t, m: lv.Objective(t.model, t.loss_fn)(m["run"].weights[:3]),
    "Recorder": lambda t, m: lv.Recorder(t.model, t.loss_fn).record(),
    "recorder.run": lambda t, m: m["recorder"].run(),
    "predict": lambda t, m: m["run"].objective.predict(m["run"].weights[0], X),
    "hessian_vector_product": lambda t, m: m["run"].objective.hessian_vector_product(
        m["run"].weights[0], m["run"].weights[1]
    ),
    "from_checkpoints": lambda t, m: lv.Run.from_checkpoints(t.model, t.loss_fn, m["folder"]),
    "load_run": lambda t, m: lv.load_run(m["folder"] / "saved", t.model, t.loss_fn),
    "save": lambda t, m: m["run"].save(m["folder"] / "saved"),
    "fidelity": lambda t, m: lv.fidelity(m["land"]),
    "at": lambda t, m: m["land"].at(m["land"].path[:3] + 0.01),
    "plateaus": lambda t, m: lv.find_plateaus(m["run"]),
    "margin": lambda t, m: lv.measure_margin(m["run"]),
    "train": lambda t, m: lv.train("x", steps=5),
    "compare": lambda t, m: lv.compare("x", steps=5),
    **{
        f"landscape, {plane}": lambda t, m, plane=plane: lv.landscape(m["run"], k=2, resolution=3, plane=plane)
        for plane in ("local", "parallel", "flat")
    },
    **{
        f"landscape, {axes}": lambda t, m, axes=axes: lv.landscape(m["run"], resolution=3, axes=axes)
        for axes in ("random", "hessian", "saddle", ("PC1", "sharpest"), ("0", "5.weight"))
    },
    "landscape, metrics": lambda t, m: lv.landscape(
        m["run"], resolution=3, metrics={"size": lambda model: model[0].weight.square().sum()}
    ),
    "landscape, losses": lambda t, m: lv.landscape(m["run"], resolution=3, blend="losses"),
    "network_at": lambda t, m: m["land"].network_at(m["land"].path[3])(X),
    "several": lambda t, m: lv.landscape([m["run"], m["run"]], k=2, resolution=3),
    "surface_figure": lambda t, m: lv.surface_figure(m["land"]),
    "contour_figure": lambda t, m: lv.contour_figure(m["land"]),
    "loss_curve_figure": lambda t, m: lv.loss_curve_figure(m["run"]),
    "compare_figure": lambda t, m: lv.compare_figure(m["land"]),
    "animate": lambda t, m: lv.animate(m["land"]),
    "Explorer": lambda t, m: explore(m["run"]),
}


def explore(run):
    panel = lv.Explorer(run, k=2, resolution=4)
    panel.wait(60.0)
    panel.axes = "hessian"
    panel.wait(60.0)
    panel.close()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_the_users_changes(theirs, made, name):
    before = theirs.state()
    CALLS[name](theirs, made)
    require_same(before, theirs.state())


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot batch")  # it may fail just when that is tried
@pytest.mark.parametrize("n_allowed", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "name", ["Objective", "Recorder", "recorder.run", "from_checkpoints", "load_run", "at", "Explorer"]
)
def test_nor_by_a_loss_that_fails_in_the_midst(theirs, made, name, n_allowed):
    before = theirs.state()
    theirs.n_allowed = n_allowed
    with suppress(Failing):
        CALLS[name](theirs, made)
    theirs.n_allowed = 10**9
    require_same(before, theirs.state())
    np.testing.assert_allclose(
        made["run"].objective(made["run"].weights, made["run"].buffers), made["run"].loss, rtol=1e-5
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t, m: lv.Objective(t.model, lambda model: model(X)),
        lambda t, m: lv.Objective(t.model, lambda model: nn.functional.dropout(model(X), training=True).mean()),
        lambda t, m: lv.Recorder(t.model, lambda model: model(X).mean() * float("nan")),
        lambda t, m: lv.Recorder(t.model, t.loss_fn, device="nowhere"),
        lambda t, m: lv.Run.from_checkpoints(t.model, t.loss_fn, m["folder"] / "nothing"),
        lambda t, m: lv.landscape(m["run"], k=99),
    ],
)
def test_nor_by_what_is_refused(theirs, made, wrong):
    before = theirs.state()
    with pytest.raises(ValueError, match=r"must|needs"):
        wrong(theirs, made)
    require_same(before, theirs.state())


def test_nor_does_a_recorded_training_differ_after_landscapes_on_the_way():
    ends = []
    for looks in (False, True):
        theirs = Theirs()
        recorder = lv.Recorder(theirs.model, theirs.loss_fn) if looks else None
        for i in range(12):
            theirs.step()
            if recorder is not None:
                recorder.record()
                if i == 7:
                    for axes in ("pca", "hessian"):
                        lv.landscape(recorder.run(), k=2, resolution=3, axes=axes)
        ends.append([*(copy.deepcopy(theirs.model).state_dict().values()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
