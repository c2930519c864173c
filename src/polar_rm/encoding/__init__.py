"""The one encoder: all stages get their token ids, branches and score positions here."""

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN, EncoderSettings
from polar_rm.encoding.tree import PrefixTree, Truncation

__all__ = ["REWARD_TOKEN", "SEPARATOR_TOKEN", "Encoder", "EncoderSettings", "PrefixTree", "Truncation"]
