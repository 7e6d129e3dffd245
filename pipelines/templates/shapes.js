"use strict";
// Packed outlines (pipelines/report_shapes.py): base64 of variable-length integers -> typed arrays, and "is it inside?".
const shapes = (() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  function varints(text) {
    const raw = bytes(text), out = [];
    for (let i = 0; i < raw.length; ) {
      let value = 0, factor = 1, byte;
      do { byte = raw[i++]; value += (byte & 127) * factor; factor *= 128; } while (byte & 128);
      out.push(value);
    }
    return out;
  }
  function unpack(packed) {
    const n = packed.count, rings = varints(packed.rings), points = varints(packed.points), steps = varints(packed.steps);
    const xy = new Int32Array(steps.length), ringStart = new Int32Array(points.length + 1), first = new Int32Array(n + 1);
    const box = new Float64Array(4 * n);
    for (let i = 0, x = 0, y = 0; i < steps.length; i += 2) {
      x += (steps[i] >>> 1) ^ -(steps[i] & 1); y += (steps[i + 1] >>> 1) ^ -(steps[i + 1] & 1);
      xy[i] = x; xy[i + 1] = y;
    }
    points.forEach((count, i) => { ringStart[i + 1] = ringStart[i] + count; });
    rings.forEach((count, i) => { first[i + 1] = first[i] + count; });
    for (let i = 0; i < n; i++) {
      let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
      for (let p = ringStart[first[i]]; p < ringStart[first[i + 1]]; p++) {
        x0 = Math.min(x0, xy[2 * p]); x1 = Math.max(x1, xy[2 * p]);
        y0 = Math.min(y0, xy[2 * p + 1]); y1 = Math.max(y1, xy[2 * p + 1]);
      }
      box.set([x0, y0, x1, y1], 4 * i);
    }
    return { n, xy, ringStart, first, box, ids: new BigInt64Array(bytes(packed.ids).buffer),
      labels: new Uint16Array(bytes(packed.labels).buffer), scores: new Float32Array(bytes(packed.scores).buffer),
      areas: new Float64Array(bytes(packed.areas).buffer) };
  }
  // Even-odd rule over all rings. An object narrower than `reach` (scene pixels) is hit anywhere within it.
  function contains(set, i, x, y, reach) {
    const b = 4 * i, slack = Math.max(0, reach - (set.box[b + 2] - set.box[b])) / 2;
    if (x < set.box[b] - slack || y < set.box[b + 1] - slack || x > set.box[b + 2] + slack || y > set.box[b + 3] + slack) return false;
    if (slack > 0) return true;
    let inside = false;
    for (let r = set.first[i]; r < set.first[i + 1]; r++) {
      const start = set.ringStart[r], stop = set.ringStart[r + 1];
      for (let p = start, q = stop - 1; p < stop; q = p++) {
        const yp = set.xy[2 * p + 1], yq = set.xy[2 * q + 1];
        if (yp > y !== yq > y && x < ((set.xy[2 * q] - set.xy[2 * p]) * (y - yp)) / (yq - yp) + set.xy[2 * p]) inside = !inside;
      }
    }
    return inside;
  }
  return { unpack, contains };
})();
