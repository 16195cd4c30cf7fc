"use strict";

const body = document.body;
const byId = (id) => document.getElementById(id);

// From any page to any unit: "conv3 17", "conv3", or on a layer's own pages "17".

function address(text) {
  const wanted = text.trim().toLowerCase();
  const find = (name) => LAYERS.find((layer) => layer.name.toLowerCase() === name);
  if (find(wanted)) return `layers/${find(wanted).slug}/index.html`;
  const [, name, unit] = wanted.match(/^(?:(.*?)[\s/:,]+)??(?:unit\s+)?(\d+)$/) ?? [, wanted];
  const layer = name === undefined ? LAYERS.find((x) => x.slug === body.dataset.layer) : find(name);
  if (!layer) throw Error(`there is no layer ${name ?? unit}; the layers are ${LAYERS.map((x) => x.name).join(", ")}`);
  if (Number(unit) >= layer.units) throw Error(`there is no unit ${unit}; ${layer.name} has the units 0 to ${layer.units - 1}`);
  return `layers/${layer.slug}/${Number(unit)}.html`;
}

const jump = byId("jump");
jump.addEventListener("submit", (event) => {
  event.preventDefault();
  byId("jump-error").textContent = "";
  if (!jump.unit.value.trim()) return;
  try {
    location.href = body.dataset.root + address(jump.unit.value);
  } catch (error) {
    byId("jump-error").textContent = error.message;
  }
});

// Which units a layer's page shows, and how.

const controls = byId("controls");
const units = byId("units");
const items = units ? [...units.children] : [];
let matching = items;
let first = 0;

// "3, 17, 20-29" as a test of a unit's number; null where it is not that.
function finder(text) {
  const ranges = text.split(",").map((part) => part.trim()).filter(Boolean).map((part) => part.match(/^(\d+)(?:\s*-\s*(\d+))?$/));
  if (ranges.includes(null)) return null;
  const ends = ranges.map(([, from, to]) => [Number(from), Number(to ?? from)].sort((a, b) => a - b));
  return (unit) => !ends.length || ends.some(([from, to]) => unit >= from && unit <= to);
}

const orders = {
  unit: (x) => Number(x.unit),
  active: (x) => -x.active,
  rare: (x) => (x.state === "dead" ? Infinity : Number(x.active)),
  value: (x) => -x.value,
  selectivity: (x) => -x.selectivity,
};

function show(start = 0) {
  const wanted = Object.fromEntries(new FormData(controls));
  const hasNumber = finder(wanted.find);
  const named = hasNumber ? [] : items.filter((item) => item.dataset.name.includes(wanted.find.trim().toLowerCase()));
  controls.find.setCustomValidity(hasNumber || named.length ? "" : "numbers of units, as in 3, 17, 20-29");
  const least = Number(wanted.least);
  const most = wanted.most === "" ? 100 : Number(wanted.most);
  matching = (hasNumber ? items : named).filter(({ dataset: x }) =>
    (!hasNumber || hasNumber(Number(x.unit))) &&
    (!wanted.class || x.class === wanted.class) &&
    (!wanted.state || x.state === wanted.state) &&
    Number(x.percent) >= least && Number(x.percent) <= most);
  const by = orders[wanted.sort];
  matching.sort((a, b) => by(a.dataset) - by(b.dataset) || a.dataset.unit - b.dataset.unit);
  units.dataset.view = wanted.view;
  units.style.setProperty("--rule", controls.rule.selectedIndex);
  setContrast(controls.contrast.selectedIndex);
  page(start < matching.length ? start : 0);
}

function setContrast(index) {
  body.dataset.contrast = index;
  body.style.setProperty("--contrast", index);
}

function page(start) {
  const atOnce = Number(body.dataset.atOnce);
  first = start;
  const shown = matching.slice(first, first + atOnce);
  const visible = new Set(shown);
  for (const item of items) item.hidden = !visible.has(item);
  units.append(...shown);
  const part = matching.length > atOnce ? `, from ${first + 1} to ${first + shown.length}` : "";
  const fault = controls.find.validationMessage;
  byId("count").textContent = fault ? `Find takes ${fault}` : `${matching.length} of ${items.length} units${part}`;
  byId("pager").hidden = matching.length <= atOnce;
  byId("back").disabled = first === 0;
  byId("forth").disabled = first + atOnce >= matching.length;
  remember();
}

