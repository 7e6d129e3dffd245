"""How much memory GDAL may keep of the blocks it has read and written.

By itself it takes a twentieth of the machine's memory, so that a run grows with the scene until that is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

CACHE_BYTES = 128 * 2**20  # a row of blocks of a scene 100 000 px wide, 8 bits a pixel, twice over


@contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL's cache holds at most `CACHE_BYTES` within the block, in all threads of the process."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        yield
