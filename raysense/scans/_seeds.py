"""Seeds of random streams: one of each sample or draw, the same whatever unit, batch or worker it falls into."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, *names: object) -> int:
    """A seed of 63 bits for what is named, under the seed of a scan."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
