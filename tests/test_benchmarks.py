"""The benchmark of large models, on tiny ones, as no GPU is at hand where the tests run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run_benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_large_models_are_measured_and_saved(tmp_path):
    done = run_benchmarks("--only", "large", "--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "large-cpu.json").read_text(encoding="utf-8"))
    resnet, lora = saved["large"]
    assert resnet["n_frozen"] == 0 < resnet["n_params"]
    assert 0 < lora["n_params"] < lora["n_frozen"]
    for row in (resnet, lora):
        assert row["rate"] > 0
        assert row["resolution"] == 5
        assert row["n_losses"] >= 25
    assert "ResNet-18" in (tmp_path / "large-cpu.md").read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so():
    done = run_benchmarks("--device", "cuda")
    assert done.returncode == 2
    assert "--device cuda needs a GPU" in done.stderr
