"use strict";

// The network, in a worker: forward, and backward by the three rules. Maps are
// Float32Arrays in the order (row, column, channel), vectors maps of a single position.

let program; // what network.js describes
let trace = []; // of the latest picture, by layer: {below, above, switches}

const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);

// Weights, as they arrive: whole numbers of 16 bits in base64, to be multiplied by the
// scale of their unit. The last axis of a kernel is that of the units.

function toBytes(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

const toFloats = (base64) => new Float32Array(toBytes(base64));

function start({ network }) {
  program = network;
  program.offset = toFloats(program.offset);
  let inputs = program.input;
  for (const layer of program.layers) {
    layer.inputs = inputs;
    inputs = layer.shape;
    if (layer.numbers) {
      const { scales, bias } = program.affine[layer.name];
      layer.scales = toFloats(scales);
      layer.bias = toFloats(bias);
      layer.weights = { kernel: new Float32Array(layer.numbers), filled: 0 };
    }
  }
}

function receive({ name, text }) {
  const layer = program.layers.find((x) => x.name === name);
  const { kernel, filled } = layer.weights;
  const part = new Int16Array(toBytes(text));
  const units = layer.scales.length;
  for (let i = filled; i < filled + part.length; i++) {
    kernel[i] = part[i - filled] * layer.scales[i % units];
  }
  layer.weights.filled += part.length;
  if (layer.weights.filled === layer.numbers) layer.weights = kinds[layer.kind].pack(layer, kernel);
}

// Convolution. Below is padded, so that each row of a window is contiguous in memory.

function measure({ kernel: [height, width], padding: [[top, bottom], [left, right]], groups, features, inputs }) {
  const depth = inputs[2] / groups;
  const columns = left + inputs[1] + right;
  return {
    depth, columns, top, left,
    rows: top + inputs[0] + bottom,
    span: width * depth, // numbers in a row of a window
    inner: height * width * depth,
    outputs: features / groups,
  };
}

// Forward needs the kernels of four units interleaved, backward each by itself.
function packConv(layer, kernel) {
  const { inner, outputs } = measure(layer);
  const panels = Math.ceil(outputs / 4);
  const interleaved = new Float32Array(layer.groups * panels * 4 * inner);
  const rows = new Float32Array(layer.features * inner);
  for (let unit = 0; unit < layer.features; unit++) {
    const inGroup = unit % outputs;
    const panel = ((unit - inGroup) / outputs) * panels + (inGroup >> 2);
    for (let k = 0; k < inner; k++) {
      const weight = kernel[k * layer.features + unit];
      rows[unit * inner + k] = weight;
      interleaved[(panel * inner + k) * 4 + (inGroup & 3)] = weight;
    }
  }
  return { interleaved, rows };
}

function pad(map, { inputs: [height, width, channels] }, { depth, rows, columns, top, left }, group) {
  const padded = new Float32Array(rows * columns * depth);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (y * width + x) * channels + group * depth;
      const to = ((y + top) * columns + x + left) * depth;
      for (let c = 0; c < depth; c++) padded[to + c] = map[from + c];
    }
  }
  return padded;
}

// The inverse of `pad`.
function crop(padded, map, { inputs: [height, width, channels] }, { depth, columns, top, left }, group) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const to = (y * width + x) * channels + group * depth;
      const from = ((y + top) * columns + x + left) * depth;
      for (let c = 0; c < depth; c++) map[to + c] = padded[from + c];
    }
  }
}

// The first number of each window; the last is repeated up to a multiple of four.
function listWindows({ shape: [height, width], stride }, { columns, depth }) {
  const count = height * width;
  return Int32Array.from({ length: Math.ceil(count / 4) * 4 }, (_, i) => {
    const place = Math.min(i, count - 1);
    const y = Math.floor(place / width) * stride[0];
    return (y * columns + (place % width) * stride[1]) * depth;
  });
}

// Four windows times four units, in registers.
function multiply(tile, input, windows, first, step, span, rows, weights, k) {
  let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  let c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  for (let row = 0; row < rows; row++) {
    let a = windows[first] + row * step;
    let b = windows[first + 1] + row * step;
    let c = windows[first + 2] + row * step;
    let d = windows[first + 3] + row * step;
    for (const end = a + span; a < end; a++, b++, c++, d++, k += 4) {
      const w0 = weights[k], w1 = weights[k + 1], w2 = weights[k + 2], w3 = weights[k + 3];
      const xa = input[a], xb = input[b], xc = input[c], xd = input[d];
      a0 += xa * w0; a1 += xa * w1; a2 += xa * w2; a3 += xa * w3;
      b0 += xb * w0; b1 += xb * w1; b2 += xb * w2; b3 += xb * w3;
      c0 += xc * w0; c1 += xc * w1; c2 += xc * w2; c3 += xc * w3;
      d0 += xd * w0; d1 += xd * w1; d2 += xd * w2; d3 += xd * w3;
    }
  }
  tile[0] = a0; tile[1] = a1; tile[2] = a2; tile[3] = a3;
  tile[4] = b0; tile[5] = b1; tile[6] = b2; tile[7] = b3;
  tile[8] = c0; tile[9] = c1; tile[10] = c2; tile[11] = c3;
  tile[12] = d0; tile[13] = d1; tile[14] = d2; tile[15] = d3;
}

