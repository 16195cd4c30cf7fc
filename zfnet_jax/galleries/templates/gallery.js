"use strict";

const body = document.body;
const byId = (id) => document.getElementById(id);

// Numbers and units, as the pages write them.

const formatNumber = (value) => String(Number(value.toPrecision(3)));

function formatPercent(share) {
  if (share > 0 && share < 0.001) return "< 0.1%";
  if (share > 0.999 && share < 1) return "> 99.9%";
  return `${(100 * share).toFixed(share > 0 && share < 1 ? 1 : 0)}%`;
}

// A row of the columns of a layer, with the unit's name and state.
function readUnit(slug, unit) {
  const row = { unit };
  for (const [name, column] of Object.entries(UNITS[slug])) row[name] = column?.[unit];
  row.name ??= `unit ${unit}`;
  row.dead = row.active === 0;
  return row;
}

function summarize({ majority, majority_count, favorite, tops }) {
  if (majority < 0) return "";
  const summary = `${majority_count} of ${tops} ${CLASSES[majority]}`;
  return favorite === majority ? summary : `${summary}; highest mean: ${CLASSES[favorite]}`;
}

// A unit's page takes its contrast from the address, and takes the choices back.

const contrast = byId("contrast")?.contrast;
if (contrast) {
  contrast.value = new URLSearchParams(location.hash.slice(1)).get("contrast") ?? contrast.value;
  if (contrast.selectedIndex < 0) contrast.selectedIndex = 0;
  contrast.addEventListener("input", carry);
}

function setContrast(index) {
  body.dataset.contrast = index;
  body.style.setProperty("--contrast", index);
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

if (!byId("controls")) carry();

// The address of a unit, to be copied.

const citation = byId("citation");
if (citation) {
  const link = citation.querySelector("a");
  link.textContent = link.href;
  byId("copy").addEventListener("click", copy);
}

async function copy() {
  let message = "copied";
  try {
    await navigator.clipboard.writeText(citation.textContent);
  } catch {
    getSelection().selectAllChildren(citation);
    message = "selected";
  }
  byId("copied").textContent = message;
}

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
  "/": () => byId("search").q.select(),
  "?": () => (keys.open ? keys.close() : keys.showModal()),
  f: () => byId("controls")?.find.select(),
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
