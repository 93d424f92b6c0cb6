"""Record a training under Lightning: one callback, and the module stays as it is."""

from loss_viz.runs.recorder import CallbackRecorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        raise ImportError(
            "`loss_viz.lightning` needs Lightning, neither `lightning` nor `pytorch_lightning` can be imported "
            f"({error}). Install it with: pip install lightning"
        ) from error


class RecorderCallback(CallbackRecorder, Callback):
    """Records the weights of a LightningModule while a Trainer trains it.

    At the start of `trainer.fit`, when module and optimizers are where they belong, it makes a `Recorder` and attaches
    it to the optimizer: a step is an update of the weights, with accumulated gradients, mixed precision and manual
    optimization, too. Of several optimizers it follows the last one. At the end it lets go, after an exception or
    Ctrl+C as well, and what was recorded until then is a run. Each `trainer.fit` that trains is a recording of its own
    and counts from 0; with `folder` each needs a new folder.

    With several processes the first one records. Weights that are sharded (FSDP, DeepSpeed) are not gathered. A
    callback that puts other weights into the module at the end, such as `StochasticWeightAveraging`, stands behind this
    one in the list.

    Args:
        loss_fn: any `loss_fn(module) -> scalar tensor`, on a fixed set of data on the module's device. It is called on
            a private copy of the module, in evaluation mode and without a trainer. `lambda m: m.training_step(batch,
            0)` will do; what it logs goes nowhere, of which Lightning warns.
        every: record one update in so many; the last one is always in the run.
        max_snapshots: how many to keep at most, see `Recorder`.
        folder: a new or empty folder for the snapshots, which `Run.from_checkpoints` opens.
        device: where the losses are evaluated; that of the module by default.
        name: what the run is called in a legend.

    Attributes:
        recorder: the `Recorder` of the latest training; None before the first.

    Raises:
        TypeError, ValueError: when the training starts: as `Recorder` does; there is no optimizer.

    Example:
        >>> import torch, warnings, lightning.pytorch as pl
        >>> from loss_viz.lightning import RecorderCallback
        >>> class Line(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...     def training_step(self, x, index):
        ...         return (self.layer(x) - 3 * x).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> callback = RecorderCallback(lambda m: m.training_step(x.to(m.device), 0))
        >>> trainer = pl.Trainer(max_epochs=30, accelerator="cpu", barebones=True, callbacks=[callback])
        >>> warnings.simplefilter("ignore")  # those of Lightning itself
        >>> trainer.fit(Line(), torch.utils.data.DataLoader(x, batch_size=20))
        >>> run = callback.run()
        >>> len(run), int(run.step[-1]), bool(run.loss[-1] < run.loss[0])
        (31, 30, True)
    """

    _nothing = (
        "`run()` needs a training that has started, this callback has seen none. Hand it to "
        "Trainer(callbacks=[...]) and call trainer.fit(...) first; of several processes the first one records."
    )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the recorder: that is step 0."""
        if not trainer.is_global_zero:
            return
        if not trainer.optimizers:
            raise ValueError(
                "`configure_optimizers` must return an optimizer, whose updates are recorded; it returned none. "
                "Return it there, or use loss_viz.Recorder and call recorder.record() after each update."
            )
        self.recorder = self._make(pl_module).attach(trainer.optimizers[-1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizer, with the last weights in the run."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizer, with the weights at which the training broke off."""
        self._finish()
