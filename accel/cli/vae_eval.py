"""`accel eval` and `accel demo` of VAEs: likelihoods, perplexities, outliers, and a report with pictures."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from accel import files
from accel.cli import common
from accel.cli.vae_report import REPORT_FILE, Judged, write_report
from accel.cli.vae_training import Examples, Texts, check_shape, data_source, load_examples, read_vae
from accel.errors import ConfigError, DataError
from accel.vae import VAE, auroc, divergence, elbo, log_likelihood, trimmed_mean
from accel.vae.pictures import BitPictures
from accel.vae.topics import perplexity, top_words

DEMO = "zoo:vae_digits"
_ROWS = 200  # examples at a time
_ELBO_SAMPLES, _DEMO_SAMPLES = 10, 200


def run_eval(args: argparse.Namespace) -> int:
    """Judge the VAE on its data set, print one row, and write the report where -o says."""
    vae, recipe = read_vae(args.model, args.weights)
    examples = _drawn(load_examples(recipe, data_source(recipe, args.data), args.split, _noise(args, recipe)), args)
    check_shape(recipe, examples)
    if args.output is not None and isinstance(examples, Texts):
        raise ConfigError("the report of a VAE shows pictures, and this one's examples are texts: leave -o out")
    found, evidence = judge(vae, examples, args.samples, args.seed, args.keep, _watch(args))
    row = {"model": args.model, "split": args.split, **found}
    if isinstance(examples, Texts):
        row["topics"] = {str(k + 1): " ".join(words) for k, words in enumerate(top_words(vae, examples.words))}
    common.print_rows([row], args)
    if args.format == "table":
        for number, words in row.get("topics", {}).items():
            print(f"topic {number}: {words}")
    if args.output is not None:
        _report(args, args.model, vae, row, Judged(examples, evidence))
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """The report of the VAE that ships: with the digits where scikit-learn is there, else of what its prior draws."""
    vae, recipe = read_vae(DEMO)
    try:
        examples = load_examples(recipe, data_source(recipe, None), "test", 1.0)
    except DataError as error:
        common.note(args, f"without data, so no reconstructions and no ranking: {error}")
        row, judged = {"model": DEMO}, None
    else:
        found, evidence = judge(vae, examples, _DEMO_SAMPLES, args.seed, watch=_watch(args))
        row, judged = {"model": DEMO, **found}, Judged(examples, evidence)
        common.print_rows([row], args)
    _report(args, DEMO, vae, row, judged)
    return 0


@torch.no_grad()
def judge(
    vae: VAE,
    examples: Examples,
    samples: int,
    seed: int,
    keep: float | None = None,
    watch: Callable[[Iterable], Iterable] = iter,
) -> tuple[dict[str, Any], Tensor]:
    """(what is measured, the evidence of each example [N]).

    Args:
        samples: of the importance sampling. keep: the share of the likeliest examples for the trimmed ELBO.
        watch: put around the batches, to show how far it is.

    Raises:
        DataError: examples outside the likelihood's support. ConfigError: keep outside (0, 1].
    """
    rows = torch.arange(len(examples), device="cpu")
    noise = examples.is_noise(rows)
    generator = torch.Generator().manual_seed(seed)
    evidence, bounds, known = [], [], []
    for some in watch(rows.split(_ROWS)):
        x = examples.take(some, generator)
        evidence.append(log_likelihood(vae, x, samples, generator=generator))
        bounds.append(elbo(vae, x, _ELBO_SAMPLES, generator=generator))
        known.append(_divergence(vae, x))
    found, bound, clean = torch.cat(evidence), torch.cat(bounds), ~noise
    row: dict[str, Any] = {
        "examples": int(clean.sum()),
        "nll": round(-float(found[clean].mean()), 3),
        "nll_error": round(float(found[clean].std() / clean.sum().sqrt()), 3),
        "samples": samples,
        "minus_elbo": round(-float(bound[clean].mean()), 3),
    }
    if known[0] is not None:
        row["divergence"] = round(float(torch.cat(known)[clean].mean()), 3)
    if isinstance(examples, Texts):
        row["perplexity"] = round(perplexity(found, examples.counts), 2)
        row["perplexity_elbo"] = round(perplexity(bound, examples.counts), 2)
    if noise.any():
        row |= {"noise": int(noise.sum()), "outlier_auroc": round(auroc(-found, noise), 4)}
    if keep is not None:
        row["trimmed"] = round(float(trimmed_mean(bound, keep)), 3)
    return row, found


def _noise(args: argparse.Namespace, recipe: Mapping[str, Any]) -> float:
    """Noise examples per picture: those asked for, or of training examples those that the recipe has."""
    if args.noise is not None:
        return args.noise
    return recipe["data"].get("noise", 0.0) if args.split == "train" else 0.0


def _watch(args: argparse.Namespace) -> Callable[[Iterable], Iterable]:
    return functools.partial(common.progress, args, what="weighing evidence")


def _divergence(vae: VAE, x: Tensor) -> Tensor | None:
    try:
        return divergence(vae, x)
    except ConfigError:  # known by samples only: it is part of the ELBO
        return None


def _drawn(examples: Examples, args: argparse.Namespace) -> Examples:
    """--limit of the examples."""
    if args.limit is None:
        return examples
    key = "pictures" if isinstance(examples, BitPictures) else "counts"
    whole = getattr(examples, key)
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(args.seed))[: args.limit]
    return dataclasses.replace(examples, **{key: whole[chosen]})


def _report(args: argparse.Namespace, name: str, vae: VAE, row: dict[str, Any], judged: Judged | None) -> None:
    target: pathlib.Path = args.output
    with files.output_folder(target, REPORT_FILE) as folder:
        written = write_report(folder, vae, name, args.seed, row, judged)
    common.note(args, f"written: {', '.join(written)} in {target}/")
