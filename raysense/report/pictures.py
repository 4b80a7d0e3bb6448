"""Images of single samples, read again from the data that a scan names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysense.errors import RaysenseError, SampleError, first_line
from raysense.query.tables import ScanTables


def read_pixels(scan: ScanTables, samples: Sequence[str]) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Pixels of samples as the model sees them, preprocessing included, normalisation left out.

    Args:
        scan: Its listing and data reference say where the images are.
        samples: Sample ids.

    Returns:
        Pixels ``[H, W]`` (one channel) or ``[H, W, 3]`` in [0, 1] by sample id, as far as they can be read, and a
        sentence for everything that cannot be shown.
    """
    from raysense.datasets import open_data
    from raysense.preprocessing import Preprocessing
    from raysense.references import parse_reference

    spec: dict[str, Any] = scan.document["spec"]
    found: dict[str, NDArray[np.float64]] = {}
    try:
        if not scan.run_code and parse_reference(spec["data"], "data").scheme in ("file", "module"):
            return {}, [f"Reading the images would run the code that {spec['data']} names; allow it with --run-code."]
        listing = scan.store.listing()
        part = listing.filter(pc.is_in(listing["sample_id"], value_set=pa.array(samples, pa.string())))
        reader = open_data(spec["data"], tuple(spec.get("split") or ())).reader(part)
        facts = scan.facts.get("preprocessing")
        preprocessing = None if facts is None else Preprocessing.from_dict(facts)
    except (RaysenseError, OSError, KeyError) as error:
        return {}, [f"The images cannot be shown: {first_line(error)}"]
    reasons = []
    for row, sample in enumerate(part["sample_id"].to_pylist()):
        try:
            image = reader.read(row)
        except (SampleError, RaysenseError, OSError, KeyError) as error:
            reasons.append(f"The image of {sample} cannot be shown: {first_line(error)}")
            continue
        image = image if preprocessing is None else preprocessing.apply(image)
        found[sample] = _displayable(image.double().numpy() / (1.0 if image.is_floating_point() else 255.0))
    return found, reasons


def _displayable(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[C, H, W]`` as ``[H, W, 3]``, or as ``[H, W]`` (mean of the channels) where there are not three of them."""
    clipped = np.clip(pixels, 0.0, 1.0)
    return np.moveaxis(clipped, 0, 2) if clipped.shape[0] == 3 else clipped.mean(axis=0)
