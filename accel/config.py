"""What to do with which layer: frozen configurations, and rules that map module names to them."""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping

from accel import fills, masks
from accel.config_halting import ACT, HALTING_ESTIMATORS, PACT, SACT, FixedRepeats, Halting
from accel.config_values import BF16, FP32, INT8, PRECISIONS, VERSION, check_integer, check_precision
from accel.errors import ConfigError
from accel.fills import CORRECTIONS, Fill
from accel.masks import Mask
from accel.mc.describe import from_description

__all__ = [
    "ACT", "BF16", "FP32", "HALTING_ESTIMATORS", "INT8", "MISSING", "PACT", "PRECISIONS", "SACT", "TARGETS", "VERSION",
    "Config", "FixedRepeats", "Halting", "Perforate", "Rules", "as_rules", "config_from_dict", "estimator_of",
]  # fmt: skip

TARGETS = ("speedup", "max_drop", "macs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perforate:
    """Perforated convolution: compute a fraction of the output positions and fill in the others.

    Exactly one of keep, speedup, max_drop and macs is given. The last three are targets for all layers together, from
    which `accel.search` finds keep, mask and interpolate of each.

    Attributes:
        keep: fraction of positions computed, in (0, 1]. It is obeyed even where the layer gets slower.
        speedup: times faster than the dense network, at least 1.
        max_drop: the most that may be lost, see `accel.search`; at least 0.
        macs: share of the dense multiply-accumulates to execute, in (0, 1].
        mask: 'uniform', 'grid', 'pooling', 'impact' or 'iterative_impact' (need calibration data, see
            `accel.impact.all_impacts`) or 'lattice' (keep near 1/4, 1/3, 1/2, 2/3, 3/4 or 1), see
            `accel.masks.build_mask`; or 'adaptive' (keep above 1/4): the staggered quarter lattice and, in each image,
            the positions whose input deviates most from its local mean. Others can be added: `accel.masks.contract`.
        interpolate: what stands at the other positions: 'nearest', the value of the nearest computed position;
            'fitted', per channel the least-squares weighted sum of the nearest computed positions plus a constant
            (needs calibration data); 'weighted', their sum weighted by 1 / distance**2; or 'zero'. Others can be added:
            `accel.fills.contract`.
        neighbors: computed positions in such a sum.
        correct: what 'fitted' fits at the computed positions: 'scale', scale and shift of every channel, or 'weights',
            the weights of the convolution as well (the parameters keep their values). None: the latter in eight bits,
            whose integers are written anew anyhow, else the former.
        shift: rows by which a lattice is moved down, at least 0. Layers in a row that shift by 0 and 1 in turn see
            twice as many positions: a gain at 1/4 (ResNet-32 on CIFAR, fitted: 74.8 instead of 69.9 %), none at 1/2.
        seed: seed of the random choices; with the layer's name and output size it fixes the position set.
        precision: 'fp32'; 'bf16': inputs and weights rounded to it, sums and all that follows in fp32, nothing is
            calibrated; faster on CPUs with AVX512_BF16, the same numbers in software elsewhere; or 'int8': bytes by
            signed bytes, for inference on CPUs (needs calibration data); training goes through fake quantization, see
            `accel.nn.quantized`. With keep=1 it is plain quantization. 'int8' also goes to the linear layers that the
            rule matches, of which nothing is left out; with a target these stay in fp32, and layers too small to search
            are quantized.
        rank: the convolution becomes two, with so many channels between them, or with as many as execute at most this
            share of its multiply-accumulates, in (0, 1); see `accel.low_rank` (needs calibration data). Both compute
            the same positions: leaving out some needs a lattice. Their parameters take the place of the layer's, which
            `revert_model` does not bring back.

    Raises:
        ConfigError: a value out of range or unknown.
    """

    keep: float | None = None
    speedup: float | None = None
    max_drop: float | None = None
    macs: float | None = None
    mask: str = "grid"
    interpolate: str = "nearest"
    neighbors: int = 12
    correct: str | None = None
    shift: int = 0
    seed: int = 0
    precision: str = PRECISIONS[0]
    rank: int | float | None = None

    def __post_init__(self) -> None:
        self._check_aim()
        masking, filling = self.masking, self.filling  # which raise where there are none
        if self.correct is None:
            refits = filling.needs_data and self.in_bytes
            object.__setattr__(self, "correct", CORRECTIONS[-1] if refits else CORRECTIONS[0])
        if self.correct not in CORRECTIONS:
            raise ConfigError(f"unknown correct {self.correct!r}: choose one of {', '.join(CORRECTIONS)}")
        if not filling.needs_data and self.correct != CORRECTIONS[0]:
            raise ConfigError(
                f"correct {self.correct!r} is part of a fit: give interpolate='fitted' with it, or leave it"
            )
        check_integer("neighbors", self.neighbors, 1)
        check_integer("shift", self.shift, 0)
        check_integer("seed", self.seed)
        if self.shift and not masking.shifts:
            raise ConfigError(f"shift moves a lattice: mask {self.mask!r} takes none, leave it 0")
        self._check_precision()
        self._check_rank()
        if self.keep is not None:
            masking.check(self.keep, filling)

    def _check_aim(self) -> None:
        given = [name for name in ("keep", *TARGETS) if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"give exactly one of keep, {', '.join(TARGETS)}, got {' and '.join(given) or 'none'}")
        aim, value = given[0], getattr(self, given[0])
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if aim == "keep" and not (number and 0 < value <= 1):
            raise ConfigError(f"keep is the fraction of positions computed and must lie in (0, 1], got {value!r}")
        if aim == "speedup" and not (number and 1 <= value < float("inf")):
            raise ConfigError(f"speedup is how many times faster and must be at least 1, got {value!r}")
        if aim == "max_drop" and not (number and 0 <= value < float("inf")):
            raise ConfigError(f"max_drop is the most that may be lost and must be at least 0, got {value!r}")
        if aim == "macs" and not (number and 0 < value <= 1):
            raise ConfigError(f"macs is the share of the dense MACs to execute and must lie in (0, 1], got {value!r}")
        if aim != "keep" and (self.mask, self.interpolate) != (Perforate.mask, Perforate.interpolate):
            raise ConfigError(f"{aim} finds mask and interpolate by itself: leave them out, or give keep instead")

    def _check_precision(self) -> None:
        check_precision(self.precision)
        if self.in_bytes and not self.masking.is_static:
            raise ConfigError(
                f"mask {self.mask!r} chooses positions in each image, which eight bits cannot: take another mask"
            )

    def _check_rank(self) -> None:
        rank, masking = self.rank, self.masking
        if rank is None:
            return
        if not (type(rank) is int and rank >= 1) and not (isinstance(rank, float) and 0 < rank < 1):
            raise ConfigError(
                f"rank must be an integer of at least 1, or a share of the layer's MACs in (0, 1), got {rank!r}"
            )
        if self.keep is None:
            raise ConfigError(f"{self.target[0]} finds ranks by itself: leave out rank, or give keep instead")
        regular = masking.shifts or (self.keep == 1 and masking.is_static and not masking.needs_data)
        if not regular:
            raise ConfigError(
                f"the two convolutions of a low rank compute the same positions, and mask {self.mask!r} chooses those "
                "of each layer: give mask='lattice' with rank, or keep=1"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the layer computes every position with all of its weight."""
        return self.keep == 1 and self.rank is None

    @property
    def in_bytes(self) -> bool:
        """Whether the layer computes in eight bits."""
        return self.precision == INT8

    @property
    def in_bf16(self) -> bool:
        """Whether the layer multiplies numbers in bf16."""
        return self.precision == BF16

    @property
    def rounds(self) -> bool:
        """Whether the layer computes in less than fp32."""
        return self.precision != FP32

    @property
    def target(self) -> tuple[str, float] | None:
        """(name, value) of what is to be searched for; None where keep is given."""
        return next(((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def needs_calibration(self) -> bool:
        """Whether a conversion needs data: for a target, impact maps, a fit, a low rank or the ranges of bytes."""
        learns = self.masking.needs_data or self.filling.needs_data or self.rank is not None
        return self.keep is None or learns or self.in_bytes

    @functools.cached_property
    def masking(self) -> Mask:
        """What `mask` names."""
        return masks.find(self.mask)

    @functools.cached_property
    def filling(self) -> Fill:
        """What `interpolate` names."""
        return fills.find(self.interpolate)

    @property
    def effort(self) -> int:
        """How much a calibration has to find: 0 nothing, 1 a low rank, or for the fill 1 and more, the place of
        `correct` in CORRECTIONS."""
        return 1 + CORRECTIONS.index(self.correct) if self.filling.needs_data else int(self.rank is not None)

    def filled_by(self, interpolate: str) -> Perforate:
        """The same positions, filled in another way that needs no data."""
        return dataclasses.replace(self, interpolate=interpolate, correct=None)

    def to_dict(self) -> dict:
        """A JSON-ready dict that `config_from_dict` reads back."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {"kind": "perforate", "version": VERSION, **given}


_KINDS = {"perforate": Perforate, "act": ACT, "sact": SACT, "pact": PACT}
Config = Perforate | Halting


def config_from_dict(data: Mapping) -> Config:
    """The configuration that `to_dict` wrote. ConfigError: another version, an unknown kind or field."""
    fields = dict(data)
    version, kind = fields.pop("version", None), fields.pop("kind", None)
    if version != VERSION:
        raise ConfigError(f"a configuration of version {version!r} cannot be read here, expected version {VERSION}")
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind of configuration {kind!r}: expected one of {', '.join(_KINDS)}")
    known = {field.name for field in dataclasses.fields(_KINDS[kind])}
    if unknown := sorted(fields.keys() - known):
        raise ConfigError(
            f"unknown field {unknown[0]!r} in a {kind!r} configuration: known are {', '.join(sorted(known))}"
        )
    if "estimator" in fields:
        fields["estimator"] = estimator_of(fields["estimator"])
    return _KINDS[kind](**fields)


def estimator_of(description: Mapping | str) -> object:
    """The estimator of PACT that a table of name and settings, or a name alone, describes; else ConfigError."""
    try:
        return from_description(description)
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Missing(enum.Enum):
    MISSING = "no rule matches"


MISSING = _Missing.MISSING
"""What `Rules.match` returns for a name that no rule matches (None means: a rule says to leave the layer alone)."""


class Rules(Mapping):
    """Ordered rules {pattern: configuration or None}; the first pattern that matches a layer's full name decides.

    Patterns are shell patterns, case-sensitive, in which `*` crosses dots: 'layer1.*', '*.conv2', 'features.0'.
    None leaves a layer alone, and so does matching no rule.

        Rules({"features.0": None, "features.*": Perforate(keep=0.5)})
    """

    def __init__(self, rules: Mapping[str, Config | None]) -> None:
        self._rules = dict(rules)
        if not self._rules:
            raise ConfigError("no rules given: write at least one {pattern: configuration}")
        for pattern, config in self._rules.items():
            if not isinstance(pattern, str):
                raise ConfigError(f"a rule's pattern must be a string, got {pattern!r}")
            if config is not None and not isinstance(config, Config):
                raise ConfigError(
                    f"rule {pattern!r} must give a configuration such as Perforate(...) or None, got {config!r}"
                )

    def __getitem__(self, pattern: str) -> Config | None:
        return self._rules[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"Rules({self._rules!r})"

    def match(self, name: str) -> Config | _Missing | None:
        """The configuration of the layer called `name`, None to leave it alone, MISSING where no rule matches."""
        for pattern, config in self._rules.items():
            if fnmatch.fnmatchcase(name, pattern):
                return config
        return MISSING

    def check_used(self, names: Iterable[str]) -> None:
        """ConfigError for the first rule that matches none of `names`."""
        names = list(names)
        for pattern in self._rules:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                raise ConfigError(f"rule {pattern!r} matches no convolution: the model's are called {some}")

    def to_dict(self) -> dict:
        """A JSON-ready dict that `Rules.from_dict` reads back."""
        rules = [[pattern, config and config.to_dict()] for pattern, config in self._rules.items()]
        return {"kind": "rules", "version": VERSION, "rules": rules}

    @staticmethod
    def from_dict(data: Mapping) -> Rules:
        """The rules that `to_dict` wrote. ConfigError: another kind or version."""
        if data.get("kind") != "rules" or data.get("version") != VERSION:
            raise ConfigError(
                f"expected rules of version {VERSION}, got kind {data.get('kind')!r} of version {data.get('version')!r}"
            )
        return Rules({pattern: config and config_from_dict(config) for pattern, config in data["rules"]})


def as_rules(config: Config | Rules | Mapping) -> Rules:
    """Rules as they are; a bare configuration means every convolution."""
    if isinstance(config, Rules):
        return config
    if isinstance(config, Config):
        return Rules({"*": config})
    if isinstance(config, Mapping):
        return Rules(config)
    raise ConfigError(f"expected a configuration such as Perforate(keep=0.5), or Rules, got {config!r}")
