"use strict";

const at = (id) => document.getElementById(id);
// The picture that was dropped, the names of the network's classes, the two that are asked about, and a layer that was
// chosen by hand.
const state = { file: null, classes: [], target: null, versus: null, layer: null, asking: null, numbers: null, bytes: 0 };

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

// A new picture, or another network, is asked about its own two most probable classes.
function forget() {
  state.target = state.versus = null;
}

async function ask() {
  if (!state.file) return;
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  const asked = { name: state.file.name, network: at("network").value, contrast: at("contrast").value };
  for (const role of ["target", "versus"]) if (state[role] !== null) asked[role] = state[role];
  if (!at("questions").disabled) asked.explainer = at("explainer").value;
  if (state.layer !== null) asked.layer = state.layer;
  say("Explaining …");
  at("result").ariaBusy = "true";
  try {
    const response = await fetch(`explain?${new URLSearchParams(asked)}`, {
      method: "POST", body: state.file, signal: asking.signal, headers: { "Content-Type": "application/octet-stream" },
    });
    const answer = await response.json();
    if (asking !== state.asking) return;
    response.ok ? show(answer) : say(answer.error, true);
  } catch (error) {
    if (error.name !== "AbortError") say("The server has stopped: start cxlib app again.", true);
  } finally {
    if (asking === state.asking) at("result").ariaBusy = "false";
  }
}

function show(answer) {
  Object.assign(state, { classes: answer.classes, target: answer.target, versus: answer.versus });
  at("questions").disabled = false;
  at("classes").replaceChildren(...answer.classes.map((name) => new Option(name)));
  fill(at("explainer"), answer.explainers, answer.explainer);
  showLayers(answer);
  restore();
  at("rivals").replaceChildren(...answer.most_probable.filter(({ index }) => index !== state.target).map(rival));

  const [target, versus] = [answer.target, answer.versus].map((index) => answer.classes[index]);
  at("picture").src = `data:image/png;base64,${answer.picture}`;
  at("picture").alt = `Why ${target} and not ${versus}: the photograph, the map by ${answer.explainer}, the probabilities`;
  at("png").href = at("picture").src;
  at("png").download = `${answer.stem}.png`;
  URL.revokeObjectURL(state.numbers);
  state.numbers = URL.createObjectURL(new Blob([answer.numbers], { type: "application/json" }));
  at("json").href = state.numbers;
  at("json").download = `${answer.stem}.json`;
  at("result").hidden = false;
  say(answer.cautions.join(" "));
}

const places = ({ size }) => size.join(" × ");

function showLayers({ layers, layer, first_layer }) {
  const finer = layers.some(({ size }) => size[0] > layers[0].size[0]);
  at("layer").replaceChildren(...layers.map((each, number) => {
    const words = `${each.name} (${places(each)}${number ? "" : ", the network’s own"})`;
    return new Option(words, each.name, false, each.name === layer);
  }));
  at("layer").disabled = !layers.length;
  at("hint").textContent = !layers.length ? "This explainer looks at the whole network."
    : layer === first_layer && layer !== layers[0].name
      ? `Chosen because the network’s own layer has ${places(layers[0])} places only: too few to see what they lie on.`
      : `Earlier layers have ${finer ? "more places, but " : ""}less meaning.`;
}

function rival({ index, probability }) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${state.classes[index]} ${(100 * probability).toFixed(1)} %`;
  button.ariaPressed = String(index === state.versus);
  button.addEventListener("click", () => choose("versus", index));
  return button;
}

function restore() {
  for (const role of ["target", "versus"]) {
    at(role).value = at(role).placeholder = state.classes[state[role]] ?? "";
    at(role).setCustomValidity("");
  }
}

function choose(role, index) {
  const other = role === "target" ? "versus" : "target";
  if (index === state[other]) state[other] = state[role]; // the two change places
  state[role] = index;
  restore();
  ask();
}

for (const role of ["target", "versus"]) {
  // An empty field offers all classes; one that is left as it was, or without a class, shows what is asked.
  at(role).addEventListener("focus", () => (at(role).value = ""));
  at(role).addEventListener("blur", restore);
  at(role).addEventListener("input", () => {
    const index = state.classes.indexOf(at(role).value);
    at(role).setCustomValidity(index < 0 ? "Choose one of the classes" : "");
    if (index >= 0) at(role).blur();
    if (index >= 0) choose(role, index);
  });
}

function take(file) {
  if (!file) return;
  if (file.size > state.bytes) return say(`The picture has more than ${state.bytes >> 20} MiB: make it smaller.`, true);
  state.file = file;
  forget();
  URL.revokeObjectURL(at("thumbnail").src);
  at("thumbnail").src = URL.createObjectURL(file);
  at("thumbnail").hidden = false;
  at("invitation").textContent = file.name;
  ask();
}

at("file").addEventListener("change", () => take(at("file").files[0]));
document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer?.files[0]);
});

at("choices").addEventListener("submit", (event) => event.preventDefault());
at("swap").addEventListener("click", () => choose("target", state.versus));
at("network").addEventListener("change", () => {
  forget();
  state.layer = null;
  at("questions").disabled = true; // until its classes and explainers are known
  ask();
});
for (const id of ["explainer", "contrast"]) at(id).addEventListener("change", ask);
at("layer").addEventListener("change", () => {
  state.layer = at("layer").value;
  ask();
});

fetch("choices").then((response) => response.json()).then(({ networks, contrasts, bytes }) => {
  state.bytes = bytes;
  fill(at("network"), networks, networks[0]);
  fill(at("contrast"), contrasts, contrasts[0]);
});
