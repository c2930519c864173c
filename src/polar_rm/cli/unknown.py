"""Advice about an option that a verb does not have: its name here, or the way to do here what it does elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

RENAMED = {
    "--api-key": "--api-key-env",
    "--dataset": "--input",
    "--dtype": "--precision",
    "--max-num-batched-tokens": "--row-tokens",
    "--model-name-or-path": "--model",
    "--model-path": "--model",
    "--output-dir": "--output",
    "--output-file": "--output",
    "--token-budget": "--row-tokens",
    "--torch-dtype": "--precision",
}
"""Options of earlier versions and of other tools -> our name."""

_WITHOUT_CONFIG_OPTIONS = ("serve", "audit")  # whose configs are set by options, too


def advice(verb: str, option: str, options: Iterable[str]) -> str:
    """The sentence behind "No such option"; empty where nothing is known, and where the parser knows a near name.

    verb: its name, such as ``pretrain``. option: as given, such as ``--learning_rate``. options: those of the verb.
    """
    known = set(options)
    dashed = "--" + option.lstrip("-").replace("_", "-")
    for name in (RENAMED.get(dashed), dashed):
        if name in known:
            return f"Did you mean {name}?"
    if dashed == "--trust-remote-code":
        return "No code of a checkpoint is ever run; polar convert takes the official and other trainers' checkpoints."
    is_near = bool(get_close_matches(dashed, known, n=1))
    key = _key(verb, dashed.removeprefix("--").replace("-", "_"))
    if key is None and verb == "rft" and "_" in option and not is_near:
        key = f"trainer.{option.lstrip('-')}"  # as TRL's settings are spelt
    if key:
        return f"Settings are KEY=VALUE, without dashes: {key}=VALUE. `polar config {verb}` explains all."
    if verb == "serve" and not is_near:
        return f"If it is an option of vLLM, it goes behind `--`: polar serve --model DIR --engine vllm -- {option} ..."
    return ""


def _key(verb: str, name: str) -> str | None:
    """Our key for a setting, in the config of a verb; None where it has none."""
    from polar_rm.cli.configs import CONFIGS, config_of
    from polar_rm.common.config import all_keys, renamed

    if verb not in CONFIGS or verb in _WITHOUT_CONFIG_OPTIONS:
        return None
    every = all_keys(config_of(verb))
    keys = [key for key in every if not any(other.startswith(f"{key}.") for other in every)]  # a group takes no value
    if ours := renamed(name, keys):
        return ours
    same = [key for key in keys if key == name or key.rpartition(".")[2] == name]
    return min(same, key=len, default=None)
