"""Scoring by actors of a Ray cluster, each of which loads the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from polar_rm.common.actors import RayActors, map_on_actors
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.model.blueprint import checkpoint_blueprint
from polar_rm.model.devices import claim_device, dtype_name
from polar_rm.model.native import untrained_warning
from polar_rm.model.reward_model import RewardModel
from polar_rm.rewards.scale import Scale
from polar_rm.scoring.lines import RowOptions, Window, WindowLines, score_lines
from polar_rm.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A checkpoint that actors load. Its folder must be visible to all nodes. This process only reads the encoder.

    device, dtype: of every actor, because rows must not depend on the actor that computed them.
    """

    folder: str
    encoder: Encoder
    dtype: str
    device: str
    actors: RayActors

    @classmethod
    def of(cls, folder: str | Path, *, precision: str, device: str, actors: RayActors) -> Self:
        """Choose device and type before any actor starts. device: ``auto`` is cuda if actors have GPUs.

        Raises:
            PolarError: the precision is ``auto``, which each machine would choose for itself; or the device is cuda, but actors
                have no GPU.
            UnsupportedModel, EncoderMismatch: as in :meth:`RewardModel.from_pretrained`.
        """
        if precision == "auto":
            raise PolarError("precision: auto is each machine's own choice; with engine ray choose bf16, fp16, fp32 or int8")
        if device == "cuda" and not actors.gpus:
            raise PolarError("device: cuda needs GPUs, but actors reserve none; give each at least a part of one")
        device = ("cuda" if actors.gpus else "cpu") if device == "auto" else device
        blueprint = checkpoint_blueprint(folder)
        if blueprint.untrained:
            warnings.warn(untrained_warning(folder, blueprint.untrained), stacklevel=2)
        return cls(str(Path(folder).absolute()), blueprint.encoder, dtype_name(precision, device), device, actors)

    def lines(
        self, windows: Iterable[Window], *, source: str, row_tokens: int, scale: Scale | None, options: RowOptions
    ) -> Iterator[WindowLines]:
        """The lines of each window, in order; see :func:`score_lines` and :func:`map_on_actors`."""
        start = partial(_start, self.folder, self.dtype, self.device, row_tokens, scale, source, options)
        return map_on_actors(start, windows, self.actors)


def _start(
    folder: str, dtype: str, device: str, row_tokens: int, scale: Scale | None, source: str, options: RowOptions
) -> Callable[[Window], WindowLines]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver has warned
        model = RewardModel.from_pretrained(folder, dtype=dtype, device=claim_device(device))
    scorer = Scorer(model, row_tokens=row_tokens, scale=scale)
    return lambda window: score_lines(scorer, window, source, options)
