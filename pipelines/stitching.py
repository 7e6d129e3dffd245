"""Exact stitching of mask sets: many tiles in, one set of objects for the whole scene out.

The law, in the order in which it is applied:

1. Evidence that two fragments are one object is their IoU inside the strip both tiles saw, and nothing else
   (`pipelines.evidence`; links from 0.3 by default). Whole masks and boxes mislead: for a river their IoU
   goes to zero, for a house in a park containment says yes.
2. Only fragments of one class are linked, one to one in a strip, by the assignment of the largest sum of IoU.
   For exact fragments that assignment finds every object: all its links are 1, and nothing beats a sum of
   ones. Equal sums fall to the canonical order of the fragments, never to the order of arrival.
3. Links are taken in order of certainty (`pipelines.linking`), the margin over the best rival. Where several
   objects cover a strip alike, evidence is equal; such ties come last: first what other links force, then
   equal scores, then nesting (k-th smallest with k-th smallest), then the nearest score. A link that would
   put two fragments of one tile into one object is refused.
4. What exact fragments never leave over, noise does: fragments that nothing claims are linked where half of the
   smaller one is shared, and two long ends on either side of a tile that missed them are joined (`pipelines.gaps`).
5. Union-find over the links. An object that is nothing but fragments which their own tiles cut, and which other
   tiles would have seen whole, is dropped. An object that a tile saw whole is that tile's view; else a pixel is
   decided by the tile whose centre is nearest among those in which the object has a fragment (for exact fragments
   both are the plain union, `pipelines.ownership`). Score: mean weighted by area, summed in tile order.
6. An object is given back as soon as all strips it touches are complete. Row-major order therefore keeps little
   more than a row of tiles; any other order gives the same objects, ids and scores, with more memory.

True limits. No mask can say which is which when two partially overlapping objects of one class coincide in a
whole strip, and no other strip tells them apart: both may look nested in either tile. Their number survives, and
every such guess is counted in `ambiguous_links`, as is every refused link. An object of two parts that no tile
sees together comes back as two objects. The runs of an open object wait in memory, beyond a limit in a temporary
file (`pipelines.spool`); when it closes, it must fit.

numpy and scipy only; pictures and volumes alike (overlapping slabs: give the grid three axes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from pipelines.evidence import Evidence, Tie, View, compare, views
from pipelines.gaps import FAR_GUESS, GUESS, Gaps, bridges, long_ends
from pipelines.grid import Grid, Meetings, Tile
from pipelines.linking import Fragment, Link, components
from pipelines.ownership import free, unite
from pipelines.spool import MEMORY, Spool

LOCAL_BITS = 32  # a fragment's key is its tile's number, then its place in the tile's canonical order


def stitch(grid: Grid, parts: Iterable[tuple[Tile, MaskSet]], link: float = 0.3) -> MaskSet:
    """Objects of the whole scene from (tile, objects in tile coordinates) in any order; canonical order."""
    stitcher = Stitcher(grid, link)
    closed = [stitcher.add(tile, masks) for tile, masks in parts]
    closed.append(stitcher.finish())
    return MaskSet.concatenate(closed).canonical()


class _Cluster:
    """Fragments that some link or tie connects, and how many open strips they touch."""

    __slots__ = ("keys", "links", "open", "ties")

    def __init__(self, key: int, open_strips: int) -> None:
        self.keys = [key]
        self.open = open_strips
        self.links: list[Link] = []
        self.ties: list[Tie] = []


class Stitcher:
    """Takes tiles in any order and gives objects back as soon as no missing tile can change them.

    `memory` bounds the bytes of runs of open objects in memory; the oldest beyond it wait in a temporary file.
    """

    def __init__(self, grid: Grid, link: float = 0.3, memory: int = MEMORY) -> None:
        if not 0 < link <= 1:
            raise ValueError(f"expected a link threshold in (0, 1], got {link}")
        self.grid = grid
        self.link = link
        self._ambiguous = 0
        self._delivered: set[int] = set()
        self._views: dict[tuple[int, int], View] = {}
        self._fragments: dict[int, Fragment] = {}
        self._runs = Spool(len(grid.shape) + 1, memory)
        self._home: dict[int, _Cluster] = {}
        self._gaps = Gaps(grid)
        self._finished = False

    @property
    def ambiguous_links(self) -> int:
        """Links refused or decided without evidence, in the objects given back so far."""
        return self._ambiguous

    @property
    def open_fragments(self) -> int:
        """Fragments held back because a missing tile may still change their object."""
        return len(self._fragments)

    @property
    def held(self) -> int:
        """Bytes of runs of open objects in memory."""
        return self._runs.held

    @property
    def spilled(self) -> int:
        """Bytes in the temporary file."""
        return self._runs.on_disk

    def add(self, tile: Tile, masks: MaskSet, traits: NDArray | None = None) -> MaskSet:
        """Add the objects of one tile (tile coordinates, perhaps none); returns the objects this closed.

        traits: (N, D) numbers that are alike for views of one object, such as class probabilities or embeddings; they
        decide what masks cannot. ValueError for a tile of another grid, a tile added twice, a canvas that is not the
        tile's, traits of another number of objects, or after finish().
        """
        number = self.grid.number(tile)
        if self._finished:
            raise ValueError(f"expected no more tiles after finish(), got tile {tile.index}")
        if number in self._delivered:
            raise ValueError(f"expected every tile once, got tile {tile.index} again")
        if masks.shape != tile.shape:
            raise ValueError(f"expected masks on the canvas {tile.shape} of tile {tile.index}, got {masks.shape}")
        if traits is not None and len(traits) != len(masks):
            raise ValueError(f"expected traits of {len(masks)} objects, got {len(traits)}")
        self._delivered.add(number)
        if not masks.areas.all():
            traits = traits if traits is None else traits[masks.areas > 0]
            masks = masks[masks.areas > 0]
        strips = self.grid.meetings(tile)
        scene = masks.canonical().place(self.grid.shape, tile.offset)
        touched = self._touched(tile, scene)
        own = traits if traits is None else np.asarray(traits, np.float16)[masks._canonical_order][touched]
        border = scene[touched]
        keys = (number << LOCAL_BITS) + np.arange(len(border))
        shown = views(border, keys, strips)
        self._keep(number, border, keys, strips)
        for key, trait in zip(keys.tolist(), () if own is None else own):
            self._fragments[key] = self._fragments[key]._replace(traits=trait.copy())
        reached = keys.tolist()
        reached += self._meet(number, strips.numbers.tolist(), shown)
        return self._close(reached, scene[~touched])

    def finish(self) -> MaskSet:
        """The objects that are still open (tiles never added count as empty); ends the stitching."""
        self._finished = True
        self._views.clear()
        for tile in self._gaps.waiting():
            self._bridge(tile)
        self._bridge_two(None)
        for cluster in self._home.values():
            cluster.open = 0
        last = self._close(sorted(self._fragments), MaskSet.empty(self.grid.shape))
        self._runs.close()
        return last

    # ------------------------------------------------------------------ one tile

    def _touched(self, tile: Tile, scene: MaskSet) -> NDArray[np.bool_]:
        """(N,) whether a fragment has pixels outside the part of the tile that no other tile sees."""
        axes = len(self.grid.shape)
        low, high = [], []
        for axis, position in enumerate(tile.index):
            starts, size = self.grid.starts[axis], tile.shape[axis]
            low.append(starts[position - 1] + size if position else 0)
            high.append(starts[position + 1] if position + 1 < len(starts) else self.grid.shape[axis])
        boxes = scene.boxes
        out = (boxes[:, :axes] < low) | (boxes[:, axes:] > high)
        return np.logical_or.reduce(out, axis=1)

    def _keep(self, number: int, border: MaskSet, keys: NDArray[np.int64], strips: Meetings) -> None:
        """Remember the fragments that touch a strip."""
        seen_whole = self._seen_whole(number, border.boxes, strips)
        offsets, runs = border.offsets.tolist(), border.runs
        ends = long_ends(self.grid, number, border.boxes, runs, offsets)
        rows = zip(keys.tolist(), border.labels.tolist(), border.scores.tolist(), border.areas.tolist())
        for n, (key, label, score, area) in enumerate(rows):
            # a copy: a view would keep the whole tile alive
            self._runs.put(key, runs[offsets[n] : offsets[n + 1]].copy())
            self._fragments[key] = Fragment(number, label, score, area, seen_whole.get(n, ()), ends.get(n, ()))
            self._home[key] = _Cluster(key, 0)

    def _seen_whole(self, number: int, boxes: NDArray, strips: Meetings) -> dict[int, tuple[int, ...]]:
        """For fragments cut by this tile's inner border: the neighbours that see all of them, uncut."""
        axes, shape = len(self.grid.shape), self.grid.shape
        low, high = boxes[:, None, :axes], boxes[:, None, axes:]
        cut = ~free(shape, low, high, *self.grid.windows(np.array([number]))).all(axis=2)
        whole = free(shape, low, high, strips.tile_low, strips.tile_high).all(axis=2)
        fragment, neighbour = np.nonzero(cut & whole)
        seen: dict[int, tuple[int, ...]] = {}
        for n, other in zip(fragment.tolist(), strips.numbers[neighbour].tolist()):
            seen[n] = (*seen.get(n, ()), other)
        return seen

    def _meet(self, number: int, others: Sequence[int], shown: Sequence[View]) -> list[int]:
        """Take the evidence of the strips with tiles that came before, and keep the views of the others.

        Returns those tiles' fragments in the strips.
        """
        first, second, pairs = [], [], []
        reached: list[int] = []
        home = self._home
        for other, view in zip(others, shown):
            if other not in self._delivered:
                self._views[number, other] = view
                for key in view.keys.tolist():
                    home[key].open += 1
                continue
            pairs.append((number, other) if number < other else (other, number))
            theirs = self._views.pop((other, number))
            waiting = theirs.keys.tolist()
            for key in waiting:
                home[key].open -= 1
            reached += waiting
            first.append(view if number < other else theirs)
            second.append(theirs if number < other else view)
        found = compare(self.grid.shape, first, second, self.link)
        for one, other, certainty, shared in zip(
            found.first.tolist(), found.second.tolist(), found.certainty.tolist(), found.shared.tolist()
        ):
            self._join(one, other).links.append(Link(certainty, shared, one, other))
        for tie in found.ties:
            for key in (*tie.first, *tie.second):
                cluster = self._join(tie.first[0], key)
            cluster.ties.append(tie)
        return reached + self._look_for_gaps(number, others, pairs, found)

    def _look_for_gaps(
        self, number: int, others: Sequence[int], pairs: Sequence[tuple[int, int]], found: Evidence
    ) -> list[int]:
        """Note the long fragments that a strip's other tile did not find again; bridge the tiles that are complete.

        Returns the fragments that no longer wait for that.
        """
        for left, side in ((found.left_first, 1), (found.left_second, 0)):
            for at, key in left:
                fragment, other = self._fragments[key], pairs[at][side]
                if other not in fragment.seen_whole_by and self._gaps.note(fragment, key, other):
                    self._home[key].open += 1
        complete = self._gaps.met(number, len(others), [a if b == number else b for a, b in pairs])
        released = [key for tile in complete for key in self._bridge(tile)]
        return released + self._bridge_two(complete)

    def _bridge(self, tile: int) -> list[int]:
        """Join what ends on both sides of a tile that did not find it; returns the fragments that waited for it."""
        noted = self._gaps.pop(tile)
        if not noted:
            return []
        keys = {one.key for one in noted}
        clusters = {id(self._home[key]): self._home[key] for key in keys}
        known = {(link.first, link.second) for one in clusters.values() for link in one.links}
        pairs, left = bridges(self.grid, self._fragments, noted, known)
        for one, other in pairs:
            self._join(one, other).links.append(Link(GUESS, 0, one, other))
        self._gaps.leave(tile, left)
        still = {key for groups in left.values() for group in groups for key in group.keys}
        return self._release(sorted(keys - still))

    def _bridge_two(self, complete: Sequence[int] | None) -> list[int]:
        """Join what neighbouring tiles left over, now that the strips of some tiles are complete (None: of all)."""
        settled = self._gaps.settled(complete)
        for tile in settled:
            for one, other in self._gaps.across_two(self._fragments, tile):
                self._join(one, other).links.append(Link(FAR_GUESS, 0, one, other))
        return [key for tile in settled for key in self._release(self._gaps.rest(tile))]

    def _release(self, keys: list[int]) -> list[int]:
        for key in keys:
            self._home[key].open -= 1
        return keys

    def _join(self, one: int, other: int) -> _Cluster:
        """Put two fragments into one cluster."""
        large, small = self._home[one], self._home[other]
        if large is small:
            return large
        if len(large.keys) < len(small.keys):
            large, small = small, large
        large.keys += small.keys
        large.open += small.open
        large.links += small.links
        large.ties += small.ties
        for key in small.keys:
            self._home[key] = large
        return large

    # ------------------------------------------------------------------ closing

    def _close(self, reached: Sequence[int], whole: MaskSet) -> MaskSet:
        """Objects of the clusters without open strips among `reached`, together with `whole`.

        Canonical order.
        """
        members: list[Fragment] = []
        runs_of: list[NDArray[np.int32]] = []
        owners: list[int] = []
        count = 0
        home = self._home
        for key in reached:
            cluster = home.get(key)
            if cluster is None or cluster.open:
                continue
            fragments, runs = {}, {}
            for one in cluster.keys:
                del home[one]
                fragments[one], runs[one] = self._fragments.pop(one), self._runs.take(one)
            objects, ambiguous = components(fragments, runs, cluster.links, cluster.ties)
            self._ambiguous += ambiguous
            for found in objects:
                parts = [fragments[one] for one in found]
                if not self._subordinate(parts):
                    members += parts
                    runs_of += [runs[one] for one in found]
                    owners += [count] * len(parts)
                    count += 1
        closed = unite(self.grid, members, runs_of, np.array(owners, np.int64), count)
        return MaskSet.concatenate([whole, closed]).canonical()

    def _subordinate(self, found: Sequence[Fragment]) -> bool:
        """Whether an object consists of cut fragments only, each seen whole by a tile which has no part in
        it.
        """
        if any(not one.seen_whole_by for one in found):
            return False
        own = {one.tile for one in found}
        return all(any(n in self._delivered and n not in own for n in one.seen_whole_by) for one in found)