function convolve(layer, below) {
  const { features, weights, kernel } = layer;
  const size = measure(layer);
  const { outputs, inner, span, columns, depth } = size;
  const above = new Float32Array(sizeOf(layer.shape));
  const windows = listWindows(layer, size);
  const tile = new Float64Array(16);
  const panels = Math.ceil(outputs / 4);
  for (let group = 0; group < layer.groups; group++) {
    const padded = pad(below, layer, size, group);
    for (let panel = 0; panel < panels; panel++) {
      const at = (group * panels + panel) * inner * 4;
      const unit = group * outputs + panel * 4;
      const units = Math.min(4, outputs - panel * 4);
      for (let first = 0; first < windows.length; first += 4) {
        multiply(tile, padded, windows, first, columns * depth, span, kernel[0], weights.interleaved, at);
        const places = Math.min(4, above.length / features - first);
        for (let i = 0; i < places; i++) {
          for (let j = 0; j < units; j++) {
            above[(first + i) * features + unit + j] = Math.max(0, tile[4 * i + j] + layer.bias[unit + j]);
          }
        }
      }
    }
  }
  return { above };
}

// Collect the numbers that are not zero, and zeros up to a multiple of four.
function listNonzero(numbers, from, count, list) {
  let length = 0;
  for (let i = 0; i < count; i++) {
    const value = numbers[from + i];
    if (value === 0) continue;
    list.index[length] = i;
    list.value[length++] = value;
  }
  for (; length % 4; length++) {
    list.index[length] = list.index[length - 1];
    list.value[length] = 0;
  }
  return length;
}

const makeList = (count) => ({ index: new Int32Array(count + 4), value: new Float32Array(count + 4) });

// Add rows of weights, times numbers that are not zero, to a part of a map.
function addRows(out, at, length, weights, from, stride, list, count) {
  for (let i = 0; i < count; i += 4) {
    let a = from + list.index[i] * stride;
    let b = from + list.index[i + 1] * stride;
    let c = from + list.index[i + 2] * stride;
    let d = from + list.index[i + 3] * stride;
    const va = list.value[i], vb = list.value[i + 1], vc = list.value[i + 2], vd = list.value[i + 3];
    for (let j = at; j < at + length; j++) {
      out[j] += va * weights[a++] + vb * weights[b++] + vc * weights[c++] + vd * weights[d++];
    }
  }
}

function convolveBack(layer, step, signal) {
  const size = measure(layer);
  const { outputs, inner, span, columns, depth } = size;
  const below = new Float32Array(step.below.length);
  const windows = listWindows(layer, size);
  const list = makeList(outputs);
  for (let group = 0; group < layer.groups; group++) {
    const padded = new Float32Array(size.rows * columns * depth);
    const first = group * outputs;
    for (let place = 0; place * layer.features < signal.length; place++) {
      const count = listNonzero(signal, place * layer.features + first, outputs, list);
      if (!count) continue;
      for (let row = 0; row < layer.kernel[0]; row++) {
        const from = first * inner + row * span;
        addRows(padded, windows[place] + row * columns * depth, span, layer.weights.rows, from, inner, list, count);
      }
    }
    crop(padded, below, layer, size, group);
  }
  return below;
}

// Max pooling. Switches are indices into the map below; the first maximum wins.

function pool({ kernel, stride, padding, shape, inputs }, below) {
  const [height, width, channels] = inputs;
  const above = new Float32Array(sizeOf(shape)).fill(-Infinity);
  const switches = new Int32Array(above.length);
  for (let place = 0; place < shape[0] * shape[1]; place++) {
    const top = Math.floor(place / shape[1]) * stride[0] - padding[0][0];
    const left = (place % shape[1]) * stride[1] - padding[1][0];
    const to = place * channels;
    for (let y = Math.max(0, top); y < Math.min(height, top + kernel[0]); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + kernel[1]); x++) {
        const from = (y * width + x) * channels;
        for (let c = 0; c < channels; c++) {
          if (below[from + c] > above[to + c]) {
            above[to + c] = below[from + c];
            switches[to + c] = from + c;
          }
        }
      }
    }
  }
  return { above, switches };
}

