"""Pictures of shapes and images at points of the semantic space, drawn again from what the scan names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysense.errors import RaysenseError, UsageError, first_line
from raysense.query.tables import ScanTables
from raysense.report.pictures import read_pixels
from raysense.report.semantic_figures import Strip

_SIZE = 96
_PICTURES = 8


def pose_strip(scan: ScanTables, shape_id: str, axis: str) -> tuple[Strip | None, str]:
    """Pictures along an axis, all other axes at the base point that maps have, and a sentence where there are none."""
    (found,) = (entry for entry in scan.axes if entry["name"] == axis)
    length = found["high"] - found["low"]
    at = [found["low"] + length * (place + 0.5) / _PICTURES for place in range(_PICTURES)]
    try:
        pictures = pose_pictures(scan, shape_id, [{axis: value} for value in at])
        base = base_values(scan)
    except (RaysenseError, OSError, KeyError) as error:
        return None, f"The poses cannot be shown: {first_line(error)}"
    fixed = "\n".join(f"{name.replace('_', ' ')}\n{value:g}" for name, value in base.items() if name != axis)
    return Strip(at, pictures, fixed), ""


def base_values(scan: ScanTables) -> dict[str, float]:
    """Where maps hold the axes of the space that are not theirs."""
    from raysense.semantics.grids import base_point

    space = _space(scan)
    return dict(zip(space.names, base_point(space).tolist(), strict=True))


def pose_pictures(scan: ScanTables, shape_id: str, points: Sequence[Mapping[str, float]]) -> list[NDArray[np.float64]]:
    """Pictures of a shape or an image at points of the space.

    Args:
        scan: Its spec says where shapes or images are, and how they are drawn.
        shape_id: Which one.
        points: Values of some axes by name; the others are at the base point of maps.

    Returns:
        Pictures ``[H, W, 3]``, or ``[H, W]`` of grey images, in [0, 1].

    Raises:
        RaysenseError: the shape or image cannot be read.
    """
    import torch

    space = _space(scan)
    base = base_values(scan)
    values = torch.tensor(
        [[(base | dict(point))[name] for name in space.names] for point in points], dtype=torch.float64
    )
    spec: dict[str, Any] = scan.document["spec"]
    with torch.no_grad():
        if spec.get("data") is not None:
            from raysense.semantics.image_transforms import transform

            pixels, reasons = read_pixels(scan, [shape_id])
            if shape_id not in pixels:
                raise UsageError(reasons[0] if reasons else f"image {shape_id!r} is not in the data any more")
            image = torch.from_numpy(np.atleast_3d(pixels[shape_id])).permute(2, 0, 1).float()
            images = transform(image.expand(len(points), -1, -1, -1), space.parameters(values))
        else:
            from raysense.semantics.renderers import open_renderer
            from raysense.semantics.shapes import open_shapes

            renderer = open_renderer("auto", size=_SIZE)
            mesh = renderer.prepare(open_shapes(spec["shapes"]).mesh(shape_id))
            images = renderer.render(mesh, space.parameters(values))
    found = images.permute(0, 2, 3, 1).double().numpy()
    return [picture[..., 0] if picture.shape[-1] == 1 else picture for picture in found]


def _space(scan: ScanTables) -> Any:
    from raysense.semantics.space import parse_space

    texts = [f"{axis['name']}={axis['low']!r}:{axis['high']!r}" for axis in scan.axes]
    fixed = [f"{name}={value!r}" for name, value in ((scan.facts.get("space") or {}).get("fixed") or {}).items()]
    return parse_space(texts, fixed)
