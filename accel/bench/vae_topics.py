"""Cases of kind `vae_topics`: amortised topic models beside scikit-learn's LDA, which knows no encoder.

A case: `data`, a file of `accel.zoo.word_counts`, `topics`, `seeds` (how many), `recipe`, `set` and `folder` of the
trainings, each in a folder of its own, where an interrupted one is gone on with; `latents`, what is set for each of
them; and `rivals`, keyword arguments of LatentDirichletAllocation by name.

Every tenth text is held out, and its words fall into two halves at random, alike for all. `perplexity` is that of the
second halves, each word being drawn from a mixture of topics whose shares are the posterior's mean given the first
half: each model's own posterior, by its encoder or by scikit-learn's `transform`. It is exact, a mean over the seeds,
which `perplexities` are of. `over_sklearn` is its ratio to the best rival's, `over_logistic_normal` to that latent's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.errors import DataError
from accel.vae.topics import completed, halves, mean_shares
from accel.zoo.runs import RECIPE_FILE, WEIGHTS_FILE, read_recipe_file
from accel.zoo.vaes import load_vae
from accel.zoo.word_counts import load_counts

SHOWN = ("case", "method", "perplexity", "deviation", "over_sklearn", "over_logistic_normal")
_SAMPLES = 1000  # of the posterior's mean


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    seeds = range(settings.seed, settings.seed + case["seeds"])
    (train, _), (test, _) = (load_counts(case["data"], split) for split in ("train", "test"))
    seen, rest = halves(test, torch.Generator().manual_seed(0))
    own = {latent: [_amortised(case, latent, seed, seen, rest) for seed in seeds] for latent in case["latents"]}
    rivals = {
        f"scikit-learn, {name}": [_sklearn(case, options, seed, train, seen, rest) for seed in seeds]
        for name, options in case["rivals"].items()
    }
    best = min(map(statistics.fmean, rivals.values()))
    for method, found in {**own, **rivals}.items():
        row = _row(case, method, found, seeds)
        if method in own:
            row["over_sklearn"] = round(statistics.fmean(found) / best, 4)
            if method != "logistic_normal" and "logistic_normal" in own:
                row["over_logistic_normal"] = round(
                    statistics.fmean(found) / statistics.fmean(own["logistic_normal"]), 4
                )
        yield row


def _row(case: Mapping[str, Any], method: str, found: Sequence[float], seeds: Sequence[int]) -> Row:
    return {
        "method": method,
        "topics": case["topics"],
        "seeds": len(seeds),
        "perplexity": round(statistics.fmean(found), 2),
        "deviation": round(statistics.stdev(found), 2) if len(found) > 1 else None,
        "perplexities": [round(value, 2) for value in found],
        "error": 0.0,
        "correct": all(map(math.isfinite, found)),
    }


def _amortised(case: Mapping[str, Any], latent: str, seed: int, seen: Tensor, rest: Tensor) -> float:
    changes = [*case.get("set", []), *case["latents"][latent]]
    folder, _ = trained({**case, "name": f"{case['name']} {latent}", "set": changes}, seed)
    vae = load_vae(read_recipe_file(folder / RECIPE_FILE, "vae")["vae"], folder / WEIGHTS_FILE)
    shares = mean_shares(vae, seen, _SAMPLES, torch.Generator().manual_seed(seed))
    return completed(shares, vae.decoder.topics().detach(), rest)


def _sklearn(
    case: Mapping[str, Any], options: Mapping[str, Any], seed: int, train: Tensor, seen: Tensor, rest: Tensor
) -> float:
    try:
        from sklearn.decomposition import LatentDirichletAllocation
    except ImportError as error:
        raise DataError(f"the rival is scikit-learn's ({error}): pip install 'skimconv[train]'") from error
    lda = LatentDirichletAllocation(case["topics"], random_state=seed, **options).fit(train.int().numpy())
    topics = torch.from_numpy(lda.components_ / lda.components_.sum(1, keepdims=True))
    return completed(torch.from_numpy(lda.transform(seen.int().numpy())), topics, rest)
