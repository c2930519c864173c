"""The scale of a model's rewards: temperature, calibration error, the head's uncertainty, and the accuracy with abstention."""

from polar_rm.calibration.run import calibrate, calibrate_files

__all__ = ["calibrate", "calibrate_files"]
