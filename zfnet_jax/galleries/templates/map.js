"use strict";

// The map of a layer: a canvas in which one moves, zooms, and picks units.

const canvas = byId("map");
const pen = canvas.getContext("2d");
const OWN = ALIKE.layers[ALIKE.own];
const placed = ALIKE.points.flatMap((point, unit) => (point ? [unit] : []));
const groupOf = new Map(ALIKE.groups.flatMap((group) => group.map((unit) => [unit, group])));
// The side of a patch on the screen, the reach of the pointer, patches at most, the margin.
const [SIDE, REACH, MOST, EDGE] = [34, 24, 400, 28];
const DOT = placed.length > 1000 ? 3 : 4;

// The center of the view, and pixels to a unit of length.
const view = { x: 0, y: 0, scale: 1 };
let size = { width: 0, height: 0 };
let whole = 1;
let picked = null;
let lit = null;

// From the map to the screen, and back.

function toScreen(unit) {
  const [x, y] = ALIKE.points[unit];
  return [(x - view.x) * view.scale + size.width / 2, (view.y - y) * view.scale + size.height / 2];
}

function showAll() {
  const points = placed.map((unit) => ALIKE.points[unit]);
  const [left, right] = [0, 1].map((end) => points.map(([x]) => x).sort((a, b) => a - b).at(-end) ?? 0);
  const [low, high] = [0, 1].map((end) => points.map(([, y]) => y).sort((a, b) => a - b).at(-end) ?? 0);
  const fit = (room, extent) => (room - 2 * EDGE) / (extent || 1e-3);
  whole = Math.max(1, Math.min(fit(size.width, right - left), fit(size.height, high - low)));
  Object.assign(view, { x: (left + right) / 2, y: (low + high) / 2, scale: whole });
  draw();
}

// Zoom so that what is at a place of the screen stays there.
function zoom(factor, x = size.width / 2, y = size.height / 2) {
  const scale = Math.min(Math.max(view.scale * factor, whole / 2), whole * 200);
  const change = 1 / view.scale - 1 / scale;
  view.x += (x - size.width / 2) * change;
  view.y -= (y - size.height / 2) * change;
  view.scale = scale;
  draw();
}

function pan(dx, dy) {
  view.x -= dx / view.scale;
  view.y += dy / view.scale;
  draw();
}

// Patches: the first of a unit's mosaic, kept small.

const patches = new Map();

function loadPatch(unit) {
  patches.set(unit, null);
  const [height, width] = OWN.cell;
  const image = make("img", { src: `${folderOf(OWN)}${unit}.webp` });
  const small = { resizeWidth: 2 * SIDE, resizeHeight: 2 * SIDE, resizeQuality: width < 2 * SIDE ? "pixelated" : "medium" };
  image.decode()
    .then(() => createImageBitmap(image, 0, 0, width, height, small))
    .then((bitmap) => (patches.set(unit, bitmap), draw()));
}

// Fewer where the mosaics are large.
const pixels = OWN.blocks * OWN.across ** 2 * OWN.cell[0] * OWN.cell[1];
const atMost = Math.min(MOST, Math.floor(8e7 / pixels));

// Drawing, once per frame.

let waiting = false;

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(paint);
}

function isInView(unit) {
  const [x, y] = toScreen(unit);
  return x > -SIDE && y > -SIDE && x < size.width + SIDE && y < size.height + SIDE;
}

function paint() {
  waiting = false;
  const dots = devicePixelRatio;
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  pen.clearRect(0, 0, size.width, size.height);
  const style = getComputedStyle(body);
  const color = Object.fromEntries(["ink", "bar", "mark", "paper"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
  const visible = placed.filter(isInView);
  const hasPatches = byId("drawn").checked && visible.length <= atMost;
  joinGroup(color);
  for (const unit of visible) paintUnit(unit, hasPatches, color);
  if (picked !== null && isInView(picked)) paintUnit(picked, hasPatches, color);
}

function joinGroup(color) {
  if (!lit) return;
  pen.strokeStyle = color.mark;
  pen.lineWidth = 1;
  pen.beginPath();
  for (const unit of lit) {
    pen.moveTo(...toScreen(lit[0]));
    pen.lineTo(...toScreen(unit));
  }
  pen.stroke();
}

function paintUnit(unit, hasPatches, color) {
  const [x, y] = toScreen(unit);
  pen.globalAlpha = lit && !lit.includes(unit) ? 0.15 : 1;
  if (hasPatches && !patches.has(unit)) loadPatch(unit);
  const patch = hasPatches && patches.get(unit);
  const radius = patch ? SIDE / 2 : DOT;
  pen.beginPath();
  if (patch) {
    pen.drawImage(patch, x - radius, y - radius, SIDE, SIDE);
    pen.rect(x - radius, y - radius, SIDE, SIDE);
  } else {
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = groupOf.has(unit) ? color.mark : color.bar;
    pen.fill();
  }
  pen.strokeStyle = groupOf.has(unit) ? color.mark : color.paper;
  pen.lineWidth = groupOf.has(unit) ? 2 : 1;
  pen.stroke();
  if (unit === picked) ring(x, y, radius, color);
  pen.globalAlpha = 1;
}

function ring(x, y, radius, color) {
  pen.beginPath();
  pen.arc(x, y, radius * (radius > DOT ? 1.5 : 1) + 4, 0, 2 * Math.PI);
  pen.strokeStyle = color.ink;
  pen.lineWidth = 3;
  pen.stroke();
}

// What is picked, beside the map.

function pick(unit) {
  if (unit === picked) return;
  picked = unit;
  canvas.style.cursor = unit === null ? "" : "pointer";
  if (unit !== null) describe(unit);
  draw();
}

function describe(unit) {
  const link = make("a", { href: `${folderOf(OWN)}${unit}.html` });
  const patch = drawPatches(OWN, unit, folderOf(OWN), 240);
  patch.firstChild.loading = "eager";
  link.append(make("b", { textContent: nameUnit(OWN, unit) }), patch);
  const [, other, cosine] = ALIKE.within[unit];
  const near = other === undefined ? "no unit of this layer is similar" : `most similar: ${nameUnit(OWN, other)}, cosine ${cosine.toFixed(2)}`;
  const group = groupOf.get(unit);
  const alike = group ? ` · near duplicate of ${group.length - 1} other${group.length > 2 ? "s" : ""}` : "";
  byId("picked").replaceChildren(link, make("p", { className: "small", textContent: near + alike }));
}

// On the way back the unit is still picked.
function open() {
  if (picked === null) return;
  history.replaceState(null, "", `#unit=${picked}`);
  location.href = `${folderOf(OWN)}${picked}.html`;
}

function findNear(x, y) {
  let [best, least] = [null, REACH];
  for (const unit of placed) {
    const [u, v] = toScreen(unit);
    const distance = Math.hypot(u - x, v - y);
    if (distance < least) [best, least] = [unit, distance];
  }
  return best;
}

// The pointer: one drags, two pinch, a tap of a finger picks and that of a mouse opens.

const pointers = new Map();
let hasMoved = false;

const at = (event) => [event.offsetX, event.offsetY];

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  hasMoved = pointers.size > 1;
});

canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  const [x, y] = at(event);
  if (!before) return pick(findNear(x, y));
  const [dx, dy] = [x - before[0], y - before[1]];
  if (!hasMoved && Math.hypot(dx, dy) < 4) return;
  hasMoved = true;
  if (pointers.size === 2) pinch(event.pointerId, before, [x, y]);
  else pan(dx, dy);
  pointers.set(event.pointerId, [x, y]);
});

function pinch(id, before, after) {
  const [, other] = [...pointers].find(([key]) => key !== id);
  const distance = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
  zoom(distance(after) / Math.max(1, distance(before)), (after[0] + other[0]) / 2, (after[1] + other[1]) / 2);
}

for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));

canvas.addEventListener("click", (event) => {
  if (hasMoved) return;
  const unit = findNear(event.offsetX, event.offsetY);
  if (event.pointerType === "touch" && unit !== picked) return pick(unit);
  pick(unit);
  open();
});

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...at(event));
}, { passive: false });

// Keys.

// The nearest unit within 45 degrees of a direction.
function step(dx, dy) {
  if (picked === null) return pick(findNearest(size.width / 2, size.height / 2));
  const [x, y] = toScreen(picked);
  let [best, least] = [picked, Infinity];
  for (const unit of placed) {
    const [u, v] = toScreen(unit);
    const along = (u - x) * dx + (v - y) * dy;
    const aside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
    if (along > 0 && aside <= along && along + aside < least) [best, least] = [unit, along + aside];
  }
  pick(best);
  const [u, v] = toScreen(best);
  if (u < 0 || v < 0 || u > size.width || v > size.height) pan(size.width / 2 - u, size.height / 2 - v);
}

function findNearest(x, y) {
  const distance = (unit) => Math.hypot(toScreen(unit)[0] - x, toScreen(unit)[1] - y);
  return placed.reduce((best, unit) => (best === null || distance(unit) < distance(best) ? unit : best), null);
}

const moves = {
  ArrowLeft: () => step(-1, 0),
  ArrowRight: () => step(1, 0),
  ArrowUp: () => step(0, -1),
  ArrowDown: () => step(0, 1),
  Enter: open,
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: showAll,
};

canvas.addEventListener("keydown", (event) => {
  const move = moves[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  move();
});

byId("nearer").addEventListener("click", () => zoom(1.5));
byId("farther").addEventListener("click", () => zoom(1 / 1.5));
byId("all").addEventListener("click", showAll);
byId("drawn").addEventListener("input", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Near duplicates, below the map.

function light(group) {
  lit = group;
  draw();
}

for (const group of ALIKE.groups) {
  const item = make("li", {}, ...group.map((unit) => linkUnit(OWN, unit)));
  for (const name of ["pointerenter", "focusin"]) item.addEventListener(name, () => light(group));
  for (const name of ["pointerleave", "focusout"]) item.addEventListener(name, () => light(null));
  byId("groups").append(item);
}

// The size of the canvas follows that of the page.

new ResizeObserver(() => {
  const isFirst = !size.width;
  size = { width: canvas.clientWidth, height: canvas.clientHeight };
  canvas.width = size.width * devicePixelRatio;
  canvas.height = size.height * devicePixelRatio;
  if (isFirst || view.scale === whole) showAll();
  paint();
}).observe(canvas);

const start = Number(new URLSearchParams(location.hash.slice(1)).get("unit") ?? NaN);
if (placed.includes(start)) pick(start);
