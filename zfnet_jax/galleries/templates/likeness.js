"use strict";

// Units of any layer as small pictures that lead to their pages.

const ROOM = 96;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const nameUnit = (layer, unit) => layer.names?.[unit] ?? `unit ${unit}`;
const folderOf = (layer) => `${body.dataset.root}layers/${layer.slug}/`;

function drawPatches(layer, unit, folder = folderOf(layer), room = ROOM) {
  const [height, width] = layer.cell;
  const side = layer.across * (width + 1);
  const square = make("span", { className: "square patches" });
  const sizes = { blocks: layer.blocks, width: side, aspect: (width + 1) / (height + 1) };
  for (const [name, value] of Object.entries(sizes)) square.style.setProperty(`--${name}`, value);
  if (side > room) square.style.setProperty("--rendering", "auto");
  const alt = `patches of ${nameUnit(layer, unit)}`;
  square.append(make("img", { loading: "lazy", alt, src: `${folder}${unit}.webp` }));
  return square;
}

function linkUnit(layer, unit, title = nameUnit(layer, unit)) {
  const href = `${folderOf(layer)}${unit}.html`;
  return make("a", { href }, drawPatches(layer, unit), make("span", { textContent: title }));
}

// A unit's page: those most similar to it.

const ALIKE = LIKENESS[body.dataset.layer];

function* triples(row) {
  for (let at = 0; at < row.length; at += 3) yield row.slice(at, at + 3);
}

function listSimilar(list, row, own) {
  const items = [...triples(row)].map(([place, unit, cosine]) => {
    const layer = ALIKE.layers[place];
    const name = place === own ? nameUnit(layer, unit) : `${layer.name}, ${nameUnit(layer, unit)}`;
    return make("li", {}, linkUnit(layer, unit, name), make("p", { className: "small", textContent: cosine.toFixed(2) }));
  });
  list.append(...(items.length ? items : [make("li", { className: "small", textContent: "none" })]));
}

const similar = byId("similar");
if (similar && ALIKE) {
  const unit = Number(similar.dataset.unit);
  listSimilar(byId("within"), ALIKE.within[unit], ALIKE.own);
  listSimilar(byId("elsewhere"), ALIKE.elsewhere[unit], ALIKE.own);
}

// Two networks: which unit is which.

const matches = byId("matches");
const sortings = {
  unit: (row) => row.unit,
  least: (row) => row.cosine ?? Infinity,
  most: (row) => -(row.cosine ?? -Infinity),
};
const AT_ONCE = 64;

function showPair([place, unit, cosine], index) {
  const layer = MATCHES.layers[place];
  const name = `${layer.name === MATCHES.own.name ? "" : `${layer.name}, `}${nameUnit(layer, unit)}`;
  const text = make("figcaption", {}, index ? `closer: ${name}` : name, make("br"), `cosine ${cosine.toFixed(2)}`);
  return make("figure", {}, drawPatches(layer, unit, `../${layer.slug}/`), text);
}

function showRow({ unit, pairs }) {
  const row = make("li", { className: "row" });
  row.dataset.unit = unit;
  row.append(linkUnit(MATCHES.own, unit));
  row.append(make("span", { className: "arrow", textContent: "→" }), ...pairs.map(showPair));
  return row;
}

if (matches) {
  const rows = MATCHES.pairs.map((pairs, unit) => ({ unit, pairs, cosine: pairs[0]?.[2] })).filter((row) => row.pairs.length);
  const sort = byId("order");
  const more = byId("more");
  const extend = () => {
    const from = matches.children.length;
    matches.append(...rows.slice(from, from + AT_ONCE).map(showRow));
    more.hidden = matches.children.length === rows.length;
  };
  const arrange = () => {
    const by = sortings[sort.value];
    rows.sort((a, b) => by(a) - by(b) || a.unit - b.unit);
    matches.replaceChildren();
    extend();
  };
  sort.addEventListener("input", arrange);
  more.addEventListener("click", extend);
  arrange();
}
