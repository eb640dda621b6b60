"""A contact sheet: one picture with a row of sample images per class, to see what a data set really holds."""

import io
from pathlib import Path

import numpy as np

from lilliput.data.dataset import ImageDataset
from lilliput.files import write_atomic

CELL = 64  # pixels of the longer side of a sample on the sheet
GAP = 4
LABEL_WIDTH = 120
LABEL_LETTERS = 18
MAX_ROWS = 40


def write_contact_sheet(dataset: ImageDataset, path: str | Path, columns: int = 10) -> None:
    """Write a PNG with the first `columns` training images of each of the first 40 classes, enlarged without smoothing.

    Raises:
        FailureError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    height, width, channels = dataset.image_shape
    scale = CELL / max(height, width)
    cell_width, cell_height = max(1, round(width * scale)), max(1, round(height * scale))
    rows = dataset.classes[:MAX_ROWS]
    size = (LABEL_WIDTH + columns * (cell_width + GAP) + GAP, len(rows) * (cell_height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(rows):
        top = GAP + row * (cell_height + GAP)
        # The built-in font lacks most letters outside Latin-1.
        text = name[:LABEL_LETTERS].encode("latin-1", errors="replace").decode("latin-1")
        draw.text((GAP, top + cell_height // 2 - 5), text, fill="black")
        members = np.flatnonzero(dataset.train.labels == row)[:columns]
        for column, index in enumerate(members):
            pixels = dataset.train.images[index]
            sample = Image.fromarray(pixels[..., 0] if channels == 1 else pixels).convert("RGB")
            resampling = Image.Resampling.NEAREST if scale >= 1.0 else Image.Resampling.BOX
            sample = sample.resize((cell_width, cell_height), resampling)
            sheet.paste(sample, (LABEL_WIDTH + column * (cell_width + GAP), top))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    write_atomic(path, stream.getvalue())
