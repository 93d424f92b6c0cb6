"""A callback for Hugging Face's Trainer that records a training."""

from typing import Any

from loss_viz._validation import extra_error
from loss_viz.runs.recorder import CallbackRecorder

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.modeling_utils import unwrap_model
except ModuleNotFoundError as error:
    what = "`loss_viz.transformers` needs Hugging Face's library, `transformers` cannot be imported"
    raise extra_error(what, error, "transformers") from error


class RecorderCallback(CallbackRecorder, TrainerCallback):
    """Records the weights of a model during training by a `transformers.Trainer`.

    At the start of training it creates a `Recorder` for the model without its wrappers. It counts the Trainer's steps:
    one per update, however many batches are accumulated. After an exception or Ctrl+C the run ends at the last step.
    Each `trainer.train()` is recorded separately and counts from 0, also when it resumes from a checkpoint; with
    `folder` each needs a new folder.

    With several processes the first one records. Sharded weights (FSDP, DeepSpeed) are not gathered.

    Args:
        loss_fn: any `loss_fn(model) -> scalar tensor`, such as `lambda m: m(**batch).loss`, on a fixed set of data on
            the model's device. It is called on a private copy of the model in evaluation mode, without autocast.
        every, max_snapshots, folder, track, device, name: as for `Recorder`.

    Attributes:
        recorder: `Recorder` of the latest training; None before the first.

    Raises:
        TypeError, ValueError: at the start of training, as `Recorder`.

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

    _no_training = (
        "`run()` needs a training that has started, this callback has seen none. Pass it to "
        "Trainer(..., callbacks=[...]) and call trainer.train() first; of several processes the first one records."
    )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Create the recorder; this is step 0."""
        if state.is_world_process_zero:
            given = kwargs["model"]
            model = unwrap_model(getattr(given, "_orig_mod", given))
            self.recorder = self._make(model)
            if self.recorder.track and kwargs.get("optimizer") is not None:
                self.recorder.follow(kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count one update."""
        if self.recorder is not None:
            self.recorder.record()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last weights before the Trainer replaces them by the best ones."""
        if args.load_best_model_at_end:
            self._finish()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last weights."""
        self._finish()
