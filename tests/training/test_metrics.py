import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from support import tiny
from torch.utils.flop_counter import FlopCounterMode

from polar_rm.attention.layout import TreeLayout, TreeSpan
from polar_rm.common.config import load_config
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.packing import pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.training import metrics
from polar_rm.training.config import LoraConfig, TrainConfig
from polar_rm.training.lora import add_lora


def config(tmp_path, *overrides):
    return load_config(TrainConfig, [], ["model.init=x", "data.train=[x]", f"output={tmp_path}", *overrides])


def test_resumed_logs_drop_the_steps_that_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    sink = metrics.JsonlSink(path, 2)
    sink.write(3, {"loss": 0.5})
    sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_flops_count_the_tree():
    shape = SimpleNamespace(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, num_hidden_layers=3
    )
    layout = TreeLayout((TreeSpan(0, 5, (2, 3)),))
    keys_and_values, others = 64 * 32 * 2, 64 * 64 * 2 + 3 * 64 * 96  # k and v; q, o and the MLP
    products = 3 * keys_and_values * 10 + others * (10 + 10 + 2)  # three layers, the last at the two score positions only
    pairs = 2 * ((1 + 2 + 3 + 4 + 5) + (6 + 7) + (6 + 7 + 8)) + (7 + 8)
    assert metrics.training_flops(shape, layout) == 6 * products + 12 * pairs * 64


@pytest.mark.parametrize(
    ("layers", "lora", "tolerance"),
    # Our functions stay attached to the modules that PEFT wraps, so the last layer's adapters of q and o compute all tokens.
    [(1, None, 0), (3, None, 0), (1, LoraConfig(rank=4), 0.08), (3, LoraConfig(rank=4), 0.01)],
)
def test_flops_equal_those_that_torch_counts(tmp_path, layers, lora, tolerance):
    tiny.causal_lm(tmp_path, num_hidden_layers=layers, hidden_size=128, intermediate_size=160)
    model = RewardModel.from_causal_lm(tmp_path, implementation="tree_dense").train()
    if lora:
        pytest.importorskip("peft")
        add_lora(model, lora, 0)
    row = pack([PrefixTree([5, 6], [[7, 8, 9], [10] * 4], (0, 1))] * 3)
    with FlopCounterMode(display=False) as counter:
        model(row).sum().backward()
    head = 6 * 128 * 6
    pairs = row.layout.attention_pairs * (layers - 1) + row.layout.score_pairs
    masked = 12 * (layers * 27**2 - pairs) * 64  # dense attention computes masked pairs, too
    # transformers 4 multiplies frequencies and positions as matrices, once for all layers.
    rotary = model.backbone.config.head_dim * 27 if transformers.__version__ < "5" else 0
    expected = counter.get_total_flops() - head - masked - rotary
    assert metrics.training_flops(model.backbone.config, row.layout, lora) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_the_peak_is_found_by_the_gpus_full_name(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert metrics.peak_flops(torch.device("cuda"), torch.bfloat16) == expected


def test_the_peak_of_float32_is_measured_on_known_gpus_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    sizes = []
    monkeypatch.setattr(torch, "randn", lambda *size, device: sizes.append(size) or torch.ones(2, 2))
    metrics.peak_flops(torch.device("cuda"), torch.float32)
    assert sizes == [(4096, 4096)]


def test_a_measured_peak_is_that_of_the_fastest_product(monkeypatch):
    """Two products of 0.5 s and 0.25 s on a false clock: 2 x 1024^3 FLOPs in the shorter time."""
    times = iter([0.0, 0.0, 0.5, 0.5, 0.75, 1.0])  # the second's begin; begin and end of each product; the second is over
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
    assert metrics.peak_flops(torch.device("cpu"), torch.bfloat16) == 2 * 1024**3 / 0.25


def test_nan_is_null_in_metrics(tmp_path):
    """B23: every line is JSON for a strict reader."""
    sink = metrics.JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(1, {"loss": float("nan")})
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_tensorboard_shows_repeated_steps_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0, 40.0])):
        sink = metrics.TensorBoardSink(tmp_path, first_step)
        for step, value in enumerate(values, first_step + 1):
            sink.write(step, {"loss": value})
        sink.close()
    shown = events.EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
