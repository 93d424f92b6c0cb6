"""Runs of PEFT's adapters: their folders, and the memory of a picture."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import loss_viz as lv

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # of other libraries

TOKENS = torch.arange(16).reshape(2, 8) * 7 % 50

CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    "DoRA": lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True),
    "LoRA of an embedding": lambda: peft.LoraConfig(r=2, target_modules=["wte"]),
    "LoRA and a trained layer": lambda: peft.LoraConfig(
        r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True
    ),
    "IA3": lambda: peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True),
}


def build(kind="LoRA", base=""):
    config = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, bos_token_id=None, eos_token_id=None))
        model.name_or_path = base
        return peft.get_peft_model(model, CONFIGS[kind]())


def loss(model):
    return model(input_ids=TOKENS, labels=TOKENS).loss


def train(model, folder, n_steps=6):
    """Train, save each step as PEFT does, and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(n_steps):
        model.eval()
        losses.append(loss(model).item())
        model.save_pretrained(folder / f"checkpoint-{10 * step}", save_embedding_layers=False)
        model.train()
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders_of_an_adapter_are_a_run(kind, tmp_path):
    losses = train(build(kind), tmp_path)
    run = lv.Run.from_checkpoints(build(kind), loss, tmp_path, progress=False)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-5)
    assert run.step.tolist() == [0, 10, 20, 30, 40, 50]
    assert run.check.passed


def test_an_adapter_of_another_base_is_refused(tmp_path):
    train(build(base="small"), tmp_path, n_steps=2)
    with pytest.raises(ValueError, match=r"`model` must have the base of the adapter in .*, 'small'; it has 'large'"):
        lv.Run.from_checkpoints(build(base="large"), loss, tmp_path)


def test_a_merged_adapter_is_noticed(monkeypatch):
    monkeypatch.setattr("loss_viz.objective.frozen.LARGE_BYTES", 0)
    model = build()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    run = lv.Run.from_model(model, loss)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"has changed\. If an adapter was merged into it, unmerge it"):
        run.objective(run.weights)
    model.unmerge_adapter()


MEASURE = """
import sys, joblib, peft, torch, transformers
import loss_viz as lv

torch.set_num_threads(1)

def resident(what):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(what))

def draw(size, n_layers, n_jobs):
    config = dict(n_embd=size, n_layer=n_layers, n_head=4, vocab_size=500, n_positions=32)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, bos_token_id=None, eos_token_id=None))
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    tokens = torch.randint(0, 500, (1, 16))
    loss_fn = lambda m: m(input_ids=tokens, labels=tokens).loss
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    run = recorder.run(progress=False)
    with joblib.parallel_config("threading", n_jobs=n_jobs):
        lv.landscape(run, k=2, resolution=(9, 7), progress=False)
    return sum(p.nbytes for p in model.parameters() if not p.requires_grad)

draw(32, 1, 1)  # so that all libraries are loaded
before, size, n_jobs = resident("VmRSS"), int(sys.argv[1]), int(sys.argv[2])
frozen = draw(size, 12, n_jobs)
print((resident("VmHWM") - before) / frozen, frozen)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("n_jobs", "limit"), [(1, 1.3), (4, 1.5)])
def test_the_base_is_in_memory_once(n_jobs, limit):
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, "1280", str(n_jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    share, n_bytes = map(float, done.stdout.split())
    assert n_bytes > 900e6  # 236 million parameters
    assert share < limit
