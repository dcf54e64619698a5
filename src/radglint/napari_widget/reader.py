"""The reader that napari calls: radglint's own, so that geometry and HU are those that are asked.

The manifest claims DICOM, NIfTI, zips and folders. Pictures are left to napari's own reader, which would otherwise ask
the user each time; `image_of` reads such a file once more when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from radglint.errors import ImageError
from radglint.image import MedicalImage
from radglint.napari_widget.layers import IMAGE_KEY, LayerData, image_layer
from radglint.reading import list_files, read_image, sniff

LOOKED_AT = 50
"""Files of a folder that are looked at for DICOM before it is left to other readers."""


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Answer napari's question whether this path is for us.

    Args:
        path: a file or folder; a list, which is for stacks of single pictures, is left to other readers.

    Returns:
        The function that reads it, or None.
    """
    if isinstance(path, list):
        return None
    return read_layers if _is_ours(Path(path)) else None


def _is_ours(path: Path) -> bool:
    try:
        if sniff(path) != "folder":
            return True
        return any(_is_dicom(file) for file in list_files(path)[:LOOKED_AT])
    except ImageError:
        return False


def _is_dicom(file: Path) -> bool:
    try:
        return sniff(file) == "dicom"
    except ImageError:
        return False


def read_layers(path: str | list[str]) -> list[LayerData]:
    """Read one path as an image layer.

    Raises:
        ImageError: see `radglint.reading.read_image`; napari shows the message.
    """
    if isinstance(path, list):
        raise ImageError(f"{len(path)} paths at once; open one file, or the folder of the series")
    return [image_layer(read_image(path))]


def image_of(layer: Any) -> MedicalImage:
    """What radglint asks when this image layer is chosen.

    Args:
        layer: a napari image layer that `read_layers` made, or one of a picture file.

    Raises:
        ImageError: neither, so that HU and geometry would be a guess; or the picture is not what the layer shows.
    """
    image = layer.metadata.get(IMAGE_KEY)
    if isinstance(image, MedicalImage):
        return image
    path = layer.source.path
    if path is None or not Path(path).is_file() or sniff(Path(path)) != "raster":
        raise ImageError(f"layer {layer.name!r}: HU and geometry are not known; open its file here, with Open")
    return _same_picture(read_image(path), layer)


def _same_picture(image: MedicalImage, layer: Any) -> MedicalImage:
    """Refuse a picture that the layer shows otherwise: cropped, or not turned as the file says."""
    shown = tuple(layer.data.shape[:2] if layer.rgb else layer.data.shape)
    if shown != image.shape or any("orientation tag" in step for step in image.steps):
        raise ImageError(f"layer {layer.name!r}: does not show the file as it is read; open the file here, with Open")
    return image
