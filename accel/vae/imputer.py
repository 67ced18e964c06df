"""Imputation of tables by a VAEAC, as a scikit-learn transformer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from accel.errors import ConfigError, DataError
from accel.vae import frames, imputer_files
from accel.vae.columns import describe
from accel.vae.conditional import checked_mask, long_frame
from accel.vae.imputer_training import Training, train
from accel.vae.inference import Sampler
from accel.vae.mask_generators import MCAR, MaskGenerator, OfTable
from accel.vae.memory import need_memory
from accel.vae.table_likelihood import TableLikelihood
from accel.vae.vaeac import VAEAC, table_vaeac

_MEAN_SAMPLES = 50  # latents that means and class probabilities are taken over
_INTERVAL_SAMPLES = 200
_STEPS = 3000  # of a training whose epochs are not given


class Imputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fills the missing cells of a table from a model of every column given any others (VAEAC, arXiv 1806.02382).

    Data frames may hold numbers, text, truth values, categories and nullable integers; dates are handed through. Arrays
    hold numbers, NaN where missing. Samples are seeded by `random_state`, the row's content and the number of the draw:
    they do not depend on the rows beside it, and rows that are alike in every cell get the same draws.

    Args:
        columns: kinds of columns, {name (of an array: number): kind}, where they should not be found: a kind is real,
            nonnegative, integer, count, boolean, categorical, ordinal or pass (handed through unlooked at), or a dict
            of kind, low, high and, in order, classes. Numbers of an array are real unless it says otherwise.
        scale: "learned": each numeric cell has a deviation of its own, and imputations are samples; "fixed":
            deviations are 1, and imputations are means given the latent, as in the official code: for point errors,
            not for intervals.
        masks: what is hidden in training, an `accel.vae.MaskGenerator` that numbers the columns of the table; None:
            every cell with a probability drawn for each row between 0 and 1/2.
        epochs: passes over the table; None: as many as make 3000 batches.
        batch_size, learning_rate: of the training (Adam; the rate is the highest of its schedule).
        width, depth, latent: of the networks: units of a layer, layers, latent variables.
        validation: share of the rows held out to choose the weights by the importance-weighted bound, under masks drawn
            once.
        patience: of 20 looks at them without improvement, after how many training stops.
        device: of torch, such as "cuda".
        random_state: seed of weights, training and samples.
        verbose: print the columns found and show a progress bar, on stderr.

    Attributes:
        columns_: list of `Column`, what was found.
        n_features_in_, feature_names_in_: of scikit-learn.
        bounds_: of the validation rows at every look, nats per row.
        model_: the VAEAC; None where no column has two values.
        seed_: the seed that `random_state` gave.
    """

    def __init__(
        self,
        columns: Mapping[Any, Any] | None = None,
        *,
        scale: str = "learned",
        masks: MaskGenerator | None = None,
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        width: int = 128,
        depth: int = 4,
        latent: int = 32,
        validation: float = 0.15,
        patience: int = 6,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.columns = columns
        self.scale = scale
        self.masks = masks
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.width = width
        self.depth = depth
        self.latent = latent
        self.validation = validation
        self.patience = patience
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: None = None) -> Imputer:
        """Learn from a table with or without missing cells.

        Raises:
            ConfigError: a setting out of range, or a kind for a column that is not there.
            DataError: fewer than two rows, or a column that cannot be read or holds no value; it is named.
        """
        self._check_settings()
        table = self._read(X, reset=True)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.bounds_: list[float] = []
        self.model_ = self._new_model()
        self._train(table)
        return self

    def partial_fit(self, X: Any, y: None = None) -> Imputer:
        """Train on, from the weights there are; columns and their scaling stay. The first call is `fit`."""
        if not hasattr(self, "model_"):
            return self.fit(X)
        self._check_settings()
        self._train(self._read(X, reset=False))
        return self

    def transform(self, X: Any) -> Any:
        """The table with its missing cells filled: by the mean, or the likeliest class. Also of rows never seen.

        Returns:
            A data frame for a data frame, with its columns, dtypes and index; an array for an array. Observed cells are
            as they were, byte for byte. What is handed through keeps its gaps.
        """
        table = self._read(X, reset=False)
        return self._fill(X, self._point_estimates(table))

    def impute(self, X: Any, num_imputations: int = 10) -> list:
        """Completed tables, each a draw from the model: for uncertainty, and for `pool`.

        Imputation k is the same whatever their number.
        """
        _check_count(num_imputations, "num_imputations")
        table = self._read(X, reset=False)
        need_memory(2 * table.nbytes * (num_imputations + 1), f"{num_imputations} imputations of {table.shape} cells")
        drawn = self._draw(table, num_imputations)
        return [self._fill(X, drawn[:, draw]) for draw in range(num_imputations)]

    def sample_conditional(self, X: Any, mask: Any, num_samples: int = 10) -> Any:
        """Draws of the cells that a mask hides, given those it does not: many masks at once.

        Args:
            X: N rows; one row serves all masks.
            mask: bool, True where a cell is to be drawn: [N, D], one for each row; with one row [M, D], M masks of it;
                [N or 1, M, D], M for each row. Missing cells are drawn whatever it says.
            num_samples: of each row under each mask.

        Returns:
            For an array float64 [N, num_samples, D], of one row [M, num_samples, D], of a mask of three dimensions
            [N, M, num_samples, D]. For a data frame one with these rows below each other, under index levels row (its
            label), mask (its number, where there are several for a row) and sample.

        Raises:
            DataError: a mask of another shape or type.
        """
        _check_count(num_samples, "num_samples")
        table = self._read(X, reset=False)
        mask = checked_mask(mask, *table.shape)
        need_memory(8 * mask.size * (2 * num_samples + 1), f"{num_samples} samples under masks {mask.shape}")
        rows = np.broadcast_to(table if mask.ndim == 2 else table[:, None], mask.shape)
        cells = np.where(mask, np.nan, rows).reshape(-1, table.shape[1])
        drawn = self._draw(cells, num_samples)
        known = ~np.isnan(cells)
        drawn = np.where(known[:, None], cells[:, None], drawn)
        if frames.is_frame(X):
            return long_frame(frames.as_pandas(X), self.columns_, mask, drawn)
        return drawn.reshape(*mask.shape[:-1], num_samples, table.shape[1])

    def class_probabilities(self, X: Any) -> dict[str, pd.DataFrame]:
        """Column name -> probabilities of its classes in every row [N, classes]: 1 for a class that is seen."""
        table = self._read(X, reset=False)
        chances = self._means(table)[1] if self.model_ is not None else None
        index = frames.as_pandas(X).index if frames.is_frame(X) else None
        found = {}
        for place, column in enumerate(self.columns_):
            if not column.discrete:
                continue
            seen = np.eye(len(column.classes))[np.nan_to_num(table[:, place]).astype(int)]
            if not column.constant:
                own = chances[:, self._discrete_place(place), : len(column.classes)]
                seen = np.where(np.isnan(table[:, place])[:, None], own, seen)
            found[column.name] = pd.DataFrame(seen, index=index, columns=list(column.classes))
        return found

    def intervals(self, X: Any, coverage: float = 0.9, num_samples: int = _INTERVAL_SAMPLES) -> tuple:
        """(lower, upper): in which a missing number lies with probability `coverage`; seen numbers are both.

        Returns:
            Two data frames of the numeric columns for a data frame; two arrays [N, D] for an array, NaN in columns of
            classes. With scale="fixed" they show how means vary, not numbers: they are too narrow.
        """
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage must lie between 0 and 1, got {coverage}")
        _check_count(num_samples, "num_samples")
        table = self._read(X, reset=False)
        lacking = np.isnan(table).any(1)
        ends = np.repeat(table[None], 2, 0)
        if lacking.any():
            drawn = self._draw(table[lacking], num_samples)
            quantiles = np.quantile(drawn, [(1 - coverage) / 2, (1 + coverage) / 2], axis=1, method="weibull")
            ends[:, lacking] = np.where(np.isnan(table[lacking]), quantiles, table[lacking])
        numeric = [place for place, column in enumerate(self.columns_) if column.numeric]
        if frames.is_frame(X):
            names, index = [self.columns_[place].name for place in numeric], frames.as_pandas(X).index
            return tuple(pd.DataFrame(end[:, numeric], index=index, columns=names) for end in ends)
        ends[:, :, [place for place in range(table.shape[1]) if place not in numeric]] = np.nan
        return tuple(ends)

    def calibration_report(self, X: Any, **options: Any) -> Any:
        """How far to trust it, by hiding known cells: `accel.vae.calibration.examine`, whose options it takes."""
        from accel.vae.calibration import examine

        return examine(self, X, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file whose header holds the settings as JSON; it is complete or absent."""
        check_is_fitted(self, "model_")
        imputer_files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Imputer:
        """What `save` wrote; runs no code from the file.

        Raises:
            WeightsError: it is missing, damaged, or something else.
        """
        return imputer_files.load(cls, path)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    # -- inside ------------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        if self.scale not in ("learned", "fixed"):
            raise ConfigError(f"scale must be 'learned' or 'fixed', got {self.scale!r}")
        if self.masks is not None and not isinstance(self.masks, MaskGenerator):
            raise ConfigError(f"masks must be a MaskGenerator, such as accel.vae.MCAR(0.3): got {self.masks!r}")
        for name in ("batch_size", "width", "depth", "latent", "patience"):
            _check_count(getattr(self, name), name)
        if self.epochs is not None:
            _check_count(self.epochs, "epochs")
        if not 0 <= self.validation < 1 or not 0 < self.learning_rate < 1:
            raise ConfigError(
                f"validation must lie in [0, 1) and learning_rate in (0, 1), got {self.validation} and "
                f"{self.learning_rate}"
            )

    def _read(self, X: Any, reset: bool) -> np.ndarray:
        """The table as float64 [N, D], NaN where missing; with `reset`, columns are found."""
        if not reset:
            check_is_fitted(self, "model_")
        if frames.is_frame(X):
            frame = frames.as_pandas(X)
            validate_data(self, frame, skip_check_array=True, reset=reset)
            if len(frame) < (least := 2 if reset else 1):
                raise DataError(
                    f"the table has {len(frame)} rows (n_samples={len(frame)}, a minimum of {least} is required)"
                )
            if reset:
                self.columns_ = frames.find_columns(frame, self.columns or {})
            return frames.encode(frame, self.columns_)
        table = validate_data(
            self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2 if reset else 1, reset=reset
        )
        frame = pd.DataFrame(table)
        if reset:
            kinds = dict.fromkeys(frame.columns, "real") | dict(self.columns or {})
            self.columns_ = frames.find_columns(frame, kinds)
        return frames.encode(frame, self.columns_)

    @property
    def _modelled(self) -> list[int]:
        """Places of the columns that the model is of: those with two values at least."""
        return [place for place, one in enumerate(self.columns_) if one.kind != "pass" and not one.constant]

    def _discrete_place(self, place: int) -> int:
        return [one for one in self._modelled if self.columns_[one].discrete].index(place)

    def _new_model(self) -> VAEAC | None:
        """A model with weights drawn by the seed, torch's own generator left as it was."""
        if not self._modelled:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed_)
            return self._model().to(self.device or "cpu")

    def _model(self) -> VAEAC:
        likelihood = TableLikelihood([self.columns_[place] for place in self._modelled], self.scale == "learned")
        return table_vaeac(likelihood, self.width, self.depth, self.latent)

    def _scaled(self, table: np.ndarray) -> np.ndarray:
        """[N, modelled columns] in the network's units."""
        return np.stack([self.columns_[place].scaled(table[:, place]) for place in self._modelled], 1)

    def _train(self, table: np.ndarray) -> None:
        if self.model_ is None:
            return
        need_memory(3 * table.nbytes, f"a table of {table.shape} cells")
        device = next(self.model_.parameters()).device
        cells = torch.from_numpy(self._scaled(table)).float().to(device)
        rows = len(cells) * (1 - self.validation)
        steps = _STEPS if self.epochs is None else max(1, round(self.epochs * rows / min(self.batch_size, rows)))
        settings = Training(steps, self.batch_size, self.learning_rate, self.validation, self.patience)
        generator = torch.Generator(device=device).manual_seed(self.seed_)
        masks = OfTable(self.masks or MCAR((0.0, 0.5)), tuple(self._modelled), table.shape[1])
        with self._progress(steps) as tick:
            trained = train(self.model_, cells, masks, settings, generator, tick)
        self.bounds_ = [*self.bounds_, *trained.bounds]

    @contextlib.contextmanager
    def _progress(self, steps: int) -> Iterator[Callable[[], object]]:
        if not self.verbose:
            yield lambda: None
            return
        import rich.console
        import rich.progress

        console = rich.console.Console(stderr=True)
        console.print(describe(self.columns_), markup=False, highlight=False)
        with rich.progress.Progress(console=console, transient=True) as bar:
            task = bar.add_task("training", total=steps)
            yield lambda: bar.advance(task)

    def _point_estimates(self, table: np.ndarray) -> np.ndarray:
        """Means, and numbers of the likeliest classes, of all cells of rows that lack one."""
        lacking = np.isnan(table[:, self._modelled]).any(1)
        estimates = self._constants(table)
        if not lacking.any():
            return estimates
        means, chances = self._means(table[lacking])
        numeric = [place for place in self._modelled if self.columns_[place].numeric]
        discrete = [place for place in self._modelled if self.columns_[place].discrete]
        for own, place in enumerate(numeric):
            estimates[lacking, place] = self.columns_[place].unscaled(means[:, own])
        if discrete:
            estimates[np.ix_(lacking, discrete)] = chances.argmax(-1)
        return estimates

    def _means(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return Sampler(self.model_, self.seed_).means(self._scaled(table), _MEAN_SAMPLES)

    def _constants(self, table: np.ndarray) -> np.ndarray:
        """What stands in columns of one value: that value, or class 0."""
        values = [column.mean if column.numeric and column.constant else 0.0 for column in self.columns_]
        return np.broadcast_to(np.array(values), table.shape).copy()

    def _draw(self, table: np.ndarray, count: int) -> np.ndarray:
        """Draws of all cells, [N, count, D]; those of rows that lack none are not to be looked at."""
        drawn = np.repeat(self._constants(table)[:, None], count, 1)
        lacking = np.isnan(table[:, self._modelled]).any(1)
        if lacking.any():
            found = Sampler(self.model_, self.seed_).samples(self._scaled(table[lacking]), 0, count)
            for own, place in enumerate(self._modelled):
                column = self.columns_[place]
                values = column.unscaled(found[..., own])
                drawn[lacking, :, place] = np.round(values) if column.whole and self.scale == "learned" else values
        return drawn

    def _fill(self, X: Any, imputed: np.ndarray) -> Any:
        if frames.is_frame(X):
            return frames.like_input(frames.fill(frames.as_pandas(X), self.columns_, imputed), X)
        array = np.array(X if isinstance(X, np.ndarray) and X.dtype.kind == "f" else np.asarray(X, dtype=np.float64))
        frame = frames.fill(pd.DataFrame(array), self.columns_, imputed)
        return frame.to_numpy(dtype=array.dtype)


def _check_count(value: object, name: str) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
