"""The card of a corpus, ``README.md``: what it holds and where it comes from, in the form that the Hugging Face Hub reads.

All of it is in ``manifest.json`` and ``report.json``, too. It has names and hashes of inputs, and no local folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polar_rm.common.yaml import dump_yaml
from polar_rm.reporting.tables import Table

CARD = "README.md"


def data_card(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The text of the card. manifest: of ``manifest.json``. report: of ``report.json``."""
    splits = list(report["splits"])
    files = [{"split": split, "path": f"{split}/*.parquet"} for split in splits]
    front = {"tags": ["reward-model", "polar", "polar-rm"], "configs": [{"config_name": "default", "data_files": files}]}
    sizes = [[name, f"{each['comparisons']:,}", f"{each['pairs']:,}"] for name, each in report["splits"].items()]
    sections = [
        f"---\n{dump_yaml(front).strip()}\n---\n\n# Comparisons for a POLAR reward model",
        "Rows have a prompt, a reference and candidates with ranks: rank 0 comes from the reference's author, higher ranks from "
        "others. `polar pretrain data.train='[FOLDER/train]'` trains on them; other splits hold prompts "
        "or policies that `train` has not.",
        Table("Splits", ["split", "comparisons", "pairs"], sizes).markdown().strip(),
        "## Inputs\n\n" + "\n".join(f"* `{each['name']}`, SHA-256 `{each['sha256']}`" for each in manifest["inputs"]),
        *_policies(manifest.get("policies") or {}),
        "## Licences\n\n" + _licences(manifest),
        "Settings, counts and the checksums of all shards are in `manifest.json`, measures and what simple baselines achieve in "
        f"`report.json`. Made with polar-rm {manifest['versions'].get('polar-rm')}.",
    ]
    return "\n\n".join(sections) + "\n"


def _policies(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not policies:
        return []
    rows = [
        [name, str(each.get("family") or ""), f"{each.get('texts', 0):,}", "yes" if each.get("held_out") else ""]
        for name, each in policies.items()
    ]
    return [Table("Policies", ["policy", "family", "texts", "held out"], rows).markdown().strip()]


def _licences(manifest: Mapping[str, Any]) -> str:
    known = {**manifest["licences"]}
    known |= {name: each["licence"] for name, each in (manifest.get("policies") or {}).items() if each.get("licence")}
    if not known:
        return "None is recorded: those of the prompts and of the policies' models apply."
    return "\n".join(f"* {name}: {licence}" for name, licence in known.items())
