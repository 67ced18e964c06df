"""Caches that forget: with the tensors that a value was made from, and the oldest where there are too many."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

_every: list[IdentityCache] = []
_Kept = TypeVar("_Kept")
MOST_SIZES, MOST_POSITIONS = 8, 1 << 22  # of a layer's sets: one of 512x512 positions takes 1.5 MB, with its lists 3 MB
MOST_KINDS = 256  # of values from the same tensors: layers and batch sizes that share a position set


class IdentityCache:
    """Values computed from tensors, kept while these tensors live; of the same tensors the newest `MOST_KINDS`.

    `build` gets other tensors of the same memory: a value that held the tensors themselves would keep them alive.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, ...], tuple[dict[Hashable, object], list[weakref.ref]]] = {}
        _every.append(self)

    def __len__(self) -> int:
        return sum(len(kinds) for kinds, _ in list(self._values.values()))

    def get(self, tensors: tuple[Tensor | None, ...], key: Hashable, build: Callable[[tuple], object]) -> object:
        """The value built from `tensors` and `key`. An id is not reused before its entry is gone."""
        ids = tuple(map(id, tensors))
        found = self._values.get(ids)
        if found is not None and (value := found[0].get(key)) is not None:
            return value
        with torch.inference_mode(False):  # a cached inference tensor could not be used by a later training step
            value = build(tuple([None if t is None else t.detach() for t in tensors]))
        if found is None:
            references = [forgetting(t, self._values, ids) for t in tensors if t is not None]
            found = self._values.setdefault(ids, ({}, references))
        found[0][key] = value
        keep_newest(found[0], MOST_KINDS)
        return value


def forgetting(tensor: Tensor, cache: dict, key: Hashable) -> weakref.ref:
    """A reference to the tensor; when that goes, so does the cache's entry.

    No line of Python does that: an interrupt in it would be dropped with the work half done, and the entry would serve
    the next tensor that has this id.
    """
    return weakref.ref(tensor, functools.partial(cache.pop, key))  # which is called as pop(key, reference)


def keep_newest(cache: dict, most: int) -> None:
    """Let the oldest entries go until `most` are left; other threads may use the cache meanwhile."""
    if len(cache) > most:
        for oldest in list(cache)[: len(cache) - most]:
            cache.pop(oldest, None)


def keep_newest_sizes(cache: dict, most: int = MOST_SIZES) -> None:
    """The same of values of maps, by (height, width, ...): few, and few positions in all; the newest one anyway."""
    positions = 0
    for index, size in enumerate(reversed(list(cache))):
        positions += size[0] * size[1]
        if index >= most or (index and positions > MOST_POSITIONS):
            cache.pop(size, None)


def kept_by_size(cache: dict, key: tuple, make: Callable[[], _Kept], most: int = MOST_SIZES) -> _Kept:
    """What `make` made once for this key, which starts with a height and a width; the oldest make room for new ones."""
    found = cache.get(key)
    if found is None:
        with torch.inference_mode(False):  # an inference tensor kept here could not serve a later training step
            found = cache[key] = make()
        keep_newest_sizes(cache, most)
    return found


def entries() -> int:
    """How many values all caches of this process hold."""
    return sum(map(len, _every))


def _tell_versions(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
    """Raise the versions, by which caches know, of what a fused optimizer wrote: torch (2.14) does not."""
    written = [p for group in optimizer.param_groups if group.get("fused") for p in group["params"]]
    if written:
        torch.autograd.graph.increment_version(written)


register_optimizer_step_post_hook(_tell_versions)
