"""Estimators as JSON-ready dicts and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from .antithetic import DisARM
from .baselines import LeaveOneOut, MovingAverage
from .enumeration import Enumerate
from .estimate import Estimator
from .measure_valued import MeasureValued
from .rebar import REBAR
from .relaxed import Concrete, StraightThrough
from .score import ScoreFunction

_PLAIN = (Concrete, StraightThrough, DisARM, MeasureValued, Enumerate)  # their fields are numbers


def describe(estimator: Estimator) -> dict:
    """The name and settings of an estimator; of a REBAR, as they were tuned.

    Raises:
        ValueError: it holds a network or a function, or is none of this package's.
    """
    if type(estimator) in _PLAIN:
        return {"name": type(estimator).__name__, **dataclasses.asdict(estimator)}
    if type(estimator) is REBAR:
        temperature, scale = float(estimator.log_temperature.detach().exp()), float(estimator.scale.detach())
        return {"name": "REBAR", "temperature": temperature, "scale": scale}
    if type(estimator) is ScoreFunction:
        return {"name": "ScoreFunction", "baseline": _describe_baseline(estimator.baseline)}
    raise ValueError(f"{type(estimator).__name__} cannot be described by numbers: known are {', '.join(_KNOWN)}")


def from_description(data: Mapping) -> Estimator:
    """The estimator that `describe` described.

    Raises:
        ValueError: an unknown name or setting.
    """
    fields = dict(data) if isinstance(data, Mapping) else {"name": data}
    name = fields.pop("name", None)
    if name not in _KNOWN:
        raise ValueError(f"unknown estimator {name!r}: known are {', '.join(_KNOWN)}")
    try:
        if name == "ScoreFunction":
            return ScoreFunction(_baseline(fields.pop("baseline", None)), **fields)
        return _KNOWN[name](**fields)
    except TypeError as error:
        raise ValueError(f"the settings of estimator {name} do not fit: {error}") from error


_KNOWN = {kind.__name__: kind for kind in (*_PLAIN, REBAR, ScoreFunction)}


def _describe_baseline(baseline: object) -> dict | None:
    if baseline is None:
        return None
    if type(baseline) is LeaveOneOut:
        return {"name": "LeaveOneOut"}
    if type(baseline) is MovingAverage:
        return {"name": "MovingAverage", "decay": baseline.decay}
    raise ValueError(f"the baseline {type(baseline).__name__} cannot be described by numbers: use LeaveOneOut")


def _baseline(data: Mapping | None) -> object:
    """The inverse of `_describe_baseline`."""
    fields = dict(data) if data is not None else {"name": None}
    name = fields.pop("name")
    kinds = {None: lambda: None, "LeaveOneOut": LeaveOneOut, "MovingAverage": MovingAverage}
    if name not in kinds:
        raise ValueError(f"unknown baseline {name!r}: known are LeaveOneOut and MovingAverage")
    return kinds[name](**fields)
