import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from polar_rm.common.config import load_config
from polar_rm.errors import PolarError
from polar_rm.model.devices import compute_dtype, memory_of, pick_device
from polar_rm.serving.config import ServeConfig


@pytest.mark.parametrize(("major", "expected"), [(7, torch.float32), (8, torch.bfloat16)])
def test_auto_takes_bf16_only_where_the_gpu_does_not_emulate_it(monkeypatch, major, expected):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert compute_dtype("auto", "cuda") == expected
    assert compute_dtype("bf16", "cuda") == torch.bfloat16


def test_caches_of_products_are_small_unless_the_environment_sets_them():
    code = "import os; from polar_rm.model.devices import claim_device; claim_device('cpu'); print(*map(os.environ.get, %r))"
    names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"]
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"LRU_CACHE_CAPACITY": "7"}
    result = subprocess.run([sys.executable, "-c", code % names], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["128", "7"]


def machine(monkeypatch, *present, ranks=1):
    """A machine with these devices besides its CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))


@pytest.mark.parametrize(
    ("present", "ranks", "expected"),
    [((), 1, "cpu"), (("mps",), 1, "mps"), (("cuda", "mps"), 1, "cuda"), (("mps",), 2, "cpu"), (("cuda",), 2, "cuda")],
)
def test_auto_takes_the_gpu_that_is_there(monkeypatch, present, ranks, expected):
    machine(monkeypatch, *present, ranks=ranks)
    assert pick_device("auto") == expected
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "present", "ranks", "message"),
    [
        ("mps", (), 1, "device mps was requested, but torch sees no GPU of a Mac"),
        ("cuda", ("mps",), 1, "device cuda was requested, but torch sees no CUDA device"),
        ("mps", ("mps",), 2, "device mps was requested by several ranks, but a Mac has one GPU: start one process"),
        ("tpu", (), 1, "unknown device 'tpu'; known: auto, cpu, cuda, mps"),
    ],
)
def test_an_absent_device_is_one_line(monkeypatch, name, present, ranks, message):
    machine(monkeypatch, *present, ranks=ranks)
    with pytest.raises(PolarError) as caught:
        pick_device(name)
    assert str(caught.value) == message


def test_a_config_takes_mps():
    assert load_config(ServeConfig, [], ["model=m", "device=mps"]).device == "mps"


def test_precisions_of_a_macs_gpu(monkeypatch):
    assert (compute_dtype("auto", "mps"), compute_dtype("fp16", "mps")) == (torch.float32, torch.float16)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    with pytest.raises(PolarError, match="precision bf16 on device mps needs macOS 14 or newer"):
        compute_dtype("bf16", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    assert compute_dtype("bf16", "mps") == torch.bfloat16


def test_memory_of_a_macs_gpu(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 7)
    assert memory_of("mps") == (7, "this GPU")
