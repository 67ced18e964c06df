"""Errors a user can cause: one clear line that names the thing, what was expected, what was got, and the remedy."""

from __future__ import annotations


class AccelError(ValueError):
    """Base of the errors below; the command line prints them as one line and exits with 1."""


class ConfigError(AccelError):
    """A configuration or rule that cannot be obeyed."""


class UnknownNameError(ConfigError):
    """A name that nothing bears here; what does may not have been imported."""


class ConversionError(AccelError):
    """A model that cannot be converted as asked."""


class WeightsError(AccelError):
    """A weights file or converted folder that is missing, corrupt, or belongs to something else."""


class DataError(AccelError):
    """Pictures or data that cannot be read."""
