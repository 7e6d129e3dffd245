"use strict";
// The slice viewer: volumes are (slice, row, column) arrays; columns run to the patient's left, rows to the back, slices
// to the feet. A plane is cut across one axis: 0 axial, 1 coronal, 2 sagittal.
(() => {
  const data = JSON.parse(document.getElementById("study-data").textContent);
  const $ = (id) => document.getElementById(id);
  const [nz, ny, nx] = data.shape, [dz, dy, dx] = data.spacing;
  const strides = [nx * ny, nx, 1];
  // of each plane: the axis across it, the axes along its rows (h) and columns (v), and what its four sides are
  const planes = [
    { axis: 0, h: 2, v: 1, sides: "RLAP" }, { axis: 1, h: 2, v: 0, sides: "RLSI" }, { axis: 2, h: 1, v: 0, sides: "APSI" },
  ];
  const size = data.shape, mm = [dz, dy, dx];
  const at = size.map((n) => Math.floor(n / 2));
  const classOn = data.names.map(() => true);
  let grey = null, sheets = [], classmap = null, chosen = -1, opacity = 0.35, minScore = 0, lut = new Uint8Array(256);
  let outlines = true, cross = true, byClass = false, pending = 0;

  // ---- unpacking -----------------------------------------------------------------------------------------------
  function unpack(image, wide) { // a sheet of slices -> one array
    const canvas = document.createElement("canvas"), { columns, width, height } = data.atlas;
    canvas.width = image.naturalWidth; canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const out = wide ? new Uint16Array(nx * ny * nz) : new Uint8Array(nx * ny * nz);
    for (let line = 0; line * columns < nz; line++) { // a line at a time: a canvas of the whole sheet is too much for phones
      context.drawImage(image, 0, -line * height);
      const pixels = context.getImageData(0, 0, canvas.width, height).data;
      for (let c = 0; c < columns && line * columns + c < nz; c++) {
        let to = (line * columns + c) * nx * ny;
        for (let y = 0; y < ny; y++) {
          let from = 4 * (y * canvas.width + c * width);
          for (let x = 0; x < nx; x++, from += 4) out[to++] = wide ? pixels[from] + 256 * pixels[from + 1] : pixels[from];
        }
      }
    }
    return out;
  }
  const shown = (object) => classOn[object.label] && object.score >= minScore;
  function contrast() {
    const gain = Math.pow(2, Number($("contrast").value) / 40), shift = Number($("brightness").value) * 1.28;
    for (let v = 0; v < 256; v++) lut[v] = Math.max(0, Math.min(255, (v - 128) * gain + 128 + shift));
  }

  // ---- drawing -------------------------------------------------------------------------------------------------
  const views = planes.map((plane) => {
    const figure = document.querySelector(`[data-plane="${plane.axis}"]`), small = document.createElement("canvas");
    small.width = size[plane.h]; small.height = size[plane.v];
    return { ...plane, figure, canvas: figure.querySelector("canvas"), slider: figure.querySelector("input"),
      output: figure.querySelector("output"), small, pixels: small.getContext("2d").createImageData(small.width, small.height),
      ids: new Int32Array(small.width * small.height) };
  });
  // where the plane lies on its canvas: CSS pixels a millimetre, and the corner of its first voxel
  function place(view) {
    const w = size[view.h] * mm[view.h], h = size[view.v] * mm[view.v];
    const scale = Math.min(view.canvas.clientWidth / w, view.canvas.clientHeight / h) * 0.94;
    return { sx: scale * mm[view.h], sy: scale * mm[view.v], scale,
      left: (view.canvas.clientWidth - w * scale) / 2, top: (view.canvas.clientHeight - h * scale) / 2 };
  }
  // colour key of a voxel of a layer: 0 nothing, k + 1 object k of the page (or class k of the class map)
  function cut(view, volume, members) {
    const { ids } = view, w = size[view.h], h = size[view.v], sh = strides[view.h], sv = strides[view.v];
    const base = at[view.axis] * strides[view.axis];
    let any = false;
    for (let v = 0; v < h; v++) for (let u = 0, from = base + v * sv; u < w; u++, from += sh) {
      const value = volume[from];
      let key = 0;
      if (value) {
        key = members ? members[value - 1] + 1 : value;
        if (members ? !shown(data.objects[key - 1]) : !classOn[key - 1]) key = 0;
      }
      ids[v * w + u] = key;
      if (key) any = true;
    }
    return any;
  }
  const rgb = data.colours.map((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)));
  const classOf = (key) => (byClass ? key - 1 : data.objects[key - 1].label);
  function drawGrey(view) {
    const w = size[view.h], h = size[view.v], out = view.pixels.data;
    for (let v = 0, to = 0; v < h; v++) for (let u = 0, from = at[view.axis] * strides[view.axis] + v * strides[view.v]; u < w; u++, from += strides[view.h], to += 4) {
      const value = grey ? lut[grey[from]] : 0;
      out[to] = out[to + 1] = out[to + 2] = value; out[to + 3] = 255;
    }
    stamp(view, true);
  }
  function stamp(view, smooth) {
    const p = place(view), context = view.canvas.getContext("2d");
    view.small.getContext("2d").putImageData(view.pixels, 0, 0);
    context.imageSmoothingEnabled = smooth;
    context.drawImage(view.small, p.left, p.top, size[view.h] * p.sx, size[view.v] * p.sy);
  }
  function drawFill(view) {
    const out = view.pixels.data;
    for (let k = 0; k < view.ids.length; k++) {
      const key = view.ids[k], colour = key ? rgb[classOf(key)] : null;
      if (colour) { out[4 * k] = colour[0]; out[4 * k + 1] = colour[1]; out[4 * k + 2] = colour[2]; }
      out[4 * k + 3] = key ? 255 * (!byClass && key - 1 === chosen ? Math.min(1, opacity + 0.25) : opacity) : 0;
    }
    stamp(view, false);
  }
  function drawOutlines(view) { // one path a class, along the edges of voxels
    const w = size[view.h], h = size[view.v], p = place(view), context = view.canvas.getContext("2d");
    const paths = new Map(), x = (u) => p.left + u * p.sx, y = (v) => p.top + v * p.sy;
    const path = (key) => {
      const name = !byClass && key - 1 === chosen ? -1 : classOf(key);
      if (!paths.has(name)) paths.set(name, new Path2D());
      return paths.get(name);
    };
    for (let v = 0; v < h; v++) for (let u = 0; u < w; u++) {
      const key = view.ids[v * w + u];
      if (!key) continue;
      if (u === 0 || view.ids[v * w + u - 1] !== key) { path(key).moveTo(x(u), y(v)); path(key).lineTo(x(u), y(v + 1)); }
      if (u === w - 1 || view.ids[v * w + u + 1] !== key) { path(key).moveTo(x(u + 1), y(v)); path(key).lineTo(x(u + 1), y(v + 1)); }
      if (v === 0 || view.ids[(v - 1) * w + u] !== key) { path(key).moveTo(x(u), y(v)); path(key).lineTo(x(u + 1), y(v)); }
      if (v === h - 1 || view.ids[(v + 1) * w + u] !== key) { path(key).moveTo(x(u), y(v + 1)); path(key).lineTo(x(u + 1), y(v + 1)); }
    }
    for (const [name, one] of paths) {
      context.lineWidth = name === -1 ? 3 : 1.5;
      context.strokeStyle = name === -1 ? "#ffffff" : data.colours[name];
      context.stroke(one);
    }
  }
  function drawMarks(view) {
    const p = place(view), context = view.canvas.getContext("2d"), W = view.canvas.clientWidth, H = view.canvas.clientHeight;
    if (cross) {
      const x = p.left + (at[view.h] + 0.5) * p.sx, y = p.top + (at[view.v] + 0.5) * p.sy, gap = 9;
      context.strokeStyle = "rgba(255,212,0,0.75)"; context.lineWidth = 1; context.beginPath();
      context.moveTo(x, 0); context.lineTo(x, y - gap); context.moveTo(x, y + gap); context.lineTo(x, H);
      context.moveTo(0, y); context.lineTo(x - gap, y); context.moveTo(x + gap, y); context.lineTo(W, y); context.stroke();
    }
    context.font = "600 14px system-ui, sans-serif"; context.fillStyle = "#ffffff"; context.shadowColor = "#000000"; context.shadowBlur = 4;
    context.textBaseline = "middle"; context.textAlign = "left"; context.fillText(view.sides[0], 6, H / 2);
    context.textAlign = "right"; context.fillText(view.sides[1], W - 6, H / 2);
    context.textAlign = "center"; context.fillText(view.sides[2], W / 2, 11); context.fillText(view.sides[3], W / 2, H - 10);
    const length = [200, 100, 50, 20, 10, 5, 2, 1].find((n) => n * p.scale < W * 0.3) || 1;
    context.textAlign = "left"; context.font = "12px system-ui, sans-serif"; context.fillText(`${length} mm`, 8, H - 20);
    context.shadowBlur = 0; context.fillRect(8, H - 10, length * p.scale, 2);
  }
  function draw(view) {
    const context = view.canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    const w = Math.round(view.canvas.clientWidth * ratio), h = Math.round(view.canvas.clientHeight * ratio);
    if (!w || !h) return;
    if (view.canvas.width !== w || view.canvas.height !== h) { view.canvas.width = w; view.canvas.height = h; }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, h);
    drawGrey(view);
    const layers = byClass ? [[classmap, null]] : sheets.map((volume, n) => [volume, data.members[n]]);
    for (const [volume, members] of layers) if (cut(view, volume, members)) { drawFill(view); if (outlines) drawOutlines(view); }
    drawMarks(view);
    view.slider.value = at[view.axis];
    view.output.textContent = `${at[view.axis] + 1} of ${size[view.axis]}`;
    view.canvas.dataset.drawn = at[view.axis];
  }
  function redraw() { cancelAnimationFrame(pending); pending = requestAnimationFrame(() => { views.forEach(draw); tell(); }); }

  // ---- what is at the cross-hairs --------------------------------------------------------------------------------
  const litres = (mm3) => (mm3 < 1000 ? `${mm3.toPrecision(3)} mm³` : mm3 < 1e6 ? `${(mm3 / 1000).toPrecision(3)} ml` : `${(mm3 / 1e6).toPrecision(3)} l`);
  function tell() {
    const here = $("here"), voxel = at[0] * strides[0] + at[1] * strides[1] + at[2];
    const place = data.affine.map((row) => row[0] * at[2] + row[1] * at[1] + row[2] * at[0] + row[3]);
    const sides = ["RL", "AP", "SI"].map((pair, k) => `${pair[place[k] < 0 ? 1 : 0]} ${Math.abs(place[k]).toFixed(1)}`);
    here.replaceChildren(`Cross-hairs at ${sides.join(", ")} mm: `);
    const found = [];
    sheets.forEach((volume, n) => { if (volume[voxel]) found.push(data.members[n][volume[voxel] - 1]); });
    if (!found.length) here.append("no object");
    found.forEach((number, k) => {
      const object = data.objects[number], swatch = document.createElement("span");
      swatch.className = "swatch"; swatch.style.background = data.colours[object.label];
      here.append(k ? "; " : "", swatch, `${data.names[object.label]} ${object.number}, ${litres(object.volume)}, score ${object.score.toFixed(2)}`);
    });
  }
  function choose(number) {
    chosen = number;
    data.objects[number].centre.forEach((value, axis) => { at[axis] = Math.max(0, Math.min(size[axis] - 1, Math.round(value))); });
    for (const row of document.querySelectorAll("[data-row]")) row.classList.toggle("chosen", Number(row.dataset.row) === number);
    redraw();
    $("planes").scrollIntoView({ block: "nearest" });
  }

  // ---- input ---------------------------------------------------------------------------------------------------
  function move(axis, by) { at[axis] = Math.max(0, Math.min(size[axis] - 1, at[axis] + by)); redraw(); }
  for (const view of views) {
    view.slider.max = size[view.axis] - 1;
    view.slider.addEventListener("input", () => { at[view.axis] = Number(view.slider.value); redraw(); });
    view.canvas.addEventListener("wheel", (event) => { event.preventDefault(); move(view.axis, Math.sign(event.deltaY)); }, { passive: false });
    const point = (event) => {
      const box = view.canvas.getBoundingClientRect(), p = place(view);
      const u = Math.floor((event.clientX - box.left - p.left) / p.sx), v = Math.floor((event.clientY - box.top - p.top) / p.sy);
      at[view.h] = Math.max(0, Math.min(size[view.h] - 1, u)); at[view.v] = Math.max(0, Math.min(size[view.v] - 1, v));
      redraw();
    };
    view.canvas.addEventListener("pointerdown", (event) => { view.canvas.setPointerCapture(event.pointerId); point(event); });
    view.canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    const keys = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    view.canvas.addEventListener("keydown", (event) => {
      if (keys[event.key]) { event.preventDefault(); move(view.axis, keys[event.key]); }
    });
    view.figure.querySelector("button").addEventListener("click", () => {
      const one = $("planes").classList.toggle("one");
      view.figure.classList.toggle("large", one);
      redraw();
    });
    new ResizeObserver(redraw).observe(view.canvas);
  }
  for (const box of document.querySelectorAll("[data-class]")) box.addEventListener("change", () => { classOn[Number(box.dataset.class)] = box.checked; redraw(); });
  for (const button of document.querySelectorAll("[data-show]")) button.addEventListener("click", () => choose(Number(button.dataset.show)));
  const slide = (id, text, set) => $(id).addEventListener("input", (event) => {
    const value = Number(event.target.value);
    event.target.nextElementSibling.textContent = text(value); set(value); redraw();
  });
  slide("brightness", String, contrast); slide("contrast", String, contrast);
  slide("opacity", (v) => `${v} %`, (v) => { opacity = v / 100; });
  slide("score", (v) => v.toFixed(2), (v) => { minScore = v; });
  $("outlines").addEventListener("change", (event) => { outlines = event.target.checked; redraw(); });
  $("cross").addEventListener("change", (event) => { cross = event.target.checked; redraw(); });
  $("classmap").addEventListener("change", (event) => { byClass = event.target.checked; redraw(); });
  function picture() { grey = unpack(document.querySelector(`[data-picture="${$("picture").value}"]`), false); redraw(); }
  data.pictures.forEach((one, n) => $("picture").append(new Option(one.name, n)));
  $("picture").addEventListener("change", picture);

  Promise.all([...document.querySelectorAll("#sheets img")].map((image) => image.decode())).then(() => {
    sheets = [...document.querySelectorAll("[data-layer]")].map((image) => unpack(image, true));
    classmap = unpack(document.querySelector("[data-classmap]"), true);
    if (data.objects.length) data.objects[0].centre.forEach((value, axis) => { at[axis] = Math.max(0, Math.min(size[axis] - 1, Math.round(value))); });
    contrast();
    $("controls").hidden = false;
    if (data.pictures.length) picture(); else redraw();
  });
})();
