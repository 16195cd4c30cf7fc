"use strict";

// The search field: units of all layers by address, by class and by likeness, as you type.

{
  const { root, layer: here } = body.dataset;
  const form = byId("search");
  const field = form.q;
  const panel = byId("panel");
  const list = byId("results");
  const atMost = 50;
  const layersAtMost = 6;
  const plurals = [["s", ""], ["es", ""], ["ies", "y"], ["ves", "f"], ["ves", "fe"]];
  let rows = [];
  let active = -1;
  let names;
  let vocabulary;
  let latest;
  const scripts = new Map();

  // The data of a search are loaded when it first needs them; false if they are missing.
  function load(name) {
    if (scripts.has(name)) return scripts.get(name);
    const script = document.createElement("script");
    const loading = new Promise((resolve) => {
      script.onload = () => resolve(true);
      script.onerror = () => resolve(false);
    });
    script.src = `${root}${name}`;
    document.head.append(script);
    scripts.set(name, loading);
    return loading;
  }

  const split = (text) => text.toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];

  // The words of each name of each class and unit, and of each broader term.
  function readNames() {
    const terms = new Map(Object.entries(TERMS));
    const all = [...CLASSES, ...LAYERS.flatMap((x) => UNITS[x.slug].name ?? []), ...terms.keys()];
    names = new Map(all.map((name) => [name, [name, ...(terms.get(name) ?? [])].map(split)]));
    vocabulary = new Set([...names.values()].flat(2));
  }

  const isName = (text) => [...names.keys()].some((name) => name.toLowerCase() === text);

  // "dogs" is "dog" if no name has the word "dogs".
  function singularize(word) {
    if (vocabulary.has(word)) return word;
    const forms = plurals.filter(([end]) => word.endsWith(end)).map(([end, one]) => word.slice(0, -end.length) + one);
    return forms.find((form) => vocabulary.has(form)) ?? word;
  }

  // How well a name matches: 3 if it is all that is wanted, 2 if it has these words, 1 if it has their beginnings.
  function match(wanted, words) {
    if (!wanted.length || !wanted.every((word) => words.some((x) => x.startsWith(word)))) return 0;
    return wanted.every((word) => words.includes(word)) ? 2 + (wanted.length === words.length) : 1;
  }

  // The names that match best: where a class is a “dog”, a “dog sled” does not match it.
  function matchNames(text) {
    const wanted = split(text).map(singularize);
    const scores = [...names].map(([name, all]) => [name, Math.max(...all.map((words) => match(wanted, words)))]);
    const best = Math.max(1, ...scores.map(([, score]) => score));
    return scores.filter(([, score]) => score === best).map(([name]) => name);
  }

  // The layer that a query names, at its beginning or anywhere, and what is left. A class may hold a layer's name.
  function takeLayer(query) {
    const [first] = LAYERS.flatMap((x) => [[x.name, x], [x.slug, x]])
      .map(([name, layer]) => {
        const escaped = name.toLowerCase().replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        const [, before, after] = query.match(new RegExp(`^(|.*?[\\s/:,])${escaped}($|[\\s/:,].*)`)) ?? [];
        return { layer, before, after, size: name.length };
      })
      .filter((x) => x.before !== undefined)
      .sort((a, b) => !!a.before - !!b.before || b.size - a.size);
    if (!first || (isName(query) && first.size < query.length)) return { left: query };
    return { layer: first.layer, left: `${first.before} ${first.after}`.replace(/^[\s/:,]+|[\s/:,]+$/g, "") };
  }

  // "conv3 17", "unit 17 of conv3", "dog conv3", "dog, cat" or "17": a layer, and what is left. "like conv3/17": also that.
  function parse(text) {
    const query = text.trim().toLowerCase();
    if (/^like(\s|$)/.test(query)) {
      const own = LAYERS.find((x) => x.slug === here);
      return { layer: own, ...parse(query.slice(5)), isLike: true };
    }
    const { layer, left } = takeLayer(query);
    const plain = left.replace(/(^|\s)(units?|layers?|of|in)(?!\S)/g, "").trim();
    const rest = isName(left) || !(layer || plain) ? left : plain;
    const choices = isName(rest) ? [rest] : rest.split(/,|\sor(?!\S)/).map((x) => x.trim()).filter(Boolean);
    const unit = rest.match(/^\d+$/)?.[0];
    return { ...(layer && { layer }), rest, choices, unit };
  }

  // Layers and units that are named themselves, the page's own layer first.
  function findNamed({ layer, rest, choices }) {
    const layers = layer ? [layer] : LAYERS;
    const units = choices.filter((x) => /^\d+$/.test(x)).map(Number);
    if (units.length) {
      const own = [...layers].sort((a, b) => (b.slug === here) - (a.slug === here));
      return own.flatMap((x) => units.filter((unit) => unit < x.units).map((unit) => ({ layer: x, unit })));
    }
    if (layer) return rest ? [] : [{ layer }];
    return rest ? layers.filter((x) => x.name.toLowerCase().startsWith(rest)).map((x) => ({ layer: x })) : [];
  }

  // Units named as wanted, or whose strongest activations or highest mean are of such classes.
  function findByClass({ layer, rest, choices }, order) {
    if (rest ? !split(rest).length : !layer && order === "match") return [];
    const matches = new Set(choices.flatMap(matchNames));
    const isWanted = CLASSES.map((name) => matches.has(name));
    const found = [];
    for (const x of layer ? [layer] : LAYERS) {
      const { name, active, labels, favorite } = UNITS[x.slug];
      for (let unit = 0; unit < x.units; unit++) {
        const own = labels[unit];
        const matching = own.filter((label) => isWanted[label]).length;
        let score = 10 * matches.has(name?.[unit]);
        if (own.length) score += matching / own.length + isWanted[favorite[unit]];
        if (score || (!rest && active[unit])) found.push({ layer: x, unit, score, matching });
      }
    }
    return sortUnits(found, order);
  }

  // Units that respond to the same images, of its own layer and of others.
  async function findLike({ layer, unit }, order) {
    if (!layer || !(unit < layer.units) || !(await load(`likeness/${layer.slug}.js`))) return [];
    const { within, elsewhere } = LIKENESS[layer.slug];
    const found = [];
    for (const row of [within[unit], elsewhere[unit]]) {
      for (let at = 0; at < row.length; at += 3) {
        const [place, other, cosine] = row.slice(at, at + 3);
        found.push({ layer: LAYERS[place], unit: other, score: cosine, cosine });
      }
    }
    return sortUnits(found, order);
  }

  function sortUnits(found, order) {
    const column = { activity: "active", match: "selectivity" }[order] ?? order;
    for (const x of found) x.value = UNITS[x.layer.slug][column][x.unit] ?? -1;
    const isMatch = order === "match";
    return found.sort((a, b) => (isMatch && b.score - a.score) || b.value - a.value);
  }

  async function update() {
    list.ariaBusy = true;
    await load("units.js");
    if (!names) readNames();
    const text = field.value;
    const order = form.sort.value;
    const query = parse(text);
    const found = query.isLike ? await findLike(query, order) : [...findNamed(query), ...findByClass(query, order)];
    if (text !== field.value || order !== form.sort.value) return;
    rows = found;
    list.ariaBusy = false;
    list.replaceChildren(...rows.slice(0, atMost).map(makeRow));
    list.hidden = !rows.length;
    byId("hits").replaceChildren(...[count(query)].flat());
    choose(rows.length ? 0 : -1);
    remember();
    expand(true);
  }

  function count({ layer, rest, choices, unit, isLike }) {
    if (isLike && rows.length) return `${rows.length} unit${rows.length > 1 ? "s" : ""} like ${nameUnit(layer, unit)}`;
    if (rows.length) return rows.length > atMost ? `${rows.length} results, the first ${atMost}` : `${rows.length} result${rows.length > 1 ? "s" : ""}`;
    if (!layer && !rest) return suggest();
    if (isLike && !(layer && unit)) return `“like” takes a layer and a unit: like ${LAYERS[0].name}/3`;
    if (layer && unit && !(unit < layer.units)) return `there is no unit ${unit}; ${layer.name} has the units 0 to ${layer.units - 1}`;
    if (isLike && readUnit(layer.slug, unit).dead) return `${nameUnit(layer, unit)} is dead: no image activates it`;
    if (isLike && !LIKENESS[layer.slug]) return "this gallery does not hold which units are alike";
    if (isLike) return `no unit responds to the same images as ${nameUnit(layer, unit)}`;
    if (layer && !CLASSES.length && choices.flatMap(matchNames).length) return explainLabels(layer, choices);
    const more = LAYERS.length - layersAtMost;
    return `no unit or class; the layers are ${LAYERS.slice(0, layersAtMost).map((x) => x.name).join(", ")}${more > 0 ? ` … and ${more} more` : ""}`;
  }

  // Without labels, only units that are named after a class are found by it.
  function explainLabels({ name }, [first, ...others]) {
    const message = `the images have no labels, so ${name} cannot be searched by class`;
    if (!HAS_CLASS_PAGES) return message;
    const link = document.createElement("a");
    const hash = others.length ? "" : `#${new URLSearchParams({ find: first.replace(/\S+/g, singularize) })}`;
    link.href = `${root}classes/index.html${hash}`;
    link.textContent = "the class pages";
    return [`${message}; see `, link];
  }

  const nameUnit = (layer, unit) => `${layer.name}, ${readUnit(layer.slug, unit).name}`;

  // What may be typed in this gallery.
  function suggest() {
    const { name } = LAYERS.find((x) => x.slug === here) ?? LAYERS[0];
    const [first] = CLASSES;
    const examples = [name, `${name} 3`, ...(first ? [first, `${name} ${first}`] : []), `like ${name}/3`];
    return `a layer, a unit${first ? ", a class" : ""}: ${examples.join(", ")}`;
  }

  function makeRow({ layer, unit, cosine, matching }, index) {
    const row = byId("result").content.firstElementChild.cloneNode(true);
    const [square, text] = row.children;
    const [title, small] = text.children;
    row.id = `result-${index}`;
    if (unit === undefined) {
      title.textContent = layer.name;
      small.textContent = `layer of ${layer.units} units`;
      square.replaceChildren();
      return row;
    }
    const x = readUnit(layer.slug, unit);
    title.textContent = nameUnit(layer, unit);
    const own = cosine ? `cosine ${cosine.toFixed(2)} · ` : matching && matching !== x.majority_count ? `${matching} of ${x.tops} match · ` : "";
    small.textContent = own + describe(x);
    square.style.cssText = layer.style;
    if (x.dead) square.replaceChildren();
    else square.firstChild.src = `${root}layers/${layer.slug}/${unit}.webp`;
    return row;
  }

  function describe(unit) {
    if (unit.dead) return "dead: no image activates it";
    const numbers = ["selectivity", "sparsity"].filter((name) => unit[name] !== null).map((name) => `${name} ${formatNumber(unit[name])}`);
    return [summarize(unit), ...numbers, `active in ${formatPercent(unit.active)}`].filter(Boolean).join(" · ");
  }

  const address = ({ layer, unit = "index" }) => `${root}layers/${layer.slug}/${unit}.html`;

  function choose(index) {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = index;
    const row = list.children[active];
    if (!row) return field.removeAttribute("aria-activedescendant");
    row.setAttribute("aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
    field.setAttribute("aria-activedescendant", row.id);
  }

  function expand(isOpen) {
    panel.hidden = !isOpen;
    field.setAttribute("aria-expanded", isOpen && rows.length > 0);
  }

  // A unit of the page's own layer, with the layer.
  function resolve(text) {
    const { layer = LAYERS.find((x) => x.slug === here), unit, isLike } = parse(text);
    return layer && unit < layer.units ? `${isLike ? "like " : ""}${layer.slug}/${unit}` : text;
  }

  // The first page's address holds the search; other pages link to that.
  function remember() {
    const chosen = new URLSearchParams();
    if (field.value.trim()) chosen.set("q", resolve(field.value.trim()));
    if (form.sort.selectedIndex) chosen.set("sort", form.sort.value);
    byId("search-address").href = `${root}../index.html#${chosen}`;
    if ("home" in body.dataset) history.replaceState(null, "", `${chosen}` ? `#${chosen}` : location.pathname);
  }

  // index.html#conv4/17 leads to that unit, index.html#q=dog to that search.
  function recall() {
    const hash = location.hash.slice(1);
    const [slug, unit] = hash.split("/");
    const layer = LAYERS.find((x) => x.slug === slug);
    if (layer && (unit === undefined || (/^\d+$/.test(unit) && unit < layer.units))) return location.replace(address({ layer, unit }));
    const chosen = new URLSearchParams(hash);
    if (!hash || byId(hash)) return;
    const isSearch = chosen.has("q") || chosen.has("sort");
    field.value = isSearch ? (chosen.get("q") ?? "") : [...chosen.keys()].join(" ");
    form.sort.value = chosen.get("sort") ?? "match";
    if (form.sort.selectedIndex < 0) form.sort.selectedIndex = 0;
    field.focus();
    latest = update();
  }

  const steps = { ArrowDown: 1, ArrowUp: -1 };

  field.addEventListener("keydown", (event) => {
    if (event.key in steps && !panel.hidden) {
      event.preventDefault();
      const length = list.children.length;
      if (length) choose((active + steps[event.key] + length) % length);
    } else if (event.key === "ArrowDown") latest = update();
    else if (event.key === "Escape" && !panel.hidden) {
      event.preventDefault();
      event.stopPropagation();
      expand(false);
    }
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await latest;
    if (rows[active]) location.href = address(rows[active]);
  });

  list.addEventListener("mousedown", (event) => event.preventDefault());
  list.addEventListener("click", (event) => {
    const index = [...list.children].indexOf(event.target.closest("li"));
    if (index < 0) return;
    if (event.ctrlKey || event.metaKey) window.open(address(rows[index]));
    else location.href = address(rows[index]);
  });

  const refresh = () => (latest = update());
  field.addEventListener("focus", refresh);
  form.addEventListener("input", refresh);
  form.addEventListener("focusout", (event) => form.contains(event.relatedTarget) || expand(false));
  if ("home" in body.dataset) {
    window.addEventListener("hashchange", recall);
    recall();
  }
}
