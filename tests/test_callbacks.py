"""The callbacks of Lightning and transformers, in real trainings."""

import importlib
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import register_optimizer_step_post_hook

from loss_viz.runs.run import Run

# Deprecation warnings come from the frameworks. RuntimeWarnings come from loss_viz: weights that are not finite, models
# that vmap cannot batch, updates that change nothing.
pytestmark = pytest.mark.filterwarnings("ignore", "error::RuntimeWarning")

UPDATES = 12


class LightningHouse:
    """A network with dropout, batch normalization and shuffled batches, so that any side effect changes the result."""

    def __init__(self, pl):
        class Net(pl.LightningModule):
            def __init__(self, width=5, lr=0.1):
                super().__init__()
                self.save_hyperparameters()
                self.layers = nn.Sequential(
                    nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1)
                )

            def loss(self, x):
                return (self.layers(x)[:, 0] - x.prod(dim=1)).square().mean()

            def training_step(self, x, index):
                loss = self.loss(x)
                self.log("loss", loss)
                return loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)

        class Fuse(pl.Callback):
            def __init__(self, error):
                self.error = error

            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 5:
                    raise self.error

        self.pl, self.Net, self.Fuse = pl, Net, Fuse
        self.Callback = importlib.import_module("loss_viz.lightning").RecorderCallback
        self.name, self.packages = "lightning", ("lightning", "pytorch_lightning")
        self.interrupt = SystemExit  # what Lightning makes of Ctrl+C
        self.x = torch.linspace(-1, 1, 72).reshape(24, 3).cos()

    def loss_fn(self, module):
        return module.loss(self.x)

    def build(self, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.Net(**settings)

    def train(self, model, folder, *callbacks, accumulate=1, save_every=None, **settings):
        saver = self.pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=save_every, save_top_k=-1, save_last=True)
        trainer = self.pl.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=2 * accumulate,
            accumulate_grad_batches=accumulate,
            callbacks=[*callbacks, *([saver] if save_every else [])],
            logger=False,
            enable_checkpointing=bool(save_every),
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            trainer.fit(model, torch.utils.data.DataLoader(self.x, batch_size=4, shuffle=True))

    def diverge(self, folder, callback):
        model = self.build(lr=1e30)
        self.train(model, folder, callback)
        return model


class TransformersHouse:
    """A language model of 11 tokens with tied weights and dropout."""

    def __init__(self, transformers):
        class Fuse(transformers.TrainerCallback):
            def __init__(self, error):
                self.error = error

            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    raise self.error

        self.transformers, self.Fuse = transformers, Fuse
        self.Callback = importlib.import_module("loss_viz.transformers").RecorderCallback
        self.name, self.packages = "transformers", ("transformers",)
        self.interrupt = KeyboardInterrupt
        self.tokens = torch.randint(11, (24, 8), generator=torch.Generator().manual_seed(0))
        self.data = [{"input_ids": row, "labels": row} for row in self.tokens]

    def loss_fn(self, model):
        return model(input_ids=self.tokens, labels=self.tokens).loss

    def build(self):
        config = self.transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=11, n_positions=8)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.transformers.GPT2LMHeadModel(config)

    def train(self, model, folder, *callbacks, accumulate=1, save_every=None, **settings):
        args = self.transformers.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=2 * accumulate,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulate,
            **{"learning_rate": 1e-2, "save_strategy": "steps" if save_every else "no", **settings},
            save_steps=save_every or 500,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        with torch.random.fork_rng():
            trainer = self.transformers.Trainer(
                model, args, train_dataset=self.data, eval_dataset=self.data, callbacks=list(callbacks)
            )
            trainer.remove_callback(self.transformers.PrinterCallback)
            trainer.train()

    def diverge(self, folder, callback):
        model = self.build()
        self.train(model, folder, callback, learning_rate=1e38, max_grad_norm=0, lr_scheduler_type="constant")
        return model


@pytest.fixture(scope="module")
def lightning():
    return LightningHouse(pytest.importorskip("lightning.pytorch"))


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("accelerate")
    return TransformersHouse(pytest.importorskip("transformers"))


@pytest.fixture(params=["lightning", "transformers"])
def framework(request):
    return request.getfixturevalue(request.param)


def flatten(model):
    return parameters_to_vector(model.parameters()).detach().numpy().copy()