// The address holds what is chosen, and links to units carry it there and back.
function remember() {
  const changed = [...new FormData(controls)].filter(([name, value]) => value !== initial.get(name));
  if (first) changed.push(["from", first]);
  const hash = changed.length ? `#${new URLSearchParams(changed)}` : "";
  history.replaceState(null, "", hash || location.pathname);
  for (const link of units.querySelectorAll("a")) link.hash = hash;
}

function recall() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of initial) {
    const control = controls.elements[name];
    control.value = chosen.get(name) ?? value;
    if (control.value === "" && control.matches("select")) control.value = value;
  }
  show(Math.max(0, Math.trunc(Number(chosen.get("from")) || 0)));
}

let initial;
if (controls) {
  initial = new FormData(controls);
  controls.addEventListener("input", () => show());
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(show));
  window.addEventListener("hashchange", recall);
  byId("back").addEventListener("click", () => page(first - Number(body.dataset.atOnce)));
  byId("forth").addEventListener("click", () => page(first + Number(body.dataset.atOnce)));
  recall();
}

// A unit's page takes its contrast from the address, and takes the choices back.

const contrast = byId("contrast")?.contrast;
if (contrast) {
  contrast.value = new URLSearchParams(location.hash.slice(1)).get("contrast") ?? contrast.value;
  if (contrast.selectedIndex < 0) contrast.selectedIndex = 0;
  contrast.addEventListener("input", carry);
}

function carry() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  if (contrast) {
    setContrast(contrast.selectedIndex);
    contrast.selectedIndex ? chosen.set("contrast", contrast.value) : chosen.delete("contrast");
    history.replaceState(null, "", `${chosen}` ? `#${chosen}` : location.pathname);
  }
  for (const link of document.querySelectorAll("#up, .steps a")) link.hash = `${chosen}`;
}

if (!controls) carry();

// The layers before and after this one.

const place = LAYERS.findIndex((layer) => layer.slug === body.dataset.layer);
const neighbors = byId("neighbors");
for (const [id, layer, text] of [["before", LAYERS[place - 1], "‹ "], ["after", LAYERS[place + 1], " ›"]]) {
  if (!neighbors || place < 0 || !layer) continue;
  const link = Object.assign(document.createElement("a"), { id, href: `../${layer.slug}/index.html` });
  link.textContent = id === "before" ? text + layer.name : layer.name + text;
  neighbors.append(link);
}

// Keys.

const follow = (selector) => document.querySelector(selector)?.click();

function next(name) {
  const choice = document.querySelector(`main select[name=${name}]`);
  if (!choice) return;
  choice.selectedIndex = (choice.selectedIndex + 1) % choice.length;
  choice.dispatchEvent(new Event("input", { bubbles: true }));
}

// The neighbor of what has the focus; in a grid, up and down keep the column.
function move(key) {
  const stops = [...document.querySelectorAll("[data-stop]")].filter((stop) => stop.offsetParent);
  const at = stops.indexOf(document.activeElement);
  if (at < 0) return stops[0]?.focus();
  const here = stops[at].getBoundingClientRect();
  const sideways = key === "ArrowLeft" || key === "ArrowRight";
  const way = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let to = at + way;
  if (!sideways) {
    const level = (stop) => stop.getBoundingClientRect().top;
    while (stops[to] && Math.abs(level(stops[to]) - here.top) < 2) to += way;
    const row = stops[to] && level(stops[to]);
    const column = (stop) => Math.abs(stop.getBoundingClientRect().left - here.left);
    const candidates = stops.filter((stop) => Math.abs(level(stop) - row) < 2);
    to = stops.indexOf(candidates.sort((a, b) => column(a) - column(b))[0]);
  }
  stops[to]?.focus();
}

const keys = byId("keys");
byId("help").addEventListener("click", () => keys.showModal());

const actions = {
  "/": () => jump.unit.select(),
  "?": () => (keys.open ? keys.close() : keys.showModal()),
  f: () => controls?.find.select(),
  r: () => next("rule"),
  v: () => next("view"),
  u: () => follow("nav a:last-of-type"),
  c: () => next("contrast"),
  n: () => follow("#next, #after"),
  p: () => follow("#previous, #before"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (keys.open && event.key !== "?") return;
  let action = actions[event.key];
  if (event.key.startsWith("Arrow")) {
    if (document.querySelector("[data-stop]")) action = () => move(event.key);
    else if (event.key === "ArrowLeft") action = actions.p;
    else if (event.key === "ArrowRight") action = actions.n;
  }
  if (!action) return;
  event.preventDefault();
  action();
});
