"""What a first picture imports: no compiler, and no library that it does not need."""

import subprocess
import sys

import torch

FIRST = """
import sys
import loss_viz as lv
assert "torch" not in sys.modules
run = lv.train("x^3", steps=60, progress=False)
lv.surface_figure(lv.landscape(run, resolution=9, progress=False))
print(*[name for name in ("torch._dynamo", "sympy", "sklearn", "pandas", "matplotlib") if name in sys.modules])
from loss_viz.tasks.optimizers import OPTIMIZERS
names = [name for name in ("adam", "sgd", "rmsprop", "adamw", "muon") if name in OPTIMIZERS]  # Muon came with 2.9
runs = [lv.train("x^2", optimizer=name, steps=30, progress=False) for name in names]
from torch.optim.optimizer import register_optimizer_step_post_hook
seen = []
handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
lv.train("x^2", steps=5, progress=False)
handle.remove()
assert len(seen) == 5
import torch._dynamo
again = [lv.train("x^2", optimizer=name, steps=30, progress=False) for name in names]
assert all((a.weights == b.weights).all() and (a.loss == b.loss).all() for a, b in zip(runs, again, strict=True))
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
print(hasattr(torch.optim.Optimizer.add_param_group.__wrapped__, "__dynamo_disable"))
"""


def test_a_first_picture_imports_no_compiler_and_trains_the_same():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported, excluded = done.stdout.split("\n")[:2]
    # Before this version PyTorch imports the compiler in other places, too.
    has_mark = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
    assert set(imported.split()) <= (set() if has_mark else {"torch._dynamo", "sympy"})
    assert not has_mark or excluded == "True"  # by PyTorch itself, once it has a compiler
