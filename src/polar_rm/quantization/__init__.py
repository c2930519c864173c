"""What int8 does to a model's rewards, measured against float32 before it is used."""

from polar_rm.quantization.run import MINIMUM, quantize_model

__all__ = ["MINIMUM", "quantize_model"]
