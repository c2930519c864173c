"""The plan of ``polar rft``: all that the run checks before it trains, without weights and without a request to a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polar_rm.common.extras import require
from polar_rm.common.problems import Problems
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.texts import Template
from polar_rm.errors import PolarError
from polar_rm.records import Text
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData, messages, read_data, texts_of
from polar_rm.rft.evaluations import open_judges
from polar_rm.rft.judges import listed


def make_plan(config: RftConfig) -> dict[str, Any]:
    """Numbers of prompts, device and precision, notes, and what the run finds in its output folder. Nothing is written.

    Raises:
        PolarError: all that is wrong with keys, judges, rows, the policy's chat template, the reward's template and the output
            folder, as the run would find it. Without TRL its keys can't be checked, which is a note.
    """
    from polar_rm.rft.policy import describe_machine
    from polar_rm.rft.run import describe_output, trl_arguments

    problems, notes = Problems(), []
    try:
        require("rft", "polar rft", "trl")
    except PolarError as error:
        notes.append(f"the keys of trainer were not checked: {error}")
    else:
        with problems.noted():
            trl_arguments(config)
    data = RftData([])
    with problems.noted():
        data = read_data(config, open_judges(config))
    with problems.noted():
        _check_policy(config, data)
    with problems.noted():
        _check_reward(config, data)
    output = ""
    with problems.noted():
        output = describe_output(config)
    problems.check()
    counts = {"prompts": len(data.train), "held_out_prompts": len(data.held_out)}
    return {**counts, "device": describe_machine(config.trainer), "notes": [*data.notes, *notes], "output": output}


def _check_policy(config: RftConfig, data: RftData) -> None:
    from polar_rm.model.language_models import check_language_model, load_auto_tokenizer
    from polar_rm.rft.policy import check_prompts

    check_language_model(config.policy.model, config.policy.gguf_file)
    check_prompts(config, load_auto_tokenizer(config.policy.model, config.policy.gguf_file), data)


def _check_reward(config: RftConfig, data: RftData) -> None:
    """Check that the reward model's template can render prompts and references; that of a server without ``encoder`` is not
    known here."""
    folder = config.reward.encoder if config.reward.is_url else Path(config.reward.source)
    if folder is None:
        return
    settings = Encoder.from_pretrained(folder).settings
    for prompt, references, wrapper in _rows(config, data):
        template = Template(settings.template, settings.version) if wrapper == "sft" else Template("polar", 1)
        for field, text in (("prompt", prompt), *(("reference", each) for each in references)):
            try:
                template.prompt(text) if field == "prompt" else template.response(text)
            except PolarError as error:
                raise PolarError(f"{folder}: the reward model can't take the {field} of a row: {error}") from None


def _rows(config: RftConfig, data: RftData) -> Iterator[tuple[Text, list[Text], str]]:
    """(prompt, references, wrapper) of every row, as the reward function gets them."""
    for row in data.train:
        yield row["prompt"], texts_of(row["reference"]), row["wrapper"]
    is_chat = config.policy.kind == "chat"
    for task in data.held_out:
        yield messages(task.prompt) if is_chat else task.prompt, texts_of(listed(task.reference)), task.wrapper
