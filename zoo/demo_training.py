"""Training of the demo network, by its recipe: `python -m accel.zoo.demo_training zoo/recipes/demo_resnet.toml`."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.masks import build_mask
from accel.train.loop import FitSettings, fit
from accel.zoo.demo_net import DemoOutput, DemoResNet, mask_iou
from accel.zoo.shapes import draw_shapes, normalise
from accel.zoo.weights_io import save_half

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def demo_loss(out: DemoOutput, labels: Tensor, masks: Tensor, mask_weight: float) -> Tensor:
    """Cross-entropy of the class plus `mask_weight` times the mean of pixel-wise cross-entropy and soft Dice loss."""
    logits, mask = out.logits.float(), out.mask.float()
    probability = mask.sigmoid()
    overlap = (probability * masks).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
    outline = 0.5 * (F.binary_cross_entropy_with_logits(mask, masks) + dice.mean())
    return F.cross_entropy(logits, labels) + mask_weight * outline


@contextlib.contextmanager
def filled_from_nearest(model: nn.Module, keep: float, mask: str, dense: list[str], seed: int) -> Iterator[None]:
    """Run `model` as if perforated: every convolution not named in `dense` takes skipped outputs from the nearest kept.

    The convolutions still compute every position: this is for training at any keep with one set of modules.
    """
    generator = torch.Generator().manual_seed(seed)

    def refill(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        height, width = out.shape[-2:]
        chosen = build_mask(mask, keep, height, width, generator=generator)
        stand_in = chosen.positions[chosen.nearest].long()
        y, x = (axis.reshape(height, width) for axis in (stand_in // width, stand_in % width))
        return out[:, :, y, x]

    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name not in dense]
    handles = [layer.register_forward_hook(refill) for layer in layers] if keep < 1 else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def step_loss(model: nn.Module, step: int, recipe: dict) -> Tensor:
    """The loss of one step; its pictures, keep and ties depend on the recipe's seed and the step number alone."""
    data, perforation = recipe["data"], recipe["perforation"]
    seed = data["seed"] * 1_000_000 + step
    generator = torch.Generator().manual_seed(seed)
    size = data["large"] if step >= data["large_after"] else data["small"]
    shapes = draw_shapes(data["batch"], size, generator)
    keeps = perforation["keeps"] if step >= perforation["perforate_after"] else [1.0]
    keep = keeps[int(torch.randint(len(keeps), (1,), generator=generator))]
    images = normalise(shapes.images).contiguous(memory_format=torch.channels_last)
    precision = getattr(torch, recipe["fit"]["precision"])
    with (
        filled_from_nearest(model, keep, perforation["mask"], perforation["dense_layers"], seed),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        out = model(images)
    return demo_loss(out, shapes.labels, shapes.masks, recipe["loss"]["mask_weight"])


@torch.inference_mode()
def evaluate(model: nn.Module, recipe: dict, keep: float) -> tuple[float, float]:
    """(accuracy, mean IoU of the object mask) on the recipe's test pictures, none of which was trained on."""
    test, perforation = recipe["test"], recipe["perforation"]
    generator = torch.Generator().manual_seed(test["seed"])
    right, overlap, count = 0, 0.0, 0
    with filled_from_nearest(model, keep, perforation["mask"], perforation["dense_layers"], seed=0):
        while count < test["pictures"]:
            shapes = draw_shapes(min(64, test["pictures"] - count), test["size"], generator)
            out = model(normalise(shapes.images).contiguous(memory_format=torch.channels_last))
            right += int((out.logits.argmax(1) == shapes.labels).sum())
            overlap += float(mask_iou(out.mask, shapes.masks).sum())
            count += len(shapes.labels)
    return right / count, overlap / count


def train(recipe: dict, checkpoint: pathlib.Path) -> nn.Module:
    """Train by the recipe, continuing from `checkpoint` where it exists."""
    torch.manual_seed(recipe["data"]["seed"])
    model = DemoResNet(recipe["model"]["width"]).to(memory_format=torch.channels_last)
    fields = {key: value for key, value in recipe["fit"].items() if key != "precision"}
    started = time.monotonic()

    def log(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  {time.monotonic() - started:6.0f} s", flush=True)

    return fit(model, lambda m, s: step_loss(m, s, recipe), FitSettings(**fields), checkpoint=checkpoint, log=log)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo network by its recipe.")
    parser.add_argument("recipe", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the checkpoint and the weights")
    args = parser.parse_args()
    recipe = tomllib.loads(args.recipe.read_text(encoding="utf-8"))
    args.work.mkdir(parents=True, exist_ok=True)
    model = train(recipe, args.work / "checkpoint.pt")
    save_half(model, args.work / f"{recipe['model']['name']}.safetensors")
    for keep in sorted(set(recipe["perforation"]["keeps"]), reverse=True):
        accuracy, overlap = evaluate(model, recipe, keep)
        print(f"keep {keep:.3f}  accuracy {accuracy:.4f}  mask IoU {overlap:.4f}", flush=True)


if __name__ == "__main__":
    main()
