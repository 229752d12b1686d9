"""Pictures of single examples: image, ground truth and prediction side by side, with the colours' names below."""

import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.core.files import write_bytes
from jaxseg.core.types import DatasetInfo
from jaxseg.report.overlay import overlay
from jaxseg.train.observer import Observer

FOLDER = "samples"
MIN_PANEL_PX = 256
MAX_PANEL_PX = 1024
GAP_PX = 8
LINE_PX = 22
INK = (32, 32, 32)
PAPER = (255, 255, 255)
OVERLAY_ALPHA = 0.65


class Samples(Observer):
    """Writes `<workdir>/samples/step_00001000/00.png`, ... at every evaluation."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Args: workdir: the run's folder."""
        self._workdir = pathlib.Path(workdir)

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """One picture a sample of the result."""
        for i, (image, label, prediction) in enumerate(result.samples):
            picture = sample_picture(image, label, prediction, info)
            write_bytes(sample_folder(self._workdir, step) / f"{i:02}.png", png_bytes(picture))


def sample_folder(workdir: str | os.PathLike[str], step: int) -> pathlib.Path:
    """Where the pictures of an evaluation are."""
    return pathlib.Path(workdir) / FOLDER / f"step_{step:08}"


def sample_picture(image: np.ndarray, label: np.ndarray, prediction: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Image, ground truth and prediction beside each other; below, the classes that appear in either.

    Pictures under 256 pixels wide are enlarged by a whole number, those over 1024 reduced.

    Args:
      image: uint8 `[h, w, 3]`, RGB.
      label: int32 `[h, w]`, class ids and void.
      prediction: int32 `[h, w]`, class ids.
      info: names and colours.

    Returns:
      uint8 `[H, W, 3]`, RGB.
    """
    panels = {
        "image": image,
        "ground truth": overlay(image, label, info, OVERLAY_ALPHA),
        "prediction": overlay(image, prediction, info, OVERLAY_ALPHA),
    }
    scaled = {title: _to_panel_size(panel) for title, panel in panels.items()}
    height, width = scaled["image"].shape[:2]
    total = 3 * width + 4 * GAP_PX
    entries = _legend_entries(label, prediction, info)
    rows = _legend_rows(entries, total - 2 * GAP_PX)
    canvas = Image.new("RGB", (total, LINE_PX + height + 2 * GAP_PX + LINE_PX * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (title, panel) in enumerate(scaled.items()):
        left = GAP_PX + i * (width + GAP_PX)
        draw.text((left, 4), title, fill=INK, font=_font())
        canvas.paste(Image.fromarray(panel), (left, LINE_PX))
    top = LINE_PX + height + GAP_PX
    for row in rows:
        for left, name, color in row:
            draw.rectangle((left, top + 4, left + 12, top + 16), fill=color, outline=INK)
            draw.text((left + 18, top + 3), name, fill=INK, font=_font())
        top += LINE_PX
    return np.asarray(canvas)


def png_bytes(picture: np.ndarray) -> bytes:
    """uint8 `[h, w, 3]` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _to_panel_size(panel: np.ndarray) -> np.ndarray:
    height, width = panel.shape[:2]
    if width < MIN_PANEL_PX:
        factor = -(-MIN_PANEL_PX // width)
        # A strip of one pixel's width must not become a tower.
        factor = max(1, min(factor, MAX_PANEL_PX // height))
        return np.repeat(np.repeat(panel, factor, axis=0), factor, axis=1)
    longest = max(height, width)
    if longest <= MAX_PANEL_PX:
        return panel
    size = (max(1, width * MAX_PANEL_PX // longest), max(1, height * MAX_PANEL_PX // longest))
    return np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BOX))


def _legend_entries(
    label: np.ndarray, prediction: np.ndarray, info: DatasetInfo
) -> list[tuple[str, tuple[int, int, int]]]:
    ids = np.union1d(np.unique(label), np.unique(prediction))
    return [(info.class_names[i], info.colors[i]) for i in ids.tolist() if i != info.void]


def _legend_rows(
    entries: list[tuple[str, tuple[int, int, int]]], width: int
) -> list[list[tuple[int, str, tuple[int, int, int]]]]:
    """Breaks the legend into rows of (left edge, name, colour) that fit the width."""
    rows: list[list[tuple[int, str, tuple[int, int, int]]]] = []
    left = width + 1
    for name, color in entries:
        need = 18 + round(_font().getlength(name)) + 16
        if left + need > GAP_PX + width:
            rows.append([])
            left = GAP_PX
        rows[-1].append((left, name, color))
        left += need
    return rows


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, the same on every machine."""
    return ImageFont.load_default(13)
