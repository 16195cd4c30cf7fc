"use strict";

// Which units a layer's page shows, and how.

{
  const { layer: slug, atOnce } = body.dataset;
  const controls = byId("controls");
  const list = byId("units");
  const { units: count } = LAYERS.find((layer) => layer.slug === slug);
  const units = Array.from({ length: count }, (_, unit) => readUnit(slug, unit));
  const initial = new FormData(controls);
  let matching = units;
  let first = 0;

  const orders = {
    unit: (x) => x.unit,
    active: (x) => -x.active,
    rare: (x) => (x.dead ? Infinity : x.active),
    value: (x) => -x.strongest,
    selectivity: (x) => -(x.selectivity ?? -1),
    sparsity: (x) => -(x.sparsity ?? -1),
  };

  // "3, 17, 20-29" as a test of a unit's number; null where it is not that.
  function finder(text) {
    const ranges = text.split(",").map((part) => part.trim()).filter(Boolean).map((part) => part.match(/^(\d+)(?:\s*-\s*(\d+))?$/));
    if (ranges.includes(null)) return null;
    const ends = ranges.map(([, from, to]) => [Number(from), Number(to ?? from)].sort((a, b) => a - b));
    return (unit) => !ends.length || ends.some(([from, to]) => unit >= from && unit <= to);
  }

  function show(start = 0) {
    const wanted = Object.fromEntries(new FormData(controls));
    const hasNumber = finder(wanted.find);
    const text = wanted.find.trim().toLowerCase();
    const found = units.filter((x) => (hasNumber ? hasNumber(x.unit) : x.name.toLowerCase().includes(text)));
    controls.find.setCustomValidity(hasNumber || found.length ? "" : "numbers of units, as in 3, 17, 20-29");
    const least = Number(wanted.least);
    const most = wanted.most === "" ? 100 : Number(wanted.most);
    const percent = (x) => Math.round(1000 * x.active) / 10;
    matching = found.filter((x) =>
      (!wanted.class || x.favorite === Number(wanted.class)) &&
      (!wanted.state || x.dead === (wanted.state === "dead")) &&
      percent(x) >= least && percent(x) <= most);
    const by = orders[wanted.sort];
    matching.sort((a, b) => by(a) - by(b) || a.unit - b.unit);
    list.dataset.view = wanted.view;
    list.style.setProperty("--rule", controls.rule.selectedIndex);
    setContrast(controls.contrast.selectedIndex);
    page(start < matching.length ? start : 0);
  }

  function page(start) {
    first = start;
    const shown = matching.slice(first, first + Number(atOnce));
    list.replaceChildren(...shown.map((unit) => (unit.item ??= makeItem(unit))));
    const part = matching.length > atOnce ? `, from ${first + 1} to ${first + shown.length}` : "";
    const fault = controls.find.validationMessage;
    byId("count").textContent = fault ? `Find takes ${fault}` : `${matching.length} of ${count} units${part}`;
    byId("pager").hidden = matching.length <= atOnce;
    byId("back").disabled = first === 0;
    byId("forth").disabled = first + Number(atOnce) >= matching.length;
    remember();
  }

  function makeItem(unit) {
    const item = byId("item").content.firstElementChild.cloneNode(true);
    const [link, text] = item.children;
    item.dataset.unit = unit.unit;
    link.href = `${unit.unit}.html`;
    link.firstChild.textContent = unit.name;
    text.textContent = describe(unit);
    text.className = unit.dead ? "dead" : "small";
    if (unit.dead) link.lastChild.remove();
    for (const [index, image] of link.querySelectorAll("img").entries()) {
      image.src = `${unit.unit}.webp`;
      image.alt = index ? "their projections" : `patches of ${unit.name}`;
    }
    return item;
  }

  function describe(unit) {
    if (unit.dead) return "dead: no image activates it";
    const range = `activation ${formatNumber(unit.strongest)} to ${formatNumber(unit.weakest)}`;
    return [range, `active in ${formatPercent(unit.active)}`, summarize(unit)].filter(Boolean).join(" · ");
  }

  // The address holds what is chosen, and links to units carry it there and back.
  function remember() {
    const changed = [...new FormData(controls)].filter(([name, value]) => value !== initial.get(name));
    if (first) changed.push(["from", first]);
    const hash = changed.length ? `#${new URLSearchParams(changed)}` : "";
    history.replaceState(null, "", hash || location.pathname);
    for (const link of list.querySelectorAll("a")) link.hash = hash;
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

  controls.addEventListener("input", () => show());
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(show));
  window.addEventListener("hashchange", recall);
  byId("back").addEventListener("click", () => page(first - Number(atOnce)));
  byId("forth").addEventListener("click", () => page(first + Number(atOnce)));
  recall();
}
