"""How many images have gone through networks in this process: what a scan costs, whatever the device."""

from __future__ import annotations


class PassMeter:
    """Counts images; one forward pass of a batch of n counts n, and so does each backward pass through its logits."""

    def __init__(self) -> None:
        self.images = 0

    def add(self, images: int) -> None:
        """So many images went through."""
        self.images += images


METER = PassMeter()
"""Of this process, as its processor time is: networks that scans open count here."""
