"""A Lightning callback that records a training."""

from loss_viz._validation import extra_error
from loss_viz.runs.recorder import CallbackRecorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        what = "`loss_viz.lightning` needs Lightning, neither `lightning` nor `pytorch_lightning` can be imported"
        raise extra_error(what, error, "lightning") from error


class RecorderCallback(CallbackRecorder, Callback):
    """Records the weights of a LightningModule during training.

    At the start of `trainer.fit`, when module and optimizers are on their devices, it creates a `Recorder` and attaches
    it to the optimizers: a step is one update of the weights, also with gradient accumulation, mixed precision and
    manual optimization; several optimizers are followed as by `Recorder.attach`. It detaches at the end, also after an
    exception or Ctrl+C, and the steps recorded until then are the run. Each `trainer.fit` is recorded separately and
    counts from 0; with `folder` each needs a new folder.

    With several processes the first one records. Sharded weights (FSDP, DeepSpeed) are not gathered. Callbacks that
    replace the weights at the end, such as `StochasticWeightAveraging`, must come after this one in the list.

    Args:
        loss_fn: any `loss_fn(module) -> scalar tensor`, on a fixed set of data on the module's device. It is called on
            a private copy of the module, in evaluation mode and without a trainer. `lambda m: m.training_step(batch,
            0)` works; Lightning warns that values logged there are ignored.
        every, max_snapshots, folder, track, device, name: as for `Recorder`.

    Attributes:
        recorder: `Recorder` of the latest training; None before the first.

    Raises:
        TypeError, ValueError: at the start of training, as `Recorder`, or if there is no optimizer.

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
        >>> warnings.simplefilter("ignore")  # from Lightning itself
        >>> trainer.fit(Line(), torch.utils.data.DataLoader(x, batch_size=20))
        >>> run = callback.run()
        >>> len(run), int(run.step[-1]), bool(run.loss[-1] < run.loss[0])
        (31, 30, True)
    """

    _no_training = (
        "`run()` needs a training that has started, this callback has seen none. Pass it to "
        "Trainer(callbacks=[...]) and call trainer.fit(...) first; of several processes the first one records."
    )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the recorder; this is step 0."""
        if not trainer.is_global_zero:
            return
        if not trainer.optimizers:
            raise ValueError(
                "`configure_optimizers` must return an optimizer, whose steps are recorded, it returned none. "
                "Return it there, or use loss_viz.Recorder and call recorder.record() after each update."
            )
        self.recorder = self._make(pl_module).attach(*trainer.optimizers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the optimizer and record the last weights."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the optimizer and record the weights at the time of the exception."""
        self._finish()
