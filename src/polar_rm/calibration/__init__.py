"""The scale of a model's rewards: temperature, calibration error, the uncertainty of the head, and what abstaining brings."""

from polar_rm.calibration.run import calibrate, calibrate_files

__all__ = ["calibrate", "calibrate_files"]
