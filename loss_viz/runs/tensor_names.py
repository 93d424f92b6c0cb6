"""Names of tensors: in a model, and in the files of its checkpoints."""

import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from loss_viz._validation import argument_error
from loss_viz.objective.layout import ParameterLayout, TensorSpec

WRAPPERS = ("state_dict", "model_state_dict", "model")

# Parts of a name that wrappers add: torch.compile, data parallelism, FSDP, and checkpointed activations.
WRAPPED = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

MAX_CONFIG = 2**20

REPAIR = "build `model` as it was when this checkpoint was written, or leave the file out."


def unwrap_names(names: Iterable[str]) -> dict[str, str]:
    """Return names without the parts that wrappers add, by the given ones; those that would then be equal are kept.

    Example:
        >>> unwrap_names(["body._orig_mod.0.weight", "module.bias", "bias"])
        {'body._orig_mod.0.weight': 'body.0.weight', 'module.bias': 'module.bias', 'bias': 'bias'}
    """
    plain = {name: WRAPPED.sub("", name) for name in names}
    counts = Counter(plain.values())
    return {name: short if counts[short] == 1 else name for name, short in plain.items()}


def add_file_names(layout: ParameterLayout, model: nn.Module) -> ParameterLayout:
    """Return the layout of a model's tensors with the names that they have in files, in addition to those in the model.

    Names in files are read without the parts that wrappers add, and PEFT writes those of an adapter without its name.
    """
    known = unwrap_names(_all_names(model)), _name_adapters(model)

    def add(names: tuple[str, ...]) -> tuple[str, ...]:
        others = [table[name] for table in known for name in names if name in table]
        return tuple(dict.fromkeys([*names, *others]))

    entries = tuple(entry._replace(names=add(entry.names)) for entry in layout.entries)
    return replace(layout, entries=entries)


def _all_names(model: nn.Module) -> list[str]:
    named = *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
    return [name for name, _ in named]


def _name_adapters(model: nn.Module) -> dict[str, str]:
    """Return the names that PEFT writes for the parameters of adapters, by their names in the model."""
    peft: Any = sys.modules.get("peft")
    names: dict[str, str] = {}
    for prefix, module in model.named_modules() if peft else ():
        if isinstance(module, peft.PeftModel):
            stored = peft.get_peft_model_state_dict(
                module, adapter_name=module.active_adapter, save_embedding_layers=False
            )
            places = {tensor.data_ptr(): name for name, tensor in stored.items()}
            inside = module.named_parameters(prefix=prefix, remove_duplicate=False)
            names |= {name: places[p.data_ptr()] for name, p in inside if p.data_ptr() in places}
    return names


def check_base(path: Path, model: nn.Module) -> None:
    """Check that an adapter in a folder of PEFT was trained on the base that the model has.

    Raises:
        ValueError: if both name their bases, and the names differ.
    """
    stored = _read_base(path / "adapter_config.json")
    for config in (config for module in model.modules() for config in getattr(module, "peft_config", {}).values()):
        named = getattr(config, "base_model_name_or_path", None)
        if stored and named and stored != named:
            raise argument_error(
                "model",
                f"`model` must have the base of the adapter in {path}, {stored!r}; it has {named!r}. Build it on that "
                "base.",
            )


def _read_base(config: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        if config.stat().st_size < MAX_CONFIG:
            return json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None


def match_names(path: Path, stored: Mapping[str, Any], entries: Sequence[TensorSpec]) -> list[str]:
    """Return the name of each tensor of a layout in a checkpoint.

    Raises:
        ValueError: if some are missing, or the checkpoint holds the model twice.
    """
    complete = find_complete(stored, entries)
    if not complete:
        raise ValueError(_explain_missing(path, stored, entries))
    if len(complete) > 1:
        where = join_some([repr(prefix) for prefix in complete])
        raise ValueError(
            f"{path} must hold `model` once, it does under {where}. Choose one, as in key={min(complete)[:-1]!r}, "
            f"or {REPAIR}"
        )
    [found] = complete.values()
    return [found[entry.name] for entry in entries]


def find_complete(stored: Collection[str], entries: Sequence[TensorSpec]) -> dict[str, dict[str, str]]:
    """Return the most usual prefixes under which a checkpoint holds every tensor, each with the names in the file."""
    found = {prefix: _find_keys(stored, prefix, entries) for prefix in find_prefixes(stored, entries[0])}
    complete = sorted((prefix for prefix, keys in found.items() if len(keys) == len(entries)), key=_rank)
    return {prefix: found[prefix] for prefix in complete if _rank(prefix)[0] == _rank(complete[0])[0]}


def _explain_missing(path: Path, stored: Collection[str], entries: Sequence[TensorSpec]) -> str:
    prefixes = sorted({""}.union(*(find_prefixes(stored, entry) for entry in entries)), key=_rank)
    best = max((_find_keys(stored, prefix, entries) for prefix in prefixes), key=len)
    missing = join_some([repr(entry.name) for entry in entries if entry.name not in best])
    present = join_some([repr(name) for name in stored]) or "no tensors"
    return f"{path} must hold every tensor of `model`: it lacks {missing}, and holds {present}; {REPAIR}"


def _find_keys(stored: Collection[str], prefix: str, entries: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the names in a checkpoint of the tensors with a given prefix, by their first name in the model."""
    return {e.name: prefix + name for e in entries for name in reversed(e.names) if prefix + name in stored}


def find_prefixes(stored: Collection[str], entry: TensorSpec) -> set[str]:
    """Return all prefixes with which a checkpoint holds a tensor under one of its names."""
    return {key.removesuffix(n) for n in entry.names for key in stored if key == n or key.endswith(f".{n}")}


def _rank(prefix: str) -> tuple[list[int], str]:
    """Return a sort key: no prefix first, then the usual wrappers, then any other prefix."""
    return [WRAPPERS.index(part) if part in WRAPPERS else len(WRAPPERS) for part in prefix.split(".")[:-1]], prefix


def join_some(texts: Sequence[str]) -> str:
    """Join the first few texts, and tell how many more there are."""
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
