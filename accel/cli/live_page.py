"""The live page: `accel demo --serve`, on this machine only, with nothing fetched from elsewhere."""

from __future__ import annotations

import contextlib
import html
import os
import pathlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which reads it

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from accel.cli import live, live_table
from accel.cli.tables import ENDINGS
from accel.config import PRECISIONS
from accel.errors import AccelError, ConfigError
from accel.reports.pages import render

HOST = "127.0.0.1"
_LARGEST = "20mb"  # of an upload
_POLICY = (  # browsers then refuse whatever would come from, or go to, another machine
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'"
)
_INTRODUCTION = """# Convolutions that compute only where it matters
Everything on this page is computed on this machine, and nothing leaves it."""
_PERFORATED = """The network of `accel demo` names a drawn shape and outlines it; it knows the seven below and nothing
else, so of a photograph it outlines what stands out. Converted, it computes a share of the positions of its
convolutions and fills in the others from the nearest computed one. Drag a picture in, and move what it keeps."""
_ADAPTIVE = """A ResNet-32 for CIFAR-10's ten classes (aeroplanes, cars, ships, trucks and six animals) with SACT: at
every position it runs more of its units where it needs them. The map shows how many it ran."""
_TABLE = """A model of every column given any others is trained on your table, which takes about half a minute, and
fills in what is missing."""


def build_page(folder: pathlib.Path, seed: int = 0) -> gr.Blocks:
    """The page.

    Args:
        folder: of the files it makes: examples, and completed tables.
    """
    perforated, adaptive = live.Perforated(seed), live.Adaptive()
    pictures = live.draw_examples(folder, seed)
    with gr.Blocks(title="accel, live", analytics_enabled=False) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Tab("Perforated"):
            _perforated_tab(page, perforated, pictures)
        with gr.Tab("Adaptive"):
            _adaptive_tab(adaptive)
        with gr.Tab("Table"):
            _table_tab(folder, seed)
    return page


def _perforated_tab(page: gr.Blocks, networks: live.Perforated, examples: list[str]) -> None:
    gr.Markdown(_PERFORATED)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = _picture_input(examples[-2])
            low, high = live.KEEPS
            keep = gr.Slider(low, high, 0.5, step=0.05, label="keep: share of the positions", elem_id="keep")
            precision = gr.Radio(list(PRECISIONS), value=PRECISIONS[0], label="precision", elem_id="precision")
            mask = gr.Radio(list(live.MASKS), value=live.MASKS[0], label="mask: which positions", elem_id="mask")
        with gr.Column(scale=2, min_width=320):
            numbers = gr.HTML(elem_id="numbers")
            with gr.Row():
                with gr.Column(min_width=260):
                    compared = _comparison("Dense left of the handle, converted right of it", "compared")
                with gr.Column(min_width=260):
                    gr.Markdown("How much of the work is done where")
                    painted = gr.Image(
                        format="png", interactive=False, buttons=["fullscreen"], show_label=False, elem_id="painted",
                        alt_text="The picture under a map of where the converted network computes",
                    )  # fmt: skip
                    scale = gr.HTML()
    gr.Examples(examples, picture, label="drawn shapes")

    def look(path: str | None, *settings: Any) -> tuple:
        found = path and networks.look(live.read_upload(path), *settings)
        return (_numbers(found), found.compared, found.painted, _scale(found)) if found else (_NOTHING, None, None, "")

    inputs = [picture, keep, mask, precision]
    _computed([page.load, *(each.change for each in inputs)], look, inputs, [numbers, compared, painted, scale])


def _adaptive_tab(network: live.Adaptive) -> None:
    gr.Markdown(_ADAPTIVE)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = _picture_input(None)
        with gr.Column(scale=2, min_width=320):
            numbers = gr.HTML(_NOTHING)
            compared = _comparison("The picture left of the handle, how many units ran where right of it", "ponder")
            scale = gr.HTML()

    def look(path: str | None) -> tuple:
        found = path and network.look(live.read_upload(path))
        return (_numbers(found), found.compared, _scale(found)) if found else (_NOTHING, None, "")

    _computed([picture.change], look, [picture], [numbers, compared, scale])


def _table_tab(folder: pathlib.Path, seed: int) -> None:
    gr.Markdown(_TABLE)
    table = gr.File(label=f"a table ({', '.join(ENDINGS)})", file_types=list(ENDINGS), type="filepath", elem_id="table")
    gr.Examples([live_table.draw_example(folder, seed)], table, label="a drawn table")
    rows = gr.HTML(elem_id="rows")
    file = gr.File(label="the completed table", interactive=False, visible=False)

    def impute(path: str | None) -> tuple:
        if path is None:
            return "", gr.File(value=None, visible=False)
        found = live_table.impute_file(path, folder, seed)
        return found.page, gr.File(value=str(found.file), visible=True)

    _computed([table.change], impute, [table], [rows, file])


def _picture_input(value: str | None) -> gr.Image:
    """It hands over the uploaded file as it is, so that what cannot be read is refused in our words."""
    picture = gr.Image(
        value, label="picture", show_label=False, sources=["upload", "clipboard"], height=260, buttons=[],
        alt_text="The picture that the networks read",
    )  # fmt: skip
    picture.preprocess = lambda payload: payload and payload.path  # a subclass would make gradio write a .pyi file here
    return picture


def _comparison(label: str, name: str) -> gr.ImageSlider:
    gr.Markdown(label)  # gradio lays labels over the pictures
    return gr.ImageSlider(
        label=label, show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id=name
    )


def _computed(triggers: list[Callable], work: Callable, inputs: list, outputs: list) -> None:
    """Run `work` at any trigger: one thing at a time on the whole page, so that nothing disturbs what is timed, and of
    settings that come meanwhile only the last. What a user caused is said in the place of the first output, and the
    others are emptied: nothing old is left beside new settings."""

    def told(*values: Any) -> Any:
        try:
            return work(*values)
        except AccelError as error:
            return (f'<p class="refused">{html.escape(str(error))}</p>', *[None] * (len(outputs) - 1))

    gr.on(
        triggers, told, inputs, outputs,
        concurrency_id="machine", concurrency_limit=1, trigger_mode="always_last", show_progress_on=outputs[0],
        api_visibility="private",
    )  # fmt: skip


_NOTHING = "<p>No picture yet: drag one in.</p>"


def _numbers(found: live.Look) -> str:
    return render("live_numbers.html", numbers=found.numbers, words=found.words)


def _scale(found: live.Look) -> str:
    return render("live_scale.html", scale=found.scale)


@contextlib.contextmanager
def served(port: int, seed: int = 0) -> Iterator[tuple[str, uvicorn.Server, socket.socket]]:
    """The page ready to be served: its address, the server, and the socket it listens on; files go when the block ends.

    Raises:
        ConfigError: the port is taken, or not allowed.
    """
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot listen on port {port} ({reason}): give another with --port") from error
    with listening, tempfile.TemporaryDirectory(prefix="accel_live_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads too
        app = fastapi.FastAPI(openapi_url=None)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no page elsewhere speaks to it
        page = build_page(pathlib.Path(folder), seed)
        gr.mount_gradio_app(
            app,
            page,
            "/",
            footer_links=[],
            run_history=False,
            max_file_size=_LARGEST,
            ssr_mode=False,
            css=render("live.css"),
        )
        headers = [("content-security-policy", _POLICY), ("referrer-policy", "no-referrer")]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", headers=headers, timeout_graceful_shutdown=2))
        yield f"http://{HOST}:{listening.getsockname()[1]}", server, listening