function unpool(layer, { below, switches }, signal) {
  const result = new Float32Array(below.length);
  for (let i = 0; i < signal.length; i++) result[switches[i]] += signal[i];
  return result;
}

// Contrast normalization: x / divisor ** beta.

// For each number, the sum of those of neighboring channels.
function sumNeighbors(numbers, channels, before, after) {
  const sums = new Float64Array(numbers.length);
  for (let from = 0; from < numbers.length; from += channels) {
    for (let c = 0; c < channels; c++) {
      const last = Math.min(channels - 1, c + after);
      let sum = 0;
      for (let i = Math.max(0, c - before); i <= last; i++) sum += numbers[from + i];
      sums[from + c] = sum;
    }
  }
  return sums;
}

function divisors({ size, k, alpha, inputs }, below) {
  const squares = Float64Array.from(below, (x) => x * x);
  return sumNeighbors(squares, inputs[2], size >> 1, (size - 1) >> 1).map((sum) => k + alpha * sum);
}

function normalize(layer, below) {
  const divisor = divisors(layer, below);
  return { above: below.map((x, i) => x / divisor[i] ** layer.beta) };
}

// By the rules other than "gradient" a signal passes unchanged.
function normalizeBack(layer, { below }, signal, rule) {
  if (rule !== "gradient") return signal;
  const { size, alpha, beta, inputs } = layer;
  const divisor = divisors(layer, below);
  const parts = divisor.map((x, i) => (signal[i] * below[i]) / x ** (beta + 1));
  const sums = sumNeighbors(parts, inputs[2], (size - 1) >> 1, size >> 1);
  return signal.map((x, i) => x / divisor[i] ** beta - 2 * alpha * beta * below[i] * sums[i]);
}

// Dense layers. The kernel is (input, unit).

const packDense = (_, kernel) => ({ kernel });

function connect({ features, weights, bias, rectified }, below) {
  const above = bias.slice();
  const list = makeList(below.length);
  const count = listNonzero(below, 0, below.length, list);
  addRows(above, 0, features, weights.kernel, 0, features, list, count);
  return { above: rectified ? above.map((x) => Math.max(0, x)) : above };
}

function connectBack({ features, weights: { kernel } }, { below }, signal) {
  const result = new Float32Array(below.length);
  const { index, value } = makeList(features);
  const count = listNonzero(signal, 0, features, { index, value });
  for (let i = 0; i < result.length; i++) {
    let sum = 0;
    for (let j = 0; j < count; j++) sum += value[j] * kernel[i * features + index[j]];
    result[i] = sum;
  }
  return result;
}

const kinds = {
  Conv: { pack: packConv, forward: convolve, backward: convolveBack },
  MaxPool: { forward: pool, backward: unpool },
  ContrastNorm: { forward: normalize, backward: normalizeBack },
  Dense: { pack: packDense, forward: connect, backward: connectBack },
};

// From bytes to maps, and from a signal back to pixels.

function look({ pixels }) {
  const [height, width, channels] = program.input;
  const picture = { height: program.stored[0], width: program.stored[1], channels, values: toChannels(pixels, channels) };
  const resized = resize(picture, height, width).values;
  const { slope, offset } = program;
  let below = resized.map((x, i) => x * slope[i % channels] + offset[i % offset.length]);
  trace = program.layers.map((layer) => {
    const step = { below, ...kinds[layer.kind].forward(layer, below) };
    below = step.above;
    return step;
  });
  return trace.map((step) => step.above.slice());
}

function rectify(signal, above, rule) {
  return signal.map((x, i) => {
    if (rule !== "gradient" && x < 0) return 0;
    return rule === "deconvnet" || above[i] > 0 ? x : 0;
  });
}

// `visit` gets the signal that arrives at the output of each layer.
function backward(top, signal, rule, visit = () => {}) {
  for (let index = top; index >= 0; index--) {
    const layer = program.layers[index];
    const step = trace[index];
    visit(layer, step.above, signal);
    if (layer.rectified) signal = rectify(signal, step.above, rule);
    signal = kinds[layer.kind].backward(layer, step, signal, rule);
  }
  return signal;
}

// Row and column of a unit's greatest number, the first of equal ones.
function findGreatest(numbers, { shape }, unit) {
  const features = shape.at(-1);
  let best = unit;
  for (let i = unit; i < numbers.length; i += features) if (numbers[i] > numbers[best]) best = i;
  const place = Math.floor(best / features);
  const width = shape.length === 3 ? shape[1] : 1;
  return [Math.floor(place / width), place % width];
}

