// The explorer: maps of two classes over their image, their best pixels, and what is left of the balance of the two.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const byId = (id) => document.getElementById(id);
const explored = read("data-explored"), printed = read("data-labels");
const label = (name) => printed[name] ?? name.replaceAll("_", " ");
const percent = (share) => `${Math.round(100 * share)} %`;
const state = { network: Object.keys(explored)[0], image: 0, first: 0, second: 1, explainer: 0, contrast: 0, view: "map", share: 1 };

// --- numbers ---
const levels = {};

function map(of, target) {
  // The values of a map at its layer's resolution, as the stage kept them.
  const { size, levels: packed } = of.maps[of.explainers[state.explainer]];
  const key = `${state.network} ${state.explainer}`;
  levels[key] ??= Int8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const [h, w] = size, classes = of.names[0].length;
  const start = ((state.image * of.contrasts.length + state.contrast) * classes + target) * h * w;
  return { h, w, values: levels[key].subarray(start, start + h * w) };
}

function upsampled({ h, w, values }, [height, width]) {
  // Bilinear, corners to corners, as the pixels were ranked.
  const weights = (n, size) => Array.from({ length: size }, (_, place) => {
    const at = size > 1 ? (place * (n - 1)) / (size - 1) : 0, low = Math.min(Math.floor(at), Math.max(n - 2, 0));
    return [low, Math.min(low + 1, n - 1), at - low];
  });
  const rows = weights(h, height), columns = weights(w, width), fine = new Float64Array(height * width);
  rows.forEach(([top, bottom, down], y) => columns.forEach(([left, right, along], x) => {
    const upper = values[top * w + left] * (1 - along) + values[top * w + right] * along;
    const lower = values[bottom * w + left] * (1 - along) + values[bottom * w + right] * along;
    fine[y * width + x] = upper * (1 - down) + lower * down;
  }));
  return fine;
}

function best(fine, share) {
  // The highest pixels; of equal ones the later, as the stage ranks them.
  const order = Uint32Array.from(fine.keys()).sort((a, b) => fine[a] - fine[b] || a - b);
  const kept = new Uint8Array(fine.length);
  for (const place of order.subarray(fine.length - Math.round(share * fine.length))) kept[place] = 1;
  return kept;
}

function balance(of, contrast, target) {
  // The relative probability of the first class against the second, for each share that was measured.
  return of.answers[state.image][state.explainer][contrast][target]
    .map((logits) => 1 / (1 + Math.exp(logits[state.second] - logits[state.first])));
}

function between(shares, values, share) {
  const next = Math.max(1, shares.findIndex((measured) => measured >= share - 1e-9));
  const part = (share - shares[next - 1]) / (shares[next] - shares[next - 1]);
  return values[next - 1] + part * (values[next] - values[next - 1]);
}

// --- pictures ---
const loaded = {};

async function pixels(uri, [height, width]) {
  loaded[uri] ??= (async () => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  })();
  return loaded[uri];
}

function painted(fine, kept, picture, blurred) {
  const made = new ImageData(new Uint8ClampedArray(picture), state.size[1], state.size[0]), data = made.data;
  let largest = 0;
  for (const value of fine) largest = Math.max(largest, Math.abs(value));
  for (let place = 0; place < fine.length; place++) {
    const at = 4 * place;
    if (state.view === "seen") {
      if (!kept[place]) for (let c = 0; c < 3; c++) data[at + c] = blurred[at + c];
    } else if (kept[place]) {
      // Red for the class, blue against it, half over the image, as published.
      const value = largest ? fine[place] / largest : 0, pale = 255 * (1 - Math.abs(value));
      const over = [value < 0 ? pale : 255, pale, value > 0 ? pale : 255];
      for (let c = 0; c < 3; c++) data[at + c] = (data[at + c] + over[c]) / 2;
    } else {
      const grey = (data[at] + data[at + 1] + data[at + 2]) / 3;
      for (let c = 0; c < 3; c++) data[at + c] = 0.35 * grey + 0.65 * 128;
    }
  }
  return made;
}

let turn = 0;

async function paint() {
  const of = explored[state.network], now = ++turn;
  state.size = of.size;
  const [picture, blurred] = await Promise.all([of.pictures, of.blurred].map((uris) => pixels(uris[state.image], of.size)));
  if (now !== turn) return; // another choice came first
  for (const [letter, target] of [["a", state.first], ["b", state.second]]) {
    const canvas = byId(`map-${letter}`), fine = upsampled(map(of, target), of.size);
    [canvas.height, canvas.width] = of.size;
    canvas.getContext("2d").putImageData(painted(fine, best(fine, state.share), picture, blurred), 0, 0);
    const name = of.names[state.image][target];
    canvas.ariaLabel = `${label(of.explainers[state.explainer])}, ${label(of.contrasts[state.contrast])}, of ${name}: the best ${percent(state.share)} of its pixels`;
    byId(`name-${letter}`).textContent = `Why ${name}?`;
    byId(`p-${letter}`).textContent = `p = ${of.probabilities[state.image][target].toFixed(2)}`;
  }
  byId("explore").dataset.painted = String(now);
}

