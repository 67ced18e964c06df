"""Distributions with one row per sample, and the shapes that go with them.

Every estimator works on a distribution whose batch shape starts with the number of samples N, so that row n of its
parameters meets sample n only. The gradient of a sum over rows with respect to the expanded parameters is then the
stack of per-sample gradients (``jacobians``), and autograd adds them up behind an ``expand`` (``expectation``).
"""

from __future__ import annotations

import copy
import inspect
from operator import attrgetter

from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

_ALTERNATIVES = (("probs", "logits"), ("covariance_matrix", "precision_matrix", "scale_tril"))


def unwrap(q: Distribution) -> Distribution:
    """``q`` without its ``Independent`` wrappers: their event dimensions become trailing batch dimensions."""
    while isinstance(q, Independent):
        q = q.base_dist
    return q


def expand_rows(q: Distribution, num_samples: int) -> Distribution:
    """``q`` with batch shape ``(num_samples, *batch_shape)``; its parameters are views of the given ones."""
    return _as_given(q).expand((num_samples, *q.batch_shape))


def _as_given(q: Distribution) -> Distribution:
    """``q`` without the spelling of probs/logits that torch cached beside the given one: ``expand`` may prefer it."""
    stored = vars(q)
    if "_categorical" in stored:
        bare = copy.copy(q)
        bare._categorical = _as_given(q._categorical)
        return bare
    if "_param" not in stored or not {"probs", "logits"} <= stored.keys():
        return q
    bare = copy.copy(q)
    del vars(bare)["logits" if stored["probs"] is stored["_param"] else "probs"]
    return bare


def parameter_names(q: Distribution) -> tuple[str, ...]:
    """Names of the parameters ``q`` was built from; of probs/logits and the like, the one that was given.

    torch caches the other spellings in the instance when they are read. It keeps the given one of probs/logits as
    ``_param``; of the Gaussian's three the given one comes first.
    Parameters of a distribution inside q have dotted names: ``component_distribution.loc``.
    """
    stored = vars(getattr(q, "_categorical", q))
    names = []
    for name in q.arg_constraints:
        group = next((group for group in _ALTERNATIVES if name in group), ())
        cached = [key for key in stored if key in group]
        given = [key for key in cached if stored[key] is stored.get("_param")] or cached
        if name == given[0] if group else isinstance(getattr(q, name, None), Tensor):
            names.append(name)
    for name in _arguments(q).values():
        inner = None if name in q.arg_constraints else getattr(q, name, None)
        if isinstance(inner, Distribution):
            names += [f"{name}.{inner_name}" for inner_name in parameter_names(inner)]
    return tuple(names)


def parameter(q: Distribution, name: str) -> Tensor:
    """The parameter of ``q`` of that (dotted) name."""
    return attrgetter(name)(q)


def _arguments(q: Distribution) -> dict[str, str]:
    """Arguments of the constructor of q, and the attributes that keep them."""
    found = [name for name in inspect.signature(type(q).__init__).parameters if name not in ("self", "validate_args")]
    return {name: "base_dist" if name == "base_distribution" else name for name in found}


def with_leaves(q: Distribution, names: tuple[str, ...]) -> tuple[Distribution, dict[str, Tensor]]:
    """A copy of ``q`` on detached parameters, and those of them that required a gradient, as new leaves.

    Raises:
        ValueError: the constructor of q has an argument that cannot be read back from the instance.
    """
    arguments, leaves = {}, {}
    for argument, stored in _arguments(q).items():
        if argument in q.arg_constraints and argument not in names:
            continue  # another spelling of a given parameter
        if not hasattr(q, stored):
            raise ValueError(
                f"cannot rebuild {type(q).__name__}: its constructor takes {argument!r}, which the instance does not "
                "keep; use expectation without a control variate"
            )
        value = getattr(q, stored)
        if argument in names:
            given, value = value, value.detach().clone()
            if given.requires_grad:
                leaves[argument] = value.requires_grad_()
        elif isinstance(value, Distribution):
            prefix = f"{stored}."
            inside = tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))
            value, inner = with_leaves(value, inside)
            leaves.update({prefix + name: leaf for name, leaf in inner.items()})
        arguments[argument] = value
    return type(q)(**arguments, validate_args=False), leaves


def check_parameters(q: Distribution, names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming the first parameter of ``q`` that is NaN or outside its constraint."""
    for name in names:
        holder, _, last = name.rpartition(".")
        owner = attrgetter(holder)(q) if holder else q
        value, constraint = getattr(owner, last).detach(), owner.arg_constraints[last]
        if value.isnan().any():
            raise ValueError(f"parameter {name} of {type(q).__name__} holds NaN; expected {constraint}")
        if not constraints.is_dependent(constraint) and not constraint.check(value).all():
            raise ValueError(
                f"parameter {name} of {type(q).__name__} is outside its support: expected {constraint}, "
                f"got values in [{value.min():g}, {value.max():g}]; map it there first (exp, sigmoid, softplus)"
            )


def sum_to(tensor: Tensor, ndim: int) -> Tensor:
    """Sum of ``tensor`` over every dimension after the first ``ndim``."""
    return tensor if tensor.dim() == ndim else tensor.flatten(ndim).sum(-1)


def widen(tensor: Tensor, ndim: int) -> Tensor:
    """``tensor`` with trailing dimensions of size 1 up to ``ndim`` dimensions."""
    return tensor.reshape(tensor.shape + (1,) * (ndim - tensor.dim()))


def attach(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value``, with the gradient of ``surrogate`` added to its own."""
    return value + (surrogate - surrogate.detach())
