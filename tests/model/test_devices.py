import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from polar_rm.model.devices import compute_dtype


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