def check_losses(framework, run):
    """Compare the loss of each row with `loss_fn` of a model with these weights and buffers."""
    model = framework.build().eval()
    buffers = [dict(model.named_buffers())[entry.name] for entry in run.objective.buffer_layout.entries]
    expected = []
    for row in range(len(run)):
        vector_to_parameters(torch.from_numpy(run.weights[row].copy()), model.parameters())
        if run.buffers is not None:
            values = torch.from_numpy(run.buffers[row].copy()).split([buffer.numel() for buffer in buffers])
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value.reshape(buffer.shape))
        with torch.no_grad():
            expected.append(framework.loss_fn(model).item())
    np.testing.assert_allclose(run.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_records_each_update_without_changing_the_training(framework, accumulate, tmp_path):
    plain, recorded = framework.build(), framework.build()
    start = flatten(recorded)
    callback = framework.Callback(framework.loss_fn, name="mine")
    framework.train(plain, tmp_path, accumulate=accumulate)
    framework.train(recorded, tmp_path, callback, accumulate=accumulate)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recorded.state_dict()[name]), name
    assert recorded.training == plain.training
    run = callback.run(progress=False)
    assert run.step.tolist() == list(range(UPDATES + 1))
    assert run.name == "mine"
    assert run.model is recorded
    assert run.loss[-1] < run.loss[0]
    np.testing.assert_array_equal(run.weights[0], start)
    np.testing.assert_array_equal(run.weights[-1], flatten(recorded))
    check_losses(framework, run)


def test_records_every_fifth_update_and_the_last(framework, tmp_path):
    every, some = framework.Callback(framework.loss_fn), framework.Callback(framework.loss_fn, every=5)
    model = framework.build()
    framework.train(model, tmp_path, every, some)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # what becomes of the model later is no part of the run
    rows = [0, 5, 10, UPDATES]
    assert some.run(progress=False).step.tolist() == rows
    np.testing.assert_array_equal(some.run(progress=False).weights, every.run(progress=False).weights[rows])


def test_norms_of_the_optimizer_are_recorded(framework, tmp_path):
    """The moments at the end are those that the optimizer still holds."""
    optimizers = []
    hook = register_optimizer_step_post_hook(lambda one, *_: optimizers.append(one))
    name = {"lightning": "momentum_buffer", "transformers": "exp_avg_sq"}[framework.name]
    callback = framework.Callback(framework.loss_fn, every=5, track=[name])
    framework.train(framework.build(), tmp_path, callback)
    hook.remove()
    run = callback.run(progress=False)
    norms = run.optimizer_state[name]
    assert np.isnan(norms).tolist() == [True, False, False, False]
    states = [optimizers[-1].state[p][name].double().numpy() for p in run.model.parameters()]
    np.testing.assert_allclose(norms[-1], np.sqrt(sum((state**2).sum() for state in states)), rtol=1e-12)
    assert len(set(norms[1:])) == 3


def test_snapshots_on_disk_are_the_same_run(framework, tmp_path):
    callback = framework.Callback(framework.loss_fn, folder=tmp_path / "snapshots")
    framework.train(framework.build(), tmp_path / "else", callback)
    run = callback.run(progress=False)
    again = Run.from_checkpoints(framework.build(), framework.loss_fn, tmp_path / "snapshots", progress=False)
    np.testing.assert_array_equal(again.step, np.arange(UPDATES + 1))
    np.testing.assert_array_equal(again.step, run.step)
    np.testing.assert_array_equal(again.weights[:], run.weights[:])
    np.testing.assert_allclose(again.loss, run.loss, rtol=1e-6)  # fused kernels round by where their tensors lie
    check_losses(framework, again)
    with pytest.raises(ValueError, match=r"`folder` must be a new or empty folder.*13 snapshots of another run"):
        framework.train(framework.build(), tmp_path / "else", callback)


def test_checkpoints_of_the_trainer_open_as_a_run(framework, tmp_path):
    callback = framework.Callback(framework.loss_fn)
    framework.train(framework.build(), tmp_path, callback, save_every=4)
    run = callback.run(progress=False)
    saved = Run.from_checkpoints(framework.build(), framework.loss_fn, tmp_path, progress=False)
    assert saved.step.tolist() == [4, 8, UPDATES]
    np.testing.assert_array_equal(saved.weights[:], run.weights[saved.step])
    np.testing.assert_allclose(saved.loss, run.loss[saved.step], rtol=1e-5)
    check_losses(framework, saved)


