"""The page that `accel convert` leaves: what was asked and measured, in words, and where the network computes."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accel.reports.pages import picture_source, render

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from accel.profiling.layers import Profile

_LAYERS = 2  # whose positions are drawn
_STRIPS = 3  # pictures that are shown
_DARK = 0.15  # what is left of a skipped position


def page(
    model: str,
    summary: Mapping[str, Any],
    layers: Profile,
    machine: Mapping[str, Any],
    looked: Figure,
    pictures: pathlib.Path,
    fixed: bool,
) -> str:
    """The HTML page, everything inside.

    Args:
        summary, layers: as `accel convert` prints them.
        looked: what `draw_looked` drew.
        pictures: the folder of strips, which need not be there.
        fixed: whether all layers compute the same positions in every picture.
    """
    strips = sorted(pictures.glob("*.png"))[:_STRIPS] if pictures.is_dir() else []
    return render(
        "convert.html",
        title=f"accel convert {model}",
        model=model,
        headline=_headline(summary),
        words=in_words(summary),
        looked=picture_source(functools.partial(looked.savefig, format="png", dpi=110)),
        fixed=fixed,
        strips=[(path.stem, _embedded(path)) for path in strips],
        by_layer=layers.filled(),
        machine=machine,
    )


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, for somebody who did not ask for them."""
    dense_ms, ms = summary[f"{summary['fastest_dense']}_ms"], summary["converted_ms"]
    share = 100 * summary["executed_macs"] / summary["dense_macs"]
    threads, batch = _counted(summary["threads"], "thread"), _counted(summary["batch"], "picture")
    lines = [
        f"On this machine, with {threads}, the converted network takes {ms:g} milliseconds for {batch} of "
        f"{summary['size']} pixels, where the fastest form of the original takes "
        f"{dense_ms:g}: it is {summary['speedup']:.2f} times as fast. It does {share:.0f} % of the multiplications, "
        f"which would make it {summary['theoretical_speedup']:.2f} times as fast if nothing else took time."
    ]
    if "imitated" in summary:
        lines.append(f"Beware: {summary['imitated']}.")
    if summary["speedup"] < 1:
        lines.append("That is slower than the original: this conversion is of no use on this machine.")
    return [
        *lines,
        f"On {_counted(summary['pictures'], 'picture')} that nothing was calibrated on {_agreement(summary)}.",
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _agreement(summary: Mapping[str, Any]) -> str:
    if "top1_agreement" in summary:
        return f"it names the same class as the original in {100 * summary['top1_agreement']:.1f} % of the cases"
    if "iou_at_0.5" in summary:
        overlap = f"what the two mark overlaps by {100 * summary['iou_at_0.5']:.0f} %"
        return f"its maps differ by {summary['mean_abs_difference']:.4f} on average, of at most 1, and {overlap}"
    return f"its outputs differ from the original's by {summary['mean_abs_difference']:.4g} on average"


def looked_at(model: nn.Module, x: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the share of the work that is done at each pixel of the first picture [H, W]; what single layers compute, by
    their names, bool [H', W'])."""
    from accel.convert.computed import computed_positions, computed_share

    first, by_size = x[:1], {}
    for name, kept in computed_positions(model, first).items():
        by_size.setdefault(kept.shape[1:], (name, kept[0].cpu().numpy()))
    largest = sorted(by_size, key=lambda size: -size[0] * size[1])[:_LAYERS]
    return computed_share(model, first, tuple(x.shape[2:]))[0].numpy(), dict(by_size[size] for size in largest)


def draw_looked(picture: Tensor, share: np.ndarray, masks: Mapping[str, np.ndarray]) -> Figure:
    """Panels, two in a row: the picture, uint8 [3, H, W]; the share; the picture as each layer computes it."""
    import torch.nn.functional as F
    from matplotlib.figure import Figure

    rows = -(-(2 + len(masks)) // 2)
    tall = 4.7 * picture.shape[1] / picture.shape[2] + 0.5
    figure = Figure(figsize=(10, tall * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    panels[0].imshow(picture.permute(1, 2, 0).cpu().numpy())
    panels[0].set_title("picture", fontsize=11)
    shown = panels[1].imshow(share, cmap="viridis", vmin=0, vmax=1)
    panels[1].set_title("share of the work that is done", fontsize=11)
    figure.colorbar(shown, ax=panels[1], fraction=0.046)
    for panel, (name, kept) in zip(panels[2:], masks.items()):
        small = F.interpolate(picture[None].float().cpu() / 255, kept.shape, mode="bilinear", antialias=True)[0]
        seen = small.permute(1, 2, 0).clamp(0, 1).numpy() * (_DARK + (1 - _DARK) * kept[..., None])
        panel.imshow(seen, interpolation="nearest")
        panel.set_title(f"{name}: {int(kept.sum())} of {kept.size} positions", fontsize=11)
    for panel in panels:
        panel.set_axis_off()
    return figure


def _headline(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = 100 * summary["executed_macs"] / summary["dense_macs"]
    quality = (f"{summary['mean_abs_difference']:.4f}", "mean difference of the outputs")
    if "top1_agreement" in summary:
        quality = (f"{100 * summary['top1_agreement']:.1f} %", "of pictures named as the original does")
    elif "iou_at_0.5" in summary:
        quality = (f"{summary['iou_at_0.5']:.3f}", "overlap (IoU) with the original's maps")
    return [
        (f"{summary['speedup']:.2f}x", "as fast as the original's fastest form"),
        (f"{summary['converted_ms']:g} ms", f"a call, of {summary['batch']}"),
        (f"{share:.0f} %", "of the multiply-accumulates"),
        quality,
    ]


def _embedded(path: pathlib.Path) -> str:
    return picture_source(lambda file: file.write(path.read_bytes()))
