// The charts, each drawn when it comes into sight and again when light becomes dark; and the tables behind them.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const tables = read("data-tables"), specs = read("data-charts");

function rows(name) {
  const columns = Object.entries(tables[name]);
  return columns[0][1].map((_, place) => Object.fromEntries(columns.map(([column, values]) => [column, values[place]])));
}

function colour(name) {
  // What a custom property comes to, light or dark.
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function theme() {
  const [ink, soft, rule] = ["ink", "soft", "rule"].map(colour);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent", font, view: { stroke: null },
    axis: { labelColor: ink, titleColor: soft, gridColor: rule, domainColor: rule, tickColor: rule, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", orient: "bottom", direction: "horizontal", columns: { expr: "width < 420 ? 2 : 6" } },
  };
}

async function draw(place) {
  const spec = specs[place.dataset.chart];
  const data = { values: rows(place.closest("article").querySelector("[data-table]").dataset.table) };
  const title = place.closest("article").querySelector("h3").textContent;
  const config = theme();
  const dark = getComputedStyle(document.body).colorScheme === "dark"
    || document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const options = { actions: false, renderer: "svg", tooltip: { theme: dark ? "dark" : "light" } };
  const full = { $schema: "vega-lite", autosize: { type: "fit-x", contains: "padding" }, ...spec, data, config, description: `Chart: ${title}` };
  delete full.$schema;
  place.view?.finalize();
  place.view = (await vegaEmbed(place, full, { mode: "vega-lite", ...options })).view;
  place.dataset.drawn = "true";
}

const places = [...document.querySelectorAll("[data-chart]")];
const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || entry.target.dataset.drawn) continue;
    sight.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });
for (const place of places) sight.observe(place);
document.addEventListener("theme", () => places.filter((place) => place.dataset.drawn).forEach(draw));

// --- all numbers ---
function text(value) {
  if (typeof value !== "number") return value ?? "";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

function fill(details) {
  const name = details.dataset.table, columns = Object.keys(tables[name]);
  const region = details.appendChild(document.createElement("div"));
  Object.assign(region, { className: "scrolls", tabIndex: 0 });
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", `${name}.csv`);
  const table = region.appendChild(document.createElement("table"));
  const head = table.createTHead().insertRow(), body = table.createTBody();
  let content = rows(name), order = 1;

  function write() {
    const made = content.map((row) => {
      const line = document.createElement("tr");
      for (const column of columns) {
        const cell = line.insertCell();
        cell.textContent = text(row[column]);
        if (typeof row[column] === "number") cell.className = "num";
      }
      return line;
    });
    body.replaceChildren(...made);
  }

  for (const column of columns) {
    const cell = head.appendChild(document.createElement("th"));
    cell.scope = "col";
    const button = cell.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = column;
    button.addEventListener("click", () => {
      order = cell.ariaSort === "ascending" ? -1 : 1;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.ariaSort = order === 1 ? "ascending" : "descending";
      content = [...content].sort((a, b) => order * (a[column] > b[column] ? 1 : a[column] < b[column] ? -1 : 0));
      write();
    });
  }
  write();
}

for (const details of document.querySelectorAll("[data-table]")) {
  details.addEventListener("toggle", () => fill(details), { once: true });
}
