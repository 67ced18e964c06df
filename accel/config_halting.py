"""How long stages and cells compute: the configurations of ACT, SACT, PACT and of a fixed number of repeats."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from accel.config_values import FP32, INT8, PRECISIONS, VERSION, check_integer, check_precision
from accel.errors import ConfigError
from accel.mc import REBAR, Concrete, DisARM, Enumerate, MeasureValued, ScoreFunction
from accel.mc.describe import describe

HALTING_ESTIMATORS = (Concrete, ScoreFunction, DisARM, REBAR, MeasureValued, Enumerate)  # those of PACT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halting:
    """What ACT, SACT and PACT have in common: stages of residual units that run as long as they need to.

    Attributes:
        tau: price of a unit in the loss, at least 0; the authors used 0.01 on CIFAR-10 and 0.005 on ImageNet.
        target: share of the stages' dense MACs to execute, in (0, 1]: training then moves tau, starting from the one
            given, until it is met (`accel.halting.budget`). None: tau stays.
        precision: 'fp32', or 'int8': the convolutions of the units multiply bytes by signed bytes as `Perforate` says
            (needs calibration data, which `accel.convert_model` takes); state, halting heads and outputs stay fp32.
        spatial: whether every position of the map decides for itself.

    Raises:
        ConfigError: a value out of range.
    """

    tau: float = 0.005
    target: float | None = None
    precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        if not isinstance(self.tau, (int, float)) or not 0 <= self.tau < float("inf"):
            raise ConfigError(f"tau is the weight of the ponder cost, at least 0 and finite, got {self.tau!r}")
        if self.target is not None and not (isinstance(self.target, (int, float)) and 0 < self.target <= 1):
            raise ConfigError(f"target is the share of the MACs to execute and must lie in (0, 1], got {self.target!r}")
        check_precision(self.precision, (FP32, INT8))

    @property
    def in_bytes(self) -> bool:
        """Whether the units compute in eight bits."""
        return self.precision == INT8

    @property
    def needs_calibration(self) -> bool:
        """Whether a conversion needs data: for the ranges of bytes."""
        return self.in_bytes

    def to_dict(self) -> dict:
        """A JSON-ready dict that `config_from_dict` reads back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": type(self).__name__.lower(), "version": VERSION, **fields}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACT(Halting):
    """Adaptive computation time: every stage of residual units runs until the image's halting scores add up to one.

    Attributes: those of `Halting`, and
        eps: halt when the scores reach 1 - eps, in [0, 1); so that one unit can suffice.

    Raises:
        ConfigError: a value out of range.
    """

    spatial: ClassVar[bool] = False
    eps: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.eps, (int, float)) or not 0 <= self.eps < 1:
            raise ConfigError(f"eps must lie in [0, 1), got {self.eps!r}")


class SACT(ACT):
    """Spatially adaptive computation time: the same for every position of the map; attributes of `ACT`."""

    spatial: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PACT(Halting):
    """Probabilistic adaptive computation time (Figurnov, Sobolev, Vetrov 2017, arXiv 1712.00386).

    How many units run is a latent variable, with a prior that falls by a factor of exp(-tau) a unit. Training maximises
    the expected log-likelihood and log-prior (variational optimisation: no entropy, so that decisions become certain);
    evaluation halts where that is likelier than not.

    Attributes: those of `Halting`, and
        estimator: of the gradient of the expectation, from `accel.mc`: `Concrete`, with which the network's output and
            `accel.ponder_loss` train it; or ScoreFunction, DisARM, REBAR, MeasureValued or Enumerate, which need the
            loss itself, in `accel.expected_loss`.
        spatial: whether every position of the map decides for itself, or the whole image at once.
        kl: weight of the divergence of the decisions from the prior, above 0; it takes the place of tau's price and is
            PonderNet's objective (arXiv 2107.05407), in which decisions stay random. None: no divergence.

    Raises:
        ConfigError: a value out of range, or an estimator that does not fit the decisions.
    """

    estimator: object = Concrete(2 / 3)
    spatial: bool = True
    kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ", ".join(kind.__name__ for kind in HALTING_ESTIMATORS)
        if type(self.estimator) not in HALTING_ESTIMATORS:
            got = self.estimator.__name__ if isinstance(self.estimator, type) else type(self.estimator).__name__
            kind = "an instance of it" if self.estimator in HALTING_ESTIMATORS else f"one of {names}"
            raise ConfigError(f"{got} is no estimator for halting decisions, which are Bernoulli: give {kind}")
        if not isinstance(self.spatial, bool):
            raise ConfigError(f"spatial must be True or False, got {self.spatial!r}")
        if self.spatial and isinstance(self.estimator, (MeasureValued, Enumerate)):
            raise ConfigError(
                f"{type(self.estimator).__name__} would run the network for every position of a map: give "
                "spatial=False, or ScoreFunction, DisARM, REBAR or Concrete"
            )
        if isinstance(self.estimator, Enumerate) and self.target is not None:
            raise ConfigError("target follows what was decided, and Enumerate decides everything: give a tau alone")
        if self.kl is not None and not (isinstance(self.kl, (int, float)) and 0 < self.kl < float("inf")):
            raise ConfigError(f"kl is the weight of a divergence, above 0 and finite, got {self.kl!r}")
        if self.kl is not None and self.target is not None:
            raise ConfigError("kl keeps to a prior, and target moves it: give one of them")

    @property
    def relaxes(self) -> bool:
        """Whether training relaxes the decisions; else they are drawn, and the estimator takes the loss itself."""
        return isinstance(self.estimator, Concrete)

    @property
    def temperature(self) -> float:
        """Of relaxed decisions: the estimator's, or that of the default."""
        if self.relaxes:
            return self.estimator.temperature
        return float(self.estimator.log_temperature.detach().exp()) if isinstance(self.estimator, REBAR) else 2 / 3

    def to_dict(self) -> dict:
        """A JSON-ready dict that `config_from_dict` reads back."""
        try:
            return {**super().to_dict(), "estimator": describe(self.estimator)}
        except ValueError as error:
            raise ConfigError(f"this PACT cannot be written down: {error}") from error


@dataclasses.dataclass(frozen=True)
class FixedRepeats:
    """A recurrent cell applied a fixed number of times to every input (see `accel.nn.adaptive_cell`).

    Attributes:
        repeats: at least 1.

    Raises:
        ConfigError: a value out of range.
    """

    tau: ClassVar[float] = 0.0
    target: ClassVar[float | None] = None
    precision: ClassVar[str] = PRECISIONS[0]
    repeats: int

    def __post_init__(self) -> None:
        check_integer("repeats", self.repeats, 1)