@pytest.mark.parametrize("every", [1, 3])
def test_an_exception_keeps_the_run_so_far(framework, every, tmp_path):
    callback = framework.Callback(framework.loss_fn, every=every)
    model = framework.build()
    with pytest.raises(RuntimeError, match="power failure"):
        framework.train(model, tmp_path, callback, framework.Fuse(RuntimeError("power failure")))
    run = callback.run(progress=False)
    assert run.step.tolist() == ([0, 1, 2, 3, 4, 5] if every == 1 else [0, 3, 5])
    np.testing.assert_array_equal(run.weights[-1], flatten(model))
    check_losses(framework, run)


def test_an_interrupt_keeps_the_run_so_far(framework, tmp_path):
    callback = framework.Callback(framework.loss_fn)
    handler = signal.getsignal(signal.SIGINT)  # Lightning leaves another
    try:
        with pytest.raises(framework.interrupt):
            framework.train(framework.build(), tmp_path, callback, framework.Fuse(KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert callback.run(progress=False).step.tolist() == [0, 1, 2, 3, 4, 5]


def test_each_training_is_recorded_separately(framework, tmp_path):
    callback = framework.Callback(framework.loss_fn)
    first, second = framework.build(), framework.build()
    framework.train(first, tmp_path, callback)
    earlier = callback.recorder
    framework.train(second, tmp_path, callback)
    assert earlier is not callback.recorder
    assert earlier.model is first
    assert callback.recorder.model is second
    assert earlier.step == callback.recorder.step == UPDATES
    np.testing.assert_array_equal(earlier.run(progress=False).loss, callback.run(progress=False).loss)


def test_divergence_warns_and_training_continues(framework, tmp_path):
    callback = framework.Callback(framework.loss_fn)
    with pytest.warns(RuntimeWarning, match="The weights are no longer finite at step"):
        model = framework.diverge(tmp_path, callback)
    assert not np.isfinite(flatten(model)).all()
    assert len(callback.recorder) < UPDATES


def test_run_before_a_training_raises(framework):
    with pytest.raises(
        ValueError, match=r"`run\(\)` needs a training that has .* call trainer\.(fit|train)\(\.*\) first"
    ):
        framework.Callback(framework.loss_fn).run()


def test_an_invalid_loss_stops_the_training_before_it_starts(framework, tmp_path):
    model = framework.build()
    start = flatten(model)
    with pytest.raises(ValueError, match="must return one number"):
        framework.train(model, tmp_path, framework.Callback(lambda m: framework.loss_fn(m)[None]))
    np.testing.assert_array_equal(flatten(model), start)


def test_a_missing_library_is_named_with_its_install_command(framework, monkeypatch):
    for package in framework.packages:
        monkeypatch.setitem(sys.modules, package, None)
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"loss_viz.{framework.name}")
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"loss_viz.{framework.name}")
    assert f"`{framework.packages[-1]}`" in str(caught.value)
    assert str(caught.value).endswith(f'Install it with: pip install "loss_viz[{framework.name}]"')


def test_both_lightning_packages_work(lightning, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning.pl)
    monkeypatch.delitem(sys.modules, "loss_viz.lightning")
    again = importlib.import_module("loss_viz.lightning").RecorderCallback
    assert again is not lightning.Callback
    assert issubclass(again, lightning.pl.Callback)


def test_lightning_detaches_from_the_optimizer(lightning, tmp_path):
    """Steps of the optimizer after the training are not recorded."""
    optimizers = []

    class Net(lightning.Net):
        def configure_optimizers(self):
            optimizers.append(super().configure_optimizers())
            return optimizers[-1]

    for fuse in ([], [lightning.Fuse(RuntimeError("power failure"))]):
        callback = lightning.Callback(lightning.loss_fn)
        model = Net()
        if fuse:
            with pytest.raises(RuntimeError, match="power failure"):
                lightning.train(model, tmp_path, callback, *fuse)
        else:
            lightning.train(model, tmp_path, callback)
        lightning.loss_fn(model).backward()
        optimizers[-1].step()
        assert callback.recorder.step == (5 if fuse else UPDATES)


def test_lightning_copies_the_module_without_its_trainer(lightning, tmp_path):
    seen = []

    def loss_fn(module):
        seen.append((module, module._trainer, module.training))
        return module.training_step(lightning.x, 0)  # which logs

    model = lightning.build()
    callback = lightning.Callback(loss_fn)
    lightning.train(model, tmp_path, callback)
    assert all(module is not model and trainer is None and not training for module, trainer, training in seen)
    check_losses(lightning, callback.run(progress=False))
    assert model.trainer.train_dataloader is not None