// --- the curve and the words ---
function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function curve() {
  const of = explored[state.network], names = of.names[state.image];
  const x = (share) => 34 + 270 * share, y = (value) => 206 - 190 * value;
  const parts = [];
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(element("line", { class: "rule", x1: 34, x2: 304, y1: y(tick), y2: y(tick) }));
    parts.push(element("text", { x: 28, y: y(tick) + 4, "text-anchor": "end" }, tick));
    parts.push(element("text", { x: x(tick), y: 222, "text-anchor": "middle" }, percent(tick)));
  }
  parts.push(element("text", { x: 169, y: 237, "text-anchor": "middle" }, "share of the pixels that stay"));
  const whole = balance(of, state.contrast, state.first).at(-1);
  parts.push(element("line", { class: "whole", x1: 34, x2: 304, y1: y(whole), y2: y(whole) }));
  parts.push(element("text", { x: 308, y: y(whole) + 4 }, "whole"));
  const ends = [];
  for (const [letter, target] of [["a", state.first], ["b", state.second]]) {
    const group = element("g", { class: letter });
    of.contrasts.forEach((_, contrast) => {
      const values = balance(of, contrast, target), chosen = contrast === state.contrast;
      const points = of.shares.map((share, place) => `${x(share).toFixed(1)} ${y(values[place]).toFixed(1)}`);
      group.append(element("path", { class: chosen ? "chosen" : "other", d: `M${points.join("L")}` }));
      if (!chosen) return;
      of.shares.forEach((share, place) => group.append(element("circle", { cx: x(share), cy: y(values[place]), r: 2.6 })));
      const here = between(of.shares, values, state.share);
      group.append(element("circle", { class: "here", cx: x(state.share), cy: y(here), r: 5.5 }));
      ends.push(here);
    });
    parts.push(group);
  }
  parts.push(element("line", { class: "now", x1: x(state.share), x2: x(state.share), y1: y(0), y2: y(1) }));
  byId("curve").replaceChildren(...parts);
  byId("curve-title").textContent = `Relative probability of ${names[state.first]} against ${names[state.second]}`;
  return { a: ends[0], b: ends[1], whole };
}

function say({ a, b, whole }) {
  const of = explored[state.network], names = of.names[state.image], parts = [];
  const bold = (text) => Object.assign(document.createElement("b"), { textContent: text });
  const about = of.shares.some((share) => Math.abs(share - state.share) < 1e-9) ? "" : "about ";
  parts.push(`With the best ${percent(state.share)} of the map of ${names[state.first]} the network gives it `, bold(about + a.toFixed(2)));
  parts.push(` of the two; with those of ${names[state.second]} `, bold(about + b.toFixed(2)));
  parts.push(`. The whole image: `, bold(whole.toFixed(2)), `. The label says ${of.labels[state.image]}.`);
  byId("read-out").replaceChildren(...parts);
  byId("share-text").textContent = percent(state.share);
}

function show() {
  say(curve());
  return paint();
}

// --- choices ---
function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, place) => new Option(name, place, false, place === chosen)));
}

function classes() {
  const of = explored[state.network], names = of.names[state.image];
  options(byId("first"), names, state.first);
  options(byId("second"), names, state.second);
}

function network() {
  const of = explored[state.network];
  Object.assign(state, { image: 0, first: 0, second: 1, explainer: 0, contrast: Math.max(0, of.contrasts.indexOf("weighted")) });
  options(byId("explainer"), of.explainers.map(label), state.explainer);
  options(byId("contrast"), of.contrasts.map(label), state.contrast);
  byId("images").replaceChildren(...of.pictures.map((uri, place) => {
    const choice = document.createElement("label"), image = new Image();
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "image", value: place, checked: place === 0 });
    Object.assign(image, { src: uri, alt: `${of.names[place][0]} or ${of.names[place][1]}, image ${place + 1}` });
    choice.append(input, image);
    return choice;
  }));
  classes();
  show();
}

byId("images").addEventListener("change", (event) => {
  Object.assign(state, { image: Number(event.target.value), first: 0, second: 1 });
  classes();
  show();
});
for (const [one, other] of [["first", "second"], ["second", "first"]]) {
  byId(one).addEventListener("change", (event) => {
    const before = state[one];
    state[one] = Number(event.target.value);
    if (state[other] === state[one]) state[other] = before; // a class against itself: change places
    classes();
    show();
  });
}
for (const name of ["explainer", "contrast"]) {
  byId(name).addEventListener("change", (event) => {
    state[name] = Number(event.target.value);
    show();
  });
}
byId("view").addEventListener("change", (event) => {
  state.view = event.target.value;
  paint();
});
byId("share").addEventListener("input", (event) => {
  state.share = Number(event.target.value) / 100;
  show();
});
options(byId("of-network"), Object.keys(explored), 0);
byId("of-network").addEventListener("change", (event) => {
  state.network = Object.keys(explored)[Number(event.target.value)];
  network();
});
document.querySelector(".one-network").hidden = Object.keys(explored).length < 2;
state.share = Number(byId("share").value) / 100;
network();
