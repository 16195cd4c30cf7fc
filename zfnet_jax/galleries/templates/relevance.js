"use strict";

// Which units speak for which classes: the pages of classes, and a part of each unit's page.

(() => {
  const make = (tag, properties, ...children) => {
    const { style, ...rest } = properties;
    const element = Object.assign(document.createElement(tag), rest);
    if (style) element.style.cssText = style;
    element.append(...children);
    return element;
  };
  const link = (href, ...children) => make("a", { href }, ...children);
  const number = (value) => String(Number(value.toPrecision(3)));
  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1%" : `${Number((100 * share).toFixed(1))}%`);
  const count = (total, noun) => `${total.toLocaleString("en")} ${noun}${total === 1 ? "" : "s"}`;
  const square = (kind, src, alt, style = "") =>
    make("span", { className: `square ${kind}`, style }, make("img", { loading: "lazy", src, alt }));

  // A class's page: the units of each layer that speak for it.

  function speaker(slug, [unit, rate, share, mean, hasPicture]) {
    const home = `../layers/${slug}/${unit}`;
    const pair = make("span", { className: "pair" });
    if (hasPicture) pair.append(square("patches", `${home}.webp`, `patches of unit ${unit}`), square("projections", `${home}.webp`, "their projections"));
    const text = `in ${percent(rate)} of the images · share ${percent(share)} · mean ${number(mean)}`;
    return make("li", {}, link(`${home}.html`, `unit ${unit}`, pair), make("p", { className: "small", textContent: text }));
  }

  function speakers({ name, slug, style, units }) {
    const heading = make("h3", {}, link(`../layers/${slug}/index.html`, name));
    if (!units.length) return make("section", {}, heading, make("p", { className: "small", textContent: "no unit has a positive relevance" }));
    return make("section", {}, heading, make("ul", { className: "speakers", style }, ...units.map((unit) => speaker(slug, unit))));
  }

  const list = document.getElementById("speakers");
  if (list) list.append(...CLASS.map(speakers));

  // The page of all classes: those whose name holds what is typed, or one of whose terms begins with it.

  const form = document.getElementById("find-class");
  const rows = form ? [...document.querySelectorAll("#classes > li")] : [];

  function find() {
    const wanted = form.find.value.trim().toLowerCase();
    const hasName = (row) => row.querySelector("a").textContent.toLowerCase().includes(wanted);
    const hasTerm = (row) => (row.dataset.terms ?? "").toLowerCase().includes(` ${wanted}`);
    for (const row of rows) row.hidden = !hasName(row) && !hasTerm(row);
    const total = rows.filter((row) => !row.hidden).length;
    document.getElementById("class-count").textContent = `${total.toLocaleString("en")} of ${rows.length.toLocaleString("en")} class${rows.length === 1 ? "" : "es"}`;
    const hash = wanted ? `#${new URLSearchParams({ find: form.find.value })}` : "";
    history.replaceState(null, "", hash || location.pathname);
  }

  if (form) {
    form.find.value = new URLSearchParams(location.hash.slice(1)).get("find") ?? "";
    form.addEventListener("input", find);
    form.addEventListener("submit", (event) => event.preventDefault());
    find();
  }

  // A unit's page: the classes it speaks for, and the images in which it does so most.

  function table(classes, most) {
    const heads = ["class", `among the ${most} most relevant units in`, "mean share of the layer", "mean relevance", "images"];
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col", textContent: text })));
    const body = classes.map(([label, rate, share, mean, images]) => {
      const bar = make("span", { className: "bar", style: `--share:${rate}` });
      const name = make("th", { scope: "row" }, link(`../../classes/${label}.html`, RELEVANCE.names[label]));
      const cells = [[bar, ` ${percent(rate)}`], [percent(share)], [number(mean)], [images.toLocaleString("en")]];
      return make("tr", {}, name, ...cells.map((cell) => make("td", {}, ...cell)));
    });
    return make("table", { className: "classes" }, make("thead", {}, head), make("tbody", {}, ...body));
  }

  function mosaics(unit) {
    const [height, width] = RELEVANCE.cell;
    const style = `--blocks:1;--width:${RELEVANCE.across * (width + 1)};--aspect:${(width + 1) / (height + 1)}`;
    const own = square("patches", `../../classes/units/${RELEVANCE.slug}/${unit}.webp`, "patches of the images in which the unit is most relevant", style);
    const strongest = square("patches", `${unit}.webp`, "patches of the images that activate the unit most");
    const caption = (text) => make("figcaption", { textContent: text });
    return [make("figure", {}, own, caption("most relevant")), make("figure", {}, strongest, caption("most active"))];
  }

  function images(rows) {
    const items = rows.map(([image, label, value]) => make("li", {}, make("bdi", { textContent: RELEVANCE.image_names[image] ?? `image ${image}` }), ", ", link(`../../classes/${label}.html`, RELEVANCE.names[label]), ` · ${number(value)}`));
    return make("figure", {}, make("ol", { className: "small numbered" }, ...items), make("figcaption", { textContent: "most relevant: image, class, relevance" }));
  }

  const section = document.getElementById("relevance");
  if (section && typeof RELEVANCE !== "undefined" && RELEVANCE) {
    const { unit } = section.dataset;
    const [classes, tops] = RELEVANCE.units[unit];
    const basis = RELEVANCE.predicted ? "the class that the network predicts" : "the class of its label";
    section.append(make("h2", { textContent: "Classes it speaks for" }));
    section.append(make("p", { className: "small", textContent: `Relevance: activation times the derivative of the logit of an image's class (${basis}), summed over the map.` }));
    if (classes.length) section.append(table(classes, RELEVANCE.most));
    else section.append(make("p", { textContent: `None: for no class is its mean relevance positive and is it among the ${RELEVANCE.most} most relevant units of an image.` }));
    if (tops.length) section.append(make("div", { className: "overview" }, ...mosaics(unit), images(tops)));
  }
})();