def test_lightning_with_two_optimizers_counts_each_update(lightning, tmp_path):
    class Net(lightning.Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, x, index):
            often, seldom = self.optimizers()
            self.loss(x).backward()
            often.step()
            if index % 2:
                seldom.step()
                often.zero_grad()
                seldom.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.layers[i].parameters(), lr=0.1) for i in (0, 3)]

    callback = lightning.Callback(lightning.loss_fn)
    model = Net()
    lightning.train(model, tmp_path, callback)
    run = callback.run(progress=False)
    assert run.step.tolist() == list(range(UPDATES + 1))
    np.testing.assert_array_equal(run.weights[-1], flatten(model))
    check_losses(lightning, run)


def test_lightning_without_an_optimizer_raises(lightning, tmp_path):
    class Net(lightning.Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return []

    with pytest.raises(ValueError, match="`configure_optimizers` must return an optimizer"):
        lightning.train(Net(), tmp_path, lightning.Callback(lightning.loss_fn))


def test_only_the_first_process_records(framework, tmp_path, monkeypatch):
    callback = framework.Callback(framework.loss_fn, folder=tmp_path / "snapshots")
    if framework.name == "lightning":
        monkeypatch.setattr(framework.pl.Trainer, "is_global_zero", False)
    else:
        monkeypatch.setattr(framework.transformers.Trainer, "is_world_process_zero", lambda self: False)
    framework.train(framework.build(), tmp_path, callback)
    assert callback.recorder is None
    assert not (tmp_path / "snapshots").exists()


def test_mixed_precision_training_is_evaluated_in_full_precision(framework, tmp_path):
    """Half precision has three digits: a loss evaluated in it would be off by far more than 1e-5."""
    settings = {"precision": "bf16-mixed"} if framework.name == "lightning" else {"bf16": True}
    plain, model = framework.build(), framework.build()
    callback = framework.Callback(framework.loss_fn)
    framework.train(plain, tmp_path, **settings)
    framework.train(model, tmp_path, callback, **settings)
    np.testing.assert_array_equal(flatten(plain), flatten(model))
    assert vars(plain).keys() == vars(model).keys()
    run = callback.run(progress=False)
    assert run.step.tolist() == list(range(UPDATES + 1))
    check_losses(framework, run)


def test_lightning_does_not_count_updates_that_are_skipped(lightning, tmp_path):
    """Gradients that overflow in half precision are skipped, and the scale is halved."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    plugin = lightning.pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback = lightning.Callback(lightning.loss_fn)
    model = lightning.build()
    lightning.train(model, tmp_path, callback, plugins=[plugin])
    skipped = round(np.log2(2.0**24 / scaler.get_scale()))
    assert 0 < skipped < UPDATES
    run = callback.run(progress=False)
    assert run.step.tolist() == list(range(UPDATES - skipped + 1))
    assert np.ptp(run.weights[1:] - run.weights[:-1], axis=1).all()
    np.testing.assert_array_equal(run.weights[-1], flatten(model))
    check_losses(lightning, run)


def test_transformers_forward_pass_is_restored_after_an_error(transformers, tmp_path):
    model = transformers.build()
    with pytest.raises(ValueError, match="must return one number"):
        transformers.train(model, tmp_path, transformers.Callback(lambda m: transformers.loss_fn(m)[None]), bf16=True)
    assert hasattr(model.forward, "__wrapped__")
    assert model.forward != model._original_forward


def test_transformers_ends_before_the_best_model_is_loaded(transformers, tmp_path):
    every, some = transformers.Callback(transformers.loss_fn), transformers.Callback(transformers.loss_fn, every=5)
    model = transformers.build()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    transformers.train(model, tmp_path, every, some, **best, **strategies)
    run = some.run(progress=False)
    assert run.step.tolist() == [0, 5, 10, UPDATES]
    np.testing.assert_array_equal(run.weights, every.run(progress=False).weights[run.step])
    np.testing.assert_array_equal(every.run(progress=False).weights[UPDATES // 2], flatten(model))
    check_losses(transformers, run)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_transformers_unwraps_the_model(transformers, wrap, tmp_path):
    library = transformers.transformers
    args = library.TrainingArguments(output_dir=tmp_path, use_cpu=True, report_to="none")
    model, callback = transformers.build(), transformers.Callback(transformers.loss_fn)
    callback.on_train_begin(args, library.TrainerState(), library.TrainerControl(), model=wrap(model))
    assert callback.recorder.model is model
