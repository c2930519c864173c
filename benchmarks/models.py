"""Which model the benchmarks of training and scoring take, on which device."""

from __future__ import annotations

import argparse

import torch
from common import LANGUAGE_MODEL

from polar_rm.model.presets import PRESETS
from polar_rm.model.reward_model import RewardModel


def model_options(parser: argparse.ArgumentParser) -> None:
    """Those that :func:`build_model` reads, the device and the length of texts."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layers", type=int, default=6, help="of SmolLM2-135M")
    parser.add_argument("--preset", choices=list(PRESETS), help="a model of random weights instead")
    parser.add_argument("--tokenizer", default=LANGUAGE_MODEL, help="of the preset")
    parser.add_argument("--length", type=int, default=200, help="mean tokens of prompt, reference and candidate")


def build_model(arguments: argparse.Namespace) -> RewardModel:
    if arguments.preset:
        return RewardModel.from_preset(arguments.preset, arguments.tokenizer)
    return RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=arguments.layers)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def wait(device: torch.device) -> None:
    """Until the device has done what it was given: a GPU works behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
