"""`folder:DIR`: images in one folder per class, DIR/<class>/*.png, or DIR/train|val|test/<class>/*.png."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.data.arrays import Pair
from secateur.data.sources import SOURCES, RawData, ReadConfig
from secateur.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
GREY_MODES = frozenset({"1", "L"})
SHOWN = 3  # offenders that an error lists

Size = tuple[int, int]  # (height, width)


@SOURCES.register("folder")
def read_folder(address: str, read: ReadConfig) -> RawData:
    """Read images as x (N, C, H, W) uint8: C is 1 when every image is grey, and otherwise 3 (RGB).

    Raises:
        DataError: no such folder, no images, parts with other classes, files that are no images, several sizes.
    """
    root = Path(address)
    if not address or not root.is_dir():
        raise DataError(f"No folder '{address}'. Write folder:DIR, with the images in DIR/<class>/.")
    roots = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "train" not in roots:
        roots = {"train": root}
    listed = {part: _listing(path) for part, path in roots.items()}
    classes = tuple(sorted(listed["train"]))
    for part, files in listed.items():
        if strangers := sorted(set(files) - set(classes)):
            raise DataError(f"{roots[part]} has classes that {roots['train']} has not: {', '.join(strangers)}.")
    every = [file for files in listed.values() for paths in files.values() for file in paths]
    is_grey, size = _survey(every, read.image_size)
    pairs = {part: _read_part(files, classes, is_grey, size) for part, files in listed.items()}
    return RawData(train=pairs["train"], val=pairs.get("val"), test=pairs.get("test"), classes=classes)


def _listing(root: Path) -> dict[str, list[Path]]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    listed = {f.name: sorted(p for p in f.iterdir() if p.suffix.lower() in SUFFIXES) for f in folders}
    if not listed:
        raise DataError(f"{root} has no folders. Put the images of each class in a folder named after it.")
    if empty := [name for name, files in listed.items() if not files]:
        raise DataError(
            f"{root} has folders without images: {', '.join(empty)}. Known endings: {', '.join(sorted(SUFFIXES))}."
        )
    return listed


def _survey(files: list[Path], wanted: Size | None) -> tuple[bool, Size]:
    """Read the headers only: are all images grey, and what is their one size."""
    image_module = _pillow()
    modes: set[str] = set()
    sizes: dict[Size, Path] = {}
    broken: list[str] = []
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a decompression bomb only warns
                with image_module.open(file) as image:
                    modes.add(image.mode)
                    sizes.setdefault((image.height, image.width), file)
        except (OSError, ValueError, SyntaxError, Warning, image_module.DecompressionBombError) as err:
            broken.append(f"{file} ({err})")
    if broken:
        raise DataError(
            f"{len(broken)} files are no readable images: {'; '.join(broken[:SHOWN])}. Remove or mend them."
        )
    if wanted is None and len(sizes) > 1:
        shown = "; ".join(f"{h}x{w} ({file})" for (h, w), file in list(sizes.items())[:SHOWN])
        raise DataError(f"The images have {len(sizes)} sizes: {shown}. Set image_size=(height, width) to resize them.")
    return modes <= GREY_MODES, wanted or next(iter(sizes))


def _read_part(listed: dict[str, list[Path]], classes: tuple[str, ...], is_grey: bool, size: Size) -> Pair:
    files = [(file, classes.index(name)) for name in sorted(listed) for file in listed[name]]
    x = torch.empty((len(files), 1 if is_grey else 3, *size), dtype=torch.uint8)
    for i, (file, _) in enumerate(files):
        x[i] = _decode(file, "L" if is_grey else "RGB", size)
    return x, torch.tensor([label for _, label in files])


def _decode(file: Path, mode: str, size: Size) -> Tensor:
    image_module = _pillow()
    height, width = size
    try:
        with image_module.open(file) as opened:
            image = opened.convert(mode)
            if image.size != (width, height):
                image = image.resize((width, height), image_module.Resampling.BILINEAR)
            pixels = np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as err:
        raise DataError(f"{file} is no readable image: {err}. Remove or mend it.") from err
    return torch.from_numpy(pixels.reshape(height, width, -1)).permute(2, 0, 1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise DataError(
            "Reading folders of images needs Pillow. Install it with: pip install 'secateur[vision]'"
        ) from err
    return Image
