"""What calibration data tells of a network, layer after layer, each for the inputs it will get."""

from accel.calibrate.fits import LIMIT, check_calibration, fit_interpolation, fit_layer, is_lost, pictures_of_one_size
from accel.calibrate.ranges import quantization_of
from accel.calibrate.settling import record, settle

__all__ = [
    "LIMIT",
    "check_calibration",
    "fit_interpolation",
    "fit_layer",
    "is_lost",
    "pictures_of_one_size",
    "quantization_of",
    "record",
    "settle",
]
