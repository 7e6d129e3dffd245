"use strict";
// The scene viewer: a canvas with a view {x, y, zoom}; screen = (scene - [x, y]) * zoom, in CSS pixels.
(() => {
  const data = JSON.parse(document.getElementById("scene-data").textContent);
  const $ = (id) => document.getElementById(id);
  const canvas = $("canvas"), stage = $("stage"), context = canvas.getContext("2d");
  const [height, width] = data.shape;
  const picture = $("picture"), semantic = $("semantic");
  const layers = { picture: true, outlines: true, fill: false, semantic: false, truth: false, heldout: true };
  const classOn = data.names.map(() => true);
  const view = { x: 0, y: 0, zoom: 1 };
  let minScore = 0, hits = [], chosen = -1, lastClick = null, slow = false, pending = 0, settle = 0, stepper = -1;
  const cache = document.createElement("canvas");
  let cacheView = null;

  const objects = shapes.unpack(data.objects), truth = data.truth && shapes.unpack(data.truth);
  const visible = (set, i) => classOn[set.labels[i]] && (set === truth || set.scores[i] >= minScore);

  // ---- drawing -------------------------------------------------------------------------------------------------
  function trace(set, i) {
    for (let r = set.first[i]; r < set.first[i + 1]; r++) {
      for (let p = set.ringStart[r]; p < set.ringStart[r + 1]; p++) {
        const sx = (set.xy[2 * p] - view.x) * view.zoom, sy = (set.xy[2 * p + 1] - view.y) * view.zoom;
        if (p === set.ringStart[r]) context.moveTo(sx, sy); else context.lineTo(sx, sy);
      }
      context.closePath();
    }
  }
  // Paths are filled by winding: overlaps stay filled, and holes, which run the other way, stay open. A path takes 400
  // objects (a canvas slows down faster than a path grows); objects under 3 screen pixels are dots.
  function drawSet(set, paint) {
    const right = view.x + canvas.clientWidth / view.zoom, bottom = view.y + canvas.clientHeight / view.zoom;
    const seen = data.names.map(() => []);
    let drawn = 0;
    for (let i = 0; i < set.n; i++) {
      const b = 4 * i, x0 = set.box[b], y0 = set.box[b + 1], w = set.box[b + 2] - x0, h = set.box[b + 3] - y0;
      if (x0 > right || y0 > bottom || x0 + w < view.x || y0 + h < view.y || !visible(set, i)) continue;
      drawn++;
      if (Math.max(w, h) * view.zoom >= 3) { seen[set.labels[i]].push(i); continue; }
      context.fillStyle = data.colours[set.labels[i]];
      context.fillRect((x0 - view.x) * view.zoom, (y0 - view.y) * view.zoom, Math.max(1, w * view.zoom), Math.max(1, h * view.zoom));
    }
    seen.forEach((members, label) => {
      for (let start = 0; start < members.length; start += 400) {
        context.beginPath();
        for (let k = start; k < Math.min(start + 400, members.length); k++) trace(set, members[k]);
        paint(data.colours[label], drawn);
      }
    });
  }
  function stroke(colour, line, dash = []) {
    context.strokeStyle = colour; context.lineWidth = line; context.setLineDash(dash); context.stroke(); context.setLineDash([]);
  }
  function drawImage(image, w, h, alpha) {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = view.zoom * (w / image.naturalWidth) < 2;
    context.drawImage(image, -view.x * view.zoom, -view.y * view.zoom, w * view.zoom, h * view.zoom);
    context.globalAlpha = 1;
  }
  function drawAll() {
    const began = performance.now();
    context.fillStyle = getComputedStyle(stage).backgroundColor;
    context.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const scale = data.scale; // overview blocks may hang over the scene's edge, so both pictures are cut at it
    context.save();
    context.beginPath();
    context.rect(-view.x * view.zoom, -view.y * view.zoom, width * view.zoom, height * view.zoom);
    context.clip();
    const w = Math.ceil(width / scale) * scale, h = Math.ceil(height / scale) * scale;
    if (layers.picture) drawImage(picture, w, h, 1);
    if (layers.semantic && semantic) drawImage(semantic, w, h, layers.picture ? 0.5 : 1);
    context.restore();
    if (layers.fill) drawSet(objects, (colour) => { context.fillStyle = colour + "55"; context.fill(); });
    if (layers.outlines) drawSet(objects, (colour, drawn) => {
      if (drawn < 4000) stroke("rgba(0,0,0,0.55)", 3.4);
      stroke(colour, 1.7);
    });
    if (layers.truth && truth) drawSet(truth, () => { stroke("rgba(0,0,0,0.8)", 3); stroke("#ffffff", 1.6, [6, 4]); });
    if (layers.heldout && data.heldout) drawHeldout();
    canvas.dataset.renderMs = (performance.now() - began).toFixed(0);
    slow = performance.now() - began > 40;
    if (slow) {
      cache.width = canvas.width; cache.height = canvas.height;
      cache.getContext("2d").drawImage(canvas, 0, 0);
      cacheView = { ...view };
    }
    drawChosen();
  }
  function drawHeldout() {
    const [[y0, y1], [x0, x1]] = data.heldout;
    const sx = (x0 - view.x) * view.zoom, sy = (y0 - view.y) * view.zoom;
    context.beginPath();
    context.rect(sx, sy, (x1 - x0) * view.zoom, (y1 - y0) * view.zoom);
    stroke("rgba(0,0,0,0.7)", 5); stroke("#ffd400", 2.5, [12, 6]);
    context.font = "600 13px system-ui, sans-serif";
    const text = "held-out part", size = context.measureText(text).width;
    context.fillStyle = "#ffd400"; context.fillRect(sx, sy, size + 12, 22);
    context.fillStyle = "#1d2125"; context.fillText(text, sx + 6, sy + 15);
  }
  function drawChosen() {
    if (chosen < 0) return;
    const { set, i } = hits[chosen];
    context.beginPath(); trace(set, i);
    stroke("#000000", 6); stroke("#ffffff", 3);
  }
  // While moving, a slow scene is shown as its last rendering, shifted and scaled; the sharp one follows when it rests.
  function drawMoving() {
    const ratio = view.zoom / cacheView.zoom;
    context.fillStyle = getComputedStyle(stage).backgroundColor;
    context.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    context.drawImage(cache, (cacheView.x - view.x) * view.zoom, (cacheView.y - view.y) * view.zoom,
      canvas.clientWidth * ratio, canvas.clientHeight * ratio);
    drawChosen();
  }
  function redraw(moving = false) {
    canvas.dataset.view = `${view.x} ${view.y} ${view.zoom}`;
    cancelAnimationFrame(pending);
    clearTimeout(settle);
    if (moving && slow && cacheView) {
      pending = requestAnimationFrame(drawMoving);
      settle = setTimeout(() => requestAnimationFrame(drawAll), 140);
    } else pending = requestAnimationFrame(drawAll);
  }

  // ---- view ----------------------------------------------------------------------------------------------------
  function resize() {
    const ratio = window.devicePixelRatio || 1, fresh = !canvas.dataset.view;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    cacheView = null;
    if (fresh) fit(); else redraw();
  }
  const fitZoom = () => Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
  function fit() {
    view.zoom = fitZoom();
    view.x = (width - canvas.clientWidth / view.zoom) / 2; view.y = (height - canvas.clientHeight / view.zoom) / 2;
    redraw();
  }
  function pan(dx, dy) { view.x -= dx / view.zoom; view.y -= dy / view.zoom; keepInside(); redraw(true); }
  function zoomAt(px, py, factor) {
    const zoom = Math.min(Math.max(view.zoom * factor, fitZoom() / 2), 64);
    view.x += px / view.zoom - px / zoom; view.y += py / view.zoom - py / zoom; view.zoom = zoom;
    keepInside(); redraw(true);
  }
  function keepInside() { // the centre of the view stays on the scene
    const w = canvas.clientWidth / view.zoom / 2, h = canvas.clientHeight / view.zoom / 2;
    view.x = Math.min(Math.max(view.x, -w), width - w); view.y = Math.min(Math.max(view.y, -h), height - h);
  }

  // ---- picking -------------------------------------------------------------------------------------------------
  function pick(px, py) {
    const x = view.x + px / view.zoom, y = view.y + py / view.zoom, found = [];
    const sets = [layers.outlines || layers.fill ? objects : null, layers.truth ? truth : null];
    for (const set of sets) if (set) for (let i = set.n - 1; i >= 0; i--) if (visible(set, i) && shapes.contains(set, i, x, y, 3 / view.zoom)) found.push({ set, i });
    const again = lastClick && Math.hypot(px - lastClick[0], py - lastClick[1]) < 4 && found.length === hits.length
      && found.every((hit, k) => hit.set === hits[k].set && hit.i === hits[k].i);
    chosen = found.length ? (again ? (chosen + 1) % found.length : 0) : -1;
    hits = found; lastClick = [px, py];
    showPicked(); redraw();
  }
  const number = (value) => (value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : value.toFixed(1));
  function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  }
  function showPicked() {
    const panel = $("picked");
    panel.replaceChildren();
    panel.append(element("p", hits.length === 0 ? "No object here." : hits.length > 1 ? `${hits.length} objects here, smallest first:` : "", "small"));
    hits.slice(0, 50).forEach(({ set, i }, k) => {
      const button = element("button"), name = element("b"), swatch = element("span", "", "swatch");
      swatch.style.background = data.colours[set.labels[i]];
      name.append(swatch, (set === truth ? "label: " : "") + data.names[set.labels[i]]);
      const area = set === truth ? `${number(set.areas[i])} px` : `${number(set.areas[i])} ${data.unit}`;
      button.type = "button";
      button.setAttribute("aria-pressed", String(k === chosen));
      button.append(name, element("span", `id ${set.ids[i]}`, "line"),
        element("span", set === truth ? `area ${area}` : `score ${set.scores[i].toFixed(2)} · area ${area}`, "line"));
      button.addEventListener("click", () => { chosen = k; showPicked(); redraw(); });
      panel.append(button);
    });
  }
  function step(by) { // N and P walk through the visible objects, largest first
    for (let tries = 0; tries < objects.n; tries++) {
      stepper = (stepper + by + objects.n) % objects.n;
      if (visible(objects, stepper)) break;
    }
    if (!objects.n || !visible(objects, stepper)) return;
    const b = objects.box.subarray(4 * stepper, 4 * stepper + 4);
    view.x = (b[0] + b[2]) / 2 - canvas.clientWidth / view.zoom / 2; view.y = (b[1] + b[3]) / 2 - canvas.clientHeight / view.zoom / 2;
    hits = [{ set: objects, i: stepper }]; chosen = 0; showPicked(); redraw();
  }
  function countShown() {
    let shown = 0;
    for (let i = 0; i < objects.n; i++) if (visible(objects, i)) shown++;
    $("shown").textContent = `${number(shown)} of ${number(objects.n)} objects shown`;
  }

  // ---- input ---------------------------------------------------------------------------------------------------
  const pointers = new Map();
  let moved = 0;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0017)));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (pointers.size === 0) moved = 0;
    canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, at(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = pointers.get(event.pointerId);
    showWhere(now);
    if (!before) return;
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (other) zoomAt(...other, Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1])));
    else if (moved > 3) { canvas.classList.add("dragging"); pan(now[0] - before[0], now[1] - before[1]); }
    pointers.set(event.pointerId, now);
  });
  const release = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    canvas.classList.remove("dragging");
    if (event.type === "pointerup" && moved <= 3 && pointers.size === 0) pick(...at(event));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { $("where").textContent = ""; });
  function showWhere([px, py]) {
    const x = view.x + px / view.zoom, y = view.y + py / view.zoom, t = data.transform;
    const inside = x >= 0 && y >= 0 && x < width && y < height;
    const map = t ? ` · map ${(t[0] * x + t[1] * y + t[2]).toFixed(2)}, ${(t[3] * x + t[4] * y + t[5]).toFixed(2)}` : "";
    $("where").textContent = inside ? `column ${Math.floor(x)}, row ${Math.floor(y)}${map}` : "";
  }
  const keys = { ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
    "+": () => zoomCentre(1.3), "=": () => zoomCentre(1.3), "-": () => zoomCentre(1 / 1.3), 0: fit, n: () => step(1), p: () => step(-1),
    Enter: () => pick(canvas.clientWidth / 2, canvas.clientHeight / 2),
    Escape: () => { hits = []; chosen = -1; showPicked(); redraw(); } };
  const zoomCentre = (factor) => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, factor);
  canvas.addEventListener("keydown", (event) => {
    const action = !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action) { event.preventDefault(); action(); }
  });
  $("zoom-in").addEventListener("click", () => zoomCentre(1.5));
  $("zoom-out").addEventListener("click", () => zoomCentre(1 / 1.5));
  $("fit").addEventListener("click", fit);
  for (const box of document.querySelectorAll("[data-layer]")) box.addEventListener("change", () => { layers[box.dataset.layer] = box.checked; redraw(); });
  for (const box of document.querySelectorAll("[data-class]")) box.addEventListener("change", () => { classOn[Number(box.dataset.class)] = box.checked; countShown(); redraw(); });
  $("score").addEventListener("input", (event) => {
    minScore = Number(event.target.value); $("score-text").textContent = minScore.toFixed(2); countShown(); redraw();
  });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

  Promise.all([picture, semantic].filter(Boolean).map((image) => image.decode())).then(() => {
    stage.classList.add("live");
    $("buttons").hidden = false; $("side").hidden = false;
    for (const box of document.querySelectorAll("[data-layer]")) layers[box.dataset.layer] = box.checked; // a reload keeps boxes
    countShown();
    new ResizeObserver(resize).observe(canvas);
  });
})();
