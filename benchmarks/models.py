"""The model and device of the benchmarks of training and scoring."""

from __future__ import annotations

import argparse

import torch
from common import LANGUAGE_MODEL

from polar_rm.model.presets import PRESETS
from polar_rm.model.reward_model import RewardModel


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`build_model`, the device and the length of texts."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layers", type=int, default=6, help="number of first layers of SmolLM2-135M")
    parser.add_argument("--preset", choices=list(PRESETS), help="a model with random weights instead")
    parser.add_argument("--tokenizer", default=LANGUAGE_MODEL, help="tokenizer of the preset")
    parser.add_argument("--length", type=int, default=200, help="mean number of tokens of prompt, reference and candidate")


def build_model(arguments: argparse.Namespace) -> RewardModel:
    if arguments.preset:
        return RewardModel.from_preset(arguments.preset, arguments.tokenizer)
    return RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=arguments.layers)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work, which is asynchronous on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