function project({ name, unit, position, rule }) {
  const top = program.layers.findIndex((x) => x.name === name);
  const { above } = trace[top];
  const layer = program.layers[top];
  const [row, column] = position ?? findGreatest(above, layer, unit);
  const place = (row * (layer.shape[1] ?? 1) + column) * layer.shape.at(-1) + unit;
  const signal = new Float32Array(above.length);
  signal[place] = above[place];
  return { pixels: backward(top, signal, rule), activation: above[place], position: [row, column] };
}

// The units of each layer with weights that speak most for a class: activation times
// gradient, summed over the map, and the position of the largest part.
function explain({ label, count }) {
  const top = program.layers.length - 1;
  const signal = new Float32Array(program.layers[top].features);
  signal[label] = 1;
  const reasons = [];
  backward(top, signal, "gradient", (layer, above, gradient) => {
    if (!layer.numbers || layer === program.layers[top]) return;
    const features = layer.shape.at(-1);
    const products = above.map((x, i) => x * gradient[i]);
    const sums = new Float64Array(features);
    products.forEach((x, i) => (sums[i % features] += x));
    const units = [...sums.keys()].sort((a, b) => sums[b] - sums[a] || a - b).slice(0, count);
    const strongest = units.filter((unit) => sums[unit] > 0);
    reasons.unshift(...strongest.map((unit) => ({ name: layer.name, unit, relevance: sums[unit], position: findGreatest(products, layer, unit) })));
  });
  return reasons;
}

// Pictures of any size, to what the network takes.

// From RGBA to colors, or to gray with Pillow's weights.
function toChannels(rgba, channels) {
  const values = new Float32Array((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 1) values[to++] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
    else for (const level of [red, green, blue]) values[to++] = level;
  }
  return values;
}

// Weights of a triangle as wide as a pixel of the coarser of two rows of pixels.
function triangles(from, to) {
  const scale = from / to;
  const reach = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - reach + 0.5));
    const end = Math.min(from, Math.floor(center + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, j) => Math.max(0, 1 - Math.abs((first + j + 0.5 - center) / reach)));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((x) => x / sum) };
  });
}

// Resize bilinearly and antialiased, as Pillow and jax.image do: along rows, then columns.
function resize({ height, width, channels, values }, toHeight, toWidth, finish = (x) => x) {
  const along = (length, stride, others, from, to) => {
    if (from === to) return;
    const source = values;
    values = new Float32Array((source.length / from) * to);
    triangles(from, to).forEach(({ first, weights }, i) => {
      for (let outer = 0; outer < others; outer++) {
        for (let c = 0; c < stride; c++) {
          let at = (outer * from + first) * stride + c;
          let sum = 0;
          for (let j = 0; j < weights.length; j++, at += stride) sum += weights[j] * source[at];
          values[(outer * to + i) * stride + c] = finish(sum);
        }
      }
    });
  };
  along(width, channels, height, width, toWidth);
  along(height, toWidth * channels, 1, height, toHeight);
  return { height: toHeight, width: toWidth, channels, values };
}

const LARGEST = 2048; // larger squares are first shrunk by the browser

// A file or frame to the bytes that the network takes: the center square, as in Python.
async function fit({ image }) {
  const bitmap = image instanceof Blob ? await createImageBitmap(image, { colorSpaceConversion: "none" }) : image;
  const [height, width] = program.stored;
  if (bitmap.width === width && bitmap.height === height) return readPixels(bitmap, 0, 0, width, height, width, height);
  const side = Math.min(bitmap.width, bitmap.height);
  const left = (bitmap.width - side) >> 1;
  const top = (bitmap.height - side) >> 1;
  const square = Math.min(side, LARGEST);
  const pixels = readPixels(bitmap, left, top, side, side, square, square);
  const source = { height: square, width: square, channels: 4, values: Float32Array.from(pixels) };
  const resized = resize(source, program.square, program.square, Math.round);
  const result = new Uint8ClampedArray(4 * height * width);
  const [rows, columns] = [(program.square - height) >> 1, (program.square - width) >> 1];
  for (let y = 0; y < height; y++) {
    const from = 4 * ((y + rows) * program.square + columns);
    result.set(resized.values.subarray(from, from + 4 * width), 4 * y * width);
  }
  return result;
}

// Transparency becomes white.
function readPixels(bitmap, left, top, fromWidth, fromHeight, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, fromWidth, fromHeight, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data;
}

const answers = { start, receive, look, project, explain, fit };

onmessage = async ({ data: { id, question, ...values } }) => {
  const begin = performance.now();
  try {
    const result = await answers[question](values);
    postMessage({ id, result, milliseconds: performance.now() - begin });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
