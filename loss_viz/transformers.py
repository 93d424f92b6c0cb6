"""Record a training under Hugging Face's Trainer: one callback, and the model stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from loss_viz.runs.recorder import CallbackRecorder

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.modeling_utils import unwrap_model
except ModuleNotFoundError as error:
    raise ImportError(
        f"`loss_viz.transformers` needs Hugging Face's library, `transformers` cannot be imported ({error}). "
        'Install it with: pip install "transformers[torch]"'
    ) from error


class RecorderCallback(CallbackRecorder, TrainerCallback):
    """Records the weights of a model while a `transformers.Trainer` trains it.

    When the training begins it makes a `Recorder` of the model without its wrappers; it counts the Trainer's own
    steps, one for each update however many batches are accumulated in it. A training that an exception or Ctrl+C cuts
    short is a run up to there. Each `trainer.train()` is a recording of its own and counts from 0, one that resumes
    from a checkpoint included; with `folder` each needs a new folder.

    With several processes the first one records. Weights that are sharded (FSDP, DeepSpeed) are not gathered.

    Args:
        loss_fn: any `loss_fn(model) -> scalar tensor`, such as `lambda m: m(**batch).loss`, on a fixed set of data on
            the model's device. It is called on a private copy of the model in evaluation mode, without autocast.
        every: record one update in so many; the last one is always in the run.
        max_snapshots: how many to keep at most, see `Recorder`.
        folder: a new or empty folder for the snapshots, which `Run.from_checkpoints` opens.
        device: where the losses are evaluated; that of the model by default.
        name: what the run is called in a legend.

    Attributes:
        recorder: the `Recorder` of the latest training; None before the first.

    Raises:
        TypeError, ValueError: when the training begins: as `Recorder` does.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments
        >>> from loss_viz.transformers import RecorderCallback
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=11, n_positions=8))
        >>> tokens = torch.arange(64).reshape(8, 8) % 11
        >>> callback = RecorderCallback(lambda m: m(tokens.to(m.device), labels=tokens.to(m.device)).loss)
        >>> with TemporaryDirectory() as folder:
        ...     settings = {"max_steps": 5, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        ...     args = TrainingArguments(folder, use_cpu=True, dataloader_pin_memory=False, **settings)
        ...     data = [{"input_ids": row, "labels": row} for row in tokens]
        ...     trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> run = callback.run()
        >>> run.step.tolist(), run.weights.shape == (6, model.num_parameters())
        ([0, 1, 2, 3, 4, 5], True)
    """

    _nothing = (
        "`run()` needs a training that has begun, this callback has seen none. Hand it to "
        "Trainer(..., callbacks=[...]) and call trainer.train() first; of several processes the first one "
        "records."
    )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the recorder: that is step 0."""
        if state.is_world_process_zero:
            given = kwargs["model"]
            model = unwrap_model(getattr(given, "_orig_mod", given))
            with _own_forward(model):
                self.recorder = self._make(model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note an update."""
        if self.recorder is not None:
            self.recorder.record()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last weights before the Trainer puts the best ones in their place."""
        if args.load_best_model_at_end:
            self._finish()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last weights."""
        self._finish()


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The model as it was before accelerate put autocast around its forward pass, which a copy would keep."""
    wrapped = vars(model).get("forward")
    original = vars(model).get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    vars(model)["forward"] = original
    try:
        yield
    finally:
        vars(model)["forward"] = wrapped
