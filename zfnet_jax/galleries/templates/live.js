"use strict";

// One's own picture: where it comes from, what is computed next, and what is shown.
{
  const byId = (id) => document.getElementById(id);
  const create = (tag, values = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...children);
    return element;
  };
  const printable = (text) => text.replace(/\p{C}/gu, "\ufffd");
  const layers = new Map(NETWORK.layers.map((layer) => [layer.name, layer]));
  const output = NETWORK.layers.at(-1);
  const unitsOf = (layer) => layer.shape.at(-1);
  const nameUnit = (layer, unit) => (layer === output ? NETWORK.classes[unit] : `unit ${unit}`);
  const REASONS = 6; // units of a layer

  // The worker, which answers one question at a time.

  const worker = new Worker(URL.createObjectURL(new Blob([byId("engine").textContent], { type: "text/javascript" })));
  const waiting = new Map();
  let questions = 0;

  function ask(question, values, transfer = []) {
    const id = questions++;
    worker.postMessage({ id, question, ...values }, transfer);
    return new Promise((resolve, reject) => waiting.set(id, { resolve, reject, question }));
  }

  worker.onmessage = ({ data: { id, result, error, milliseconds } }) => {
    const { resolve, reject, question } = waiting.get(id);
    waiting.delete(id);
    times[question] = milliseconds;
    if (error === undefined) resolve(result);
    else reject(Error(error));
  };

  const times = {};

  async function load() {
    const { examples, colors, ...network } = NETWORK;
    await ask("start", { network });
    await showExample(examples[0]);
    for (const [index, { file, layer }] of NETWORK.files.entries()) {
      status(`Loading the network: ${index} of ${NETWORK.files.length} files.`);
      const text = await new Promise((resolve, reject) => {
        window.receiveWeights = resolve;
        const script = create("script", { src: file, onerror: () => reject(Error(`${file} is missing: write the gallery again`)) });
        document.head.append(script);
      });
      await ask("receive", { name: layer, text });
    }
  }

  // What is computed: always for the newest picture and choice, one thing after another.

  const picture = byId("picture");
  const paper = picture.getContext("2d", { willReadFrequently: true });
  const choice = byId("choice");
  const stale = { picture: false, point: false, reasons: false };
  let isReady = false;
  let isBusy = false;
  let maps = []; // of all layers, for the picture that was computed last
  let wish = null; // the arguments of `chooseStrongest`, until there are maps
  let projection = null;
  let unprojected = []; // reasons, each with its canvas

  function nextTask() {
    if (!isReady) return null;
    if (stale.picture) return computeMaps;
    if (!maps.length) return null;
    if (stale.point) return computeProjection;
    if (byId("why").open && stale.reasons) return computeReasons;
    if (byId("why").open && unprojected.length) return projectReason;
    return isFilming ? takeFrame : null;
  }

  async function work() {
    if (isBusy) return;
    isBusy = true;
    try {
      for (let task; (task = nextTask()); ) await task();
    } catch (error) {
      complain(error.message);
    }
    isBusy = false;
  }

  function refresh(...parts) {
    for (const part of parts) stale[part] = true;
    work();
  }

  async function computeMaps() {
    stale.picture = false;
    const pixels = paper.getImageData(0, 0, picture.width, picture.height).data;
    maps = await ask("look", { pixels }, [pixels.buffer]);
    stale.point = stale.reasons = true;
    showClasses();
    drawSheets();
    if (wish) chooseStrongest(...wish);
  }

  async function computeProjection() {
    stale.point = false;
    const point = readChoice();
    if (!point) return;
    projection = { ...point, ...(await ask("project", point)) };
    showProjection();
    byId("times").textContent = `Forward in ${times.look.toFixed()} ms, back to pixels in ${times.project.toFixed()} ms.`;
  }

  async function computeReasons() {
    stale.reasons = false;
    const label = byId("label").value === "" ? findFavorite() : Number(byId("label").value);
    unprojected = showReasons(await ask("explain", { label, count: REASONS }));
  }

  async function projectReason() {
    const { canvas, relevance, ...point } = unprojected.shift();
    const { pixels, position } = await ask("project", { ...point, rule: choice.rule.value });
    drawProjection(canvas, pixels, findBox(layers.get(point.name), position));
  }

  // The classes.

  const findFavorite = () => maps.at(-1).indexOf(Math.max(...maps.at(-1)));

  function showClasses() {
    const logits = maps.at(-1);
    const top = Math.max(...logits);
    const shares = Array.from(logits, (x) => Math.exp(x - top));
    const sum = shares.reduce((a, b) => a + b);
    const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a] || a - b).slice(0, 5);
    const rows = order.map((label) => {
      const bar = create("span", { className: "bar" });
      bar.style.setProperty("--share", shares[label] / sum);
      const name = create("th", { scope: "row", textContent: NETWORK.classes[label] });
      return create("tr", {}, name, create("td", {}, bar, ` ${((100 * shares[label]) / sum).toFixed(1)}%`));
    });
    byId("classes").replaceChildren(...rows);
  }

  // The maps of a layer on one sheet.

  const sheets = new Map();

  function makeSheet(layer) {
    const isMap = layer.shape.length === 3;
    const [height, width] = isMap ? layer.shape : [1, 1];
    const units = unitsOf(layer);
    const cell = isMap ? [height + 1, width + 1] : [1, 1];
    const columns = Math.min(units, Math.ceil(Math.sqrt((2 * units * cell[0]) / cell[1])));
    const rows = Math.ceil(units / columns);
    const canvas = create("canvas", { width: columns * cell[1], height: rows * cell[0] });
    const zoom = Math.max(1, Math.min(Math.floor(800 / canvas.width), Math.floor((isMap ? 72 : 20) / cell[1])));
    const mark = create("i", { hidden: true });
    const frame = create("div", { className: "framed", tabIndex: 0 }, canvas, mark);
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", `maps of ${layer.name}: arrow keys choose a unit`);
    frame.style.setProperty("--width", `${canvas.width * zoom}px`);
    const range = create("p", { className: "small" });
    const sheet = { layer, height, width, cell, columns, canvas, frame, mark, range };
    frame.addEventListener("click", (event) => clickSheet(sheet, event));
    frame.addEventListener("keydown", (event) => moveOnSheet(sheet, event));
    byId("layers").append(create("section", { className: "sheet-layer" }, create("h2", { textContent: layer.name }), range, frame));
    sheets.set(layer.name, sheet);
  }

  function drawSheets() {
    NETWORK.layers.forEach((layer, index) => drawSheet(sheets.get(layer.name), maps[index]));
    const point = readChoice();
    if (point) magnify(point);
  }

  function drawSheet(sheet, values) {
    const { layer, height, width, cell, columns, canvas, range } = sheet;
    const units = unitsOf(layer);
    const isMap = layer.shape.length === 3;
    sheet.ranges = measureRanges(values, units);
    const { low, high } = sheet.ranges;
    const isSigned = low.some((x) => x < 0);
    const isShared = !isMap || byId("scales").value === "layer";
    const peaks = high.map((x, unit) => Math.max(x, -low[unit]));
    const peak = Math.max(...peaks);
    const scales = peaks.map((x) => (isShared ? peak : x) || 1);
    const colors = NETWORK.colors[isSigned ? "PuOr_r" : "inferno"];
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < values.length; i++) {
      const unit = i % units;
      const place = (i - unit) / units;
      const x = (unit % columns) * cell[1] + (place % width);
      const y = Math.floor(unit / columns) * cell[0] + Math.floor(place / width);
      const share = isSigned ? (values[i] / scales[unit] + 1) / 2 : values[i] / scales[unit];
      image.data.set(colors[Math.round(255 * share)], 4 * (y * canvas.width + x));
      image.data[4 * (y * canvas.width + x) + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    const size = isMap ? `${units} maps of ${height} × ${width}` : `${units} units`;
    const sign = isSigned ? "±" : "0 to";
    const bounds = isShared ? `${sign} ` : `each ${sign} its own maximum, at most `;
    range.textContent = `${size} · ${bounds}${format(peak)}`;
  }

  // The least and the greatest number of each unit, and 0.
  function measureRanges(values, units) {
    const [low, high] = [new Float32Array(units), new Float32Array(units)];
    values.forEach((x, i) => {
      low[i % units] = Math.min(low[i % units], x);
      high[i % units] = Math.max(high[i % units], x);
    });
    return { low, high };
  }

  const format = (x) => Number(x.toPrecision(3)).toString();

  function clickSheet({ layer, height, width, cell, columns, canvas }, event) {
    const [x, y] = locate(canvas, event).map(Math.floor);
    const unit = Math.floor(y / cell[0]) * columns + Math.floor(x / cell[1]);
    if (unit >= unitsOf(layer)) return;
    const isMap = layer.shape.length === 3;
    const inside = (at, size, length) => Math.min(at % size, length - 1);
    choose(layer, unit, isMap ? [inside(y, cell[0], height), inside(x, cell[1], width)] : null);
  }

  // Where a pointer is, in pixels of a canvas.
  function locate(canvas, { clientX, clientY }) {
    const box = canvas.getBoundingClientRect();
    return [((clientX - box.left) / box.width) * canvas.width, ((clientY - box.top) / box.height) * canvas.height];
  }

  function moveOnSheet({ layer, columns }, event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const unit = choice.layer.value === layer.name ? Number(choice.unit.value) + step : 0;
    if (unit >= 0 && unit < unitsOf(layer)) choose(layer, unit);
  }

  function markUnit({ name, unit }) {
    for (const { mark } of sheets.values()) mark.hidden = true;
    const { mark, cell, columns, canvas, height, width } = sheets.get(name);
    mark.hidden = false;
    place(mark, [Math.floor(unit / columns) * cell[0], (unit % columns) * cell[1], height, width], canvas);
  }

  // The map of the chosen unit below its sheet, large enough to tap a place.

  const magnifier = byId("magnifier");
  const large = byId("large");
  let magnified = null; // its layer and unit

  function magnify({ name, unit }) {
    const { layer, height, width, cell, columns, canvas, frame, ranges } = sheets.get(name);
    magnified = { layer, unit };
    magnifier.hidden = layer.shape.length < 3 || !ranges;
    if (magnifier.hidden) return;
    if (frame.nextElementSibling !== magnifier) frame.after(magnifier);
    Object.assign(large, { height, width });
    large.getContext("2d").drawImage(canvas, -(unit % columns) * cell[1], -Math.floor(unit / columns) * cell[0]);
    byId("range").textContent = `${name}, ${nameUnit(layer, unit)}: ${format(ranges.low[unit])} to ${format(ranges.high[unit])}. Click a place to project it.`;
  }

  function clickMap(event) {
    const [column, row] = locate(large, event).map(Math.floor);
    choose(magnified.layer, magnified.unit, [row, column]);
  }

  // Put a frame over a part of a canvas: top, left, height, width.
  function place(mark, box, canvas) {
    const sides = [canvas.height, canvas.width, canvas.height, canvas.width];
    const shares = box.map((x, i) => `${(100 * x) / sides[i]}%`);
    [mark.style.top, mark.style.left, mark.style.height, mark.style.width] = shares;
  }

  // The chosen unit and position.

  function choose(layer, unit, position = null) {
    choice.layer.value = layer.name;
    limitChoice();
    choice.unit.value = unit;
    [choice.row.value, choice.column.value] = position ?? ["", ""];
    change();
  }

  // The message says why, where another unit was asked for.
  function chooseStrongest(layer, message = "") {
    if (maps.length) {
      const values = maps[NETWORK.layers.indexOf(layer)];
      const strongest = values.reduce((best, x, i) => (x > values[best] ? i : best), 0);
      choose(layer, strongest % unitsOf(layer));
    } else {
      wish = [layer, message];
      choice.layer.value = layer.name;
      limitChoice();
    }
    rejectChoice(message);
  }

  function limitChoice() {
    const layer = layers.get(choice.layer.value);
    const isMap = layer.shape.length === 3;
    choice.unit.max = unitsOf(layer) - 1;
    choice.row.disabled = choice.column.disabled = !isMap;
    [choice.row.max, choice.column.max] = isMap ? layer.shape.slice(0, 2).map((x) => x - 1) : [0, 0];
  }

  function readChoice() {
    const { layer, unit, row, column, rule } = choice;
    const isPlaced = !row.disabled && row.value + column.value !== "";
    row.required = column.required = isPlaced;
    if (!choice.checkValidity()) return null;
    const position = isPlaced ? [Number(row.value), Number(column.value)] : null;
    return { name: layer.value, unit: Number(unit.value), position, rule: rule.value };
  }

  function change() {
    const point = readChoice();
    if (!point) return rejectChoice(explainChoice());
    rejectChoice("");
    wish = null;
    markUnit(point);
    large.nextElementSibling.hidden = true;
    magnify(point);
    showTops(point);
    history.replaceState(null, "", `#${layers.get(point.name).slug}/${point.unit}`);
    refresh("point");
  }

  const rejectChoice = (message) => (byId("rejection").textContent = message);

  function explainChoice() {
    const wrong = [...choice.elements].find((x) => !x.validity.valid);
    return `${wrong.name} ${wrong.value || "is missing"}: ${choice.layer.value} has ${wrong.name}s 0 to ${wrong.max}`;
  }

  function findBox({ field: { start, stride, size } }, position) {
    const corner = [0, 1].map((axis) => start[axis] + stride[axis] * position[axis]);
    return [...corner, ...size];
  }

  function showProjection() {
    const { name, unit, position, activation, pixels, rule } = projection;
    const layer = layers.get(name);
    const where = layer.shape.length === 3 ? ` at row ${position[0]}, column ${position[1]}` : "";
    byId("point").textContent = `${name}, ${nameUnit(layer, unit)}${where}: activation ${format(activation)}${activation ? "" : ", so nothing to project"}`;
    large.nextElementSibling.hidden = false;
    place(large.nextElementSibling, [...position, 1, 1], large);
    const box = findBox(layer, position);
    const [height, width] = NETWORK.input;
    const source = byId("source");
    Object.assign(source, { height, width });
    source.getContext("2d").drawImage(picture, 0, 0, width, height);
    place(source.nextElementSibling, box, source);
    const patch = byId("patch");
    Object.assign(patch, { height: box[2], width: box[3] });
    const context = patch.getContext("2d");
    context.fillStyle = "#808080";
    context.fillRect(0, 0, box[3], box[2]);
    context.drawImage(source, -box[1], -box[0]);
    const scale = drawProjection(byId("projection"), pixels, box);
    byId("scale").textContent = `${rule} ± ${format(scale)}`;
  }

  // Zero is mid-gray, also outside the picture.
  function drawProjection(canvas, pixels, [top, left, rows, columns]) {
    const [height, width, channels] = NETWORK.input;
    const scale = measureScale(pixels);
    Object.assign(canvas, { height: rows, width: columns });
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    image.data.fill(255);
    for (let i = 0; i < rows * columns; i++) {
      const y = top + Math.floor(i / columns);
      const x = left + (i % columns);
      const isInside = y >= 0 && y < height && x >= 0 && x < width;
      for (let color = 0; color < 3; color++) {
        const value = isInside && scale ? pixels[(y * width + x) * channels + (color % channels)] / scale : 0;
        image.data[4 * i + color] = Math.round(127.5 * (1 + value)); // clamped by its type
      }
    }
    context.putImageData(image, 0, 0);
    return scale;
  }

  // A percentile of the magnitudes that are not zero, or their maximum.
  function measureScale(pixels) {
    const magnitudes = pixels.filter((x) => x !== 0).map(Math.abs).sort();
    if (!magnitudes.length) return 0;
    const share = choice.contrast.value === "max" ? 1 : Number(choice.contrast.value) / 100;
    const rank = (magnitudes.length - 1) * share;
    const low = magnitudes[Math.floor(rank)];
    return low + (rank % 1) * (magnitudes[Math.ceil(rank)] - low);
  }

  // The unit's strongest activations, from its own page.

  function showTops({ name, unit }) {
    const layer = layers.get(name);
    const page = LAYERS.find((x) => x.slug === layer.slug);
    const tops = byId("tops");
    if (!page) return tops.replaceChildren(create("p", { className: "small", textContent: `The gallery has no pages of ${name}.` }));
    const home = `../layers/${layer.slug}/${unit}`;
    const link = create("a", { href: `${home}.html`, textContent: `${name}, ${nameUnit(layer, unit)}` });
    if (page.dead.includes(unit)) return tops.replaceChildren(create("p", {}, link, " is dead: none of the gallery's images activates it."));
    const pair = create("div", { className: "pair" }, makeSquare("patches", home, "its strongest patches"), makeSquare("projections", home, "their projections"));
    const blocks = 1 + NETWORK.rules.length * NETWORK.contrasts.length;
    const [height, width] = layer.cell;
    for (const [key, value] of Object.entries({
      "--blocks": blocks,
      "--width": NETWORK.across * (width + 1),
      "--aspect": (width + 1) / (height + 1),
      "--rule": choice.rule.selectedIndex,
      "--contrast": choice.contrast.selectedIndex,
      "--rendering": NETWORK.across * width > 150 ? "auto" : "pixelated",
    })) pair.style.setProperty(key, value);
    tops.replaceChildren(create("p", {}, "The images of the gallery that activate it most: ", link), pair);
  }

  const makeSquare = (kind, home, alt) => create("span", { className: `square ${kind}` }, create("img", { src: `${home}.webp`, alt }));

  // Why this class.

  function showReasons(reasons) {
    const groups = Map.groupBy(reasons, (reason) => reason.name);
    const parts = [...groups].map(([name, units]) => {
      const buttons = units.map((reason) => {
        const { unit, relevance, position } = reason;
        reason.canvas = create("canvas", { width: 1, height: 1 });
        const button = create("button", { type: "button" }, reason.canvas, `unit ${unit}`, create("br"), format(relevance));
        button.setAttribute("aria-label", `${name}, unit ${unit}, relevance ${format(relevance)}`);
        const layer = layers.get(name);
        button.addEventListener("click", () => choose(layer, unit, layer.shape.length === 3 ? position : null));
        return button;
      });
      return create("div", { className: "reasons" }, create("h3", { textContent: name }), ...buttons);
    });
    byId("reasons").replaceChildren(...parts);
    return reasons;
  }

  // Where pictures come from: files, the clipboard, the camera, drawing.

  const complain = (message) => (byId("fault").textContent = message);
  const status = (message) => (byId("status").textContent = message);
  let sources = 0; // that were chosen so far

  // Give up the present source; return whether the new one is still the newest.
  function replaceSource() {
    stopCamera();
    complain("");
    status("");
    const number = ++sources;
    return () => number === sources;
  }

  // The worker decodes files, so that large ones do not freeze the page. WebKit's workers cannot read them.
  async function fit(source) {
    const inWorker = source instanceof Blob && (await ask("fit", { image: source }).catch(() => null));
    if (inWorker) return inWorker;
    const image = await createImageBitmap(source, { colorSpaceConversion: "none" });
    return ask("fit", { image }, [image]);
  }

  async function take(file, origin) {
    if (!file) return complain(`No picture file in ${origin}: save the picture on this device, then choose or drop its file.`);
    const isNewest = replaceSource();
    const name = printable(file.name);
    status(`Reading ${name}.`);
    try {
      const pixels = await fit(file);
      if (!isNewest()) return;
      setPicture(pixels);
      status(`${name} is shown.`);
    } catch {
      if (!isNewest()) return;
      complain(`“${name}” cannot be read as a picture, or is too large for this browser: choose a JPEG, PNG, GIF or WebP file.`);
      status("");
    }
  }

  function setPicture(pixels) {
    strokes.length = 0;
    byId("undo").disabled = true;
    paper.putImageData(new ImageData(pixels, picture.width, picture.height), 0, 0);
    refresh("picture");
  }

  async function showExample({ picture: address }) {
    const isNewest = replaceSource();
    const image = create("img", { src: address });
    await image.decode();
    const pixels = await fit(image);
    if (isNewest()) setPicture(pixels);
  }

  function makeExamples() {
    const items = NETWORK.examples.map((example) => {
      const button = create("button", { type: "button" }, create("img", { src: example.picture, alt: example.name }));
      button.addEventListener("click", () => showExample(example));
      return create("li", {}, button);
    });
    byId("examples").append(...items);
  }

  let isFilming = false;
  const video = byId("video");
  const isPressed = () => byId("camera").getAttribute("aria-pressed") === "true";
  const press = (value) => byId("camera").setAttribute("aria-pressed", value);

  // The button is pressed from the click on; a second click also ends the wait for permission.
  async function toggleCamera() {
    const wasPressed = isPressed();
    const isNewest = replaceSource();
    if (wasPressed) return;
    press(true);
    try {
      const stream = await openCamera();
      if (!isNewest()) return stopTracks(stream);
      video.srcObject = stream;
      await video.play();
      if (isNewest()) isFilming = true;
      refresh();
    } catch (error) {
      if (!isNewest()) return;
      stopCamera();
      complain(error.message);
    }
  }

  async function openCamera() {
    if (!navigator.mediaDevices) throw Error("Browsers give no camera to pages opened by http: open this page by https or as a file, or choose a picture file.");
    try {
      return await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: "environment" } });
    } catch (error) {
      throw Error(`The camera cannot be used (${error.name}): allow it in the browser, or choose a picture file.`);
    }
  }

  const stopTracks = (stream) => stream?.getTracks().forEach((track) => track.stop());

  function stopCamera() {
    isFilming = false;
    stopTracks(video.srcObject);
    video.srcObject = null;
    press(false);
  }

  // The next frame is taken when all of the last one is shown.
  async function takeFrame() {
    await new Promise(requestAnimationFrame);
    if (!isFilming) return;
    const pixels = await fit(video);
    if (isFilming) setPicture(pixels);
  }

  const strokes = []; // the pictures before them
  let pen = null;

  function startStroke(event) {
    replaceSource();
    strokes.push(paper.getImageData(0, 0, picture.width, picture.height));
    if (strokes.length > 50) strokes.shift();
    byId("undo").disabled = false;
    picture.setPointerCapture(event.pointerId);
    pen = locate(picture, event);
    drawStroke(event);
  }

  function drawStroke(event) {
    if (!pen) return;
    const end = locate(picture, event);
    const { color, brush } = byId("sources").elements;
    paper.strokeStyle = color.value;
    paper.lineCap = paper.lineJoin = "round";
    paper.lineWidth = (Number(brush.value) / 50) * picture.width;
    paper.beginPath();
    paper.moveTo(...pen);
    paper.lineTo(...end);
    paper.stroke();
    pen = end;
    refresh("picture");
  }

  function undo() {
    replaceSource();
    paper.putImageData(strokes.pop(), 0, 0);
    byId("undo").disabled = !strokes.length;
    refresh("picture");
  }

  function blank() {
    replaceSource();
    setPicture(new Uint8ClampedArray(4 * picture.width * picture.height).fill(255));
  }

  // Listeners, and the start.

  function listen() {
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      take(event.dataTransfer.files[0], "what was dropped");
    });
    document.addEventListener("paste", (event) => {
      if (!event.target.matches?.("input, select, textarea")) take(event.clipboardData.files[0], "the clipboard");
    });
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files.length) take(target.files[0]);
      target.value = "";
    });
    byId("camera").addEventListener("click", toggleCamera);
    byId("blank").addEventListener("click", blank);
    byId("undo").addEventListener("click", undo);
    picture.addEventListener("pointerdown", startStroke);
    picture.addEventListener("pointermove", drawStroke);
    for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => (pen = null));
    choice.addEventListener("input", ({ target }) => (target.name === "layer" ? chooseStrongest(layers.get(target.value)) : change()));
    for (const name of ["rule", "contrast"]) choice[name].addEventListener("input", () => (stale.reasons = true));
    choice.addEventListener("submit", (event) => event.preventDefault());
    byId("label").addEventListener("input", () => refresh("reasons"));
    byId("scales").addEventListener("input", () => maps.length && drawSheets());
    large.addEventListener("click", clickMap);
    byId("why").addEventListener("toggle", () => refresh());
    window.addEventListener("hashchange", recall);
  }

  // The address names a layer and a unit. Without a unit, the strongest is chosen.
  function recall() {
    const address = printable(location.hash);
    const [slug, unit = ""] = address.slice(1).split("/");
    const layer = NETWORK.layers.find((x) => x.slug === slug);
    const last = layer && unitsOf(layer) - 1;
    if (/^\d+$/.test(unit) && unit <= last) return choose(layer, Number(unit));
    const chosen = layer ?? NETWORK.layers.findLast((x) => x.kind === "Conv") ?? output;
    const problem = layer ? unit && `${layer.name} has units 0 to ${last}` : address && "the network has no such layer";
    chooseStrongest(chosen, problem && `${address}: ${problem}. The strongest unit of ${chosen.name} is shown.`);
  }

  async function begin() {
    [picture.height, picture.width] = NETWORK.stored;
    picture.style.setProperty("--ratio", picture.width / picture.height);
    NETWORK.layers.forEach(makeSheet);
    byId("label").append(...NETWORK.classes.map((textContent, value) => create("option", { value, textContent })));
    makeExamples();
    listen();
    recall();
    try {
      await load();
      isReady = true;
      status("");
      work();
    } catch (error) {
      complain(error.message);
    }
  }

  window.live = { ask, read: () => ({ isBusy: isBusy || waiting.size > 0, maps, projection, times }) };
  begin();
}
