// Light and dark, and the ledger's filters.
const root = document.documentElement;
const find = (selector, within = document) => [...within.querySelectorAll(selector)];

function stored(value) {
  // A page from the disk may not be allowed to keep anything.
  try {
    if (value !== undefined) localStorage.setItem("theme", value);
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function announce() {
  document.dispatchEvent(new Event("theme"));
}

if (stored()) root.dataset.theme = stored();
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  stored(root.dataset.theme);
  announce();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", announce);

// --- the ledger ---
const statements = find(".statement"), tiles = find(".tile");
const search = document.getElementById("search"), network = document.getElementById("network");
const unfold = document.getElementById("unfold"), shown = document.getElementById("shown");

function filter() {
  const pressed = tiles.filter((tile) => tile.getAttribute("aria-pressed") === "true").map((tile) => tile.dataset.verdict);
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const statement of statements) {
    const text = statement.textContent.toLowerCase();
    const rows = find("tbody tr", statement);
    for (const row of rows) row.hidden = network.value !== "" && row.dataset.network !== network.value;
    const fits = (!pressed.length || pressed.includes(statement.dataset.verdict))
      && words.every((word) => text.includes(word)) && rows.some((row) => !row.hidden);
    statement.hidden = !fits;
    n += fits;
  }
  shown.textContent = `${n} of ${statements.length} statements`;
  document.getElementById("none").hidden = n > 0;
}

for (const tile of tiles) {
  tile.addEventListener("click", () => {
    tile.setAttribute("aria-pressed", tile.getAttribute("aria-pressed") !== "true");
    filter();
  });
}
search.addEventListener("input", filter);
network.addEventListener("change", filter);
unfold.addEventListener("click", () => {
  const open = unfold.getAttribute("aria-expanded") !== "true";
  for (const statement of statements) statement.open = open;
  unfold.setAttribute("aria-expanded", open);
  unfold.textContent = open ? "Close all" : "Open all";
});
filter();

// A link to a statement opens it.
function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
addEventListener("hashchange", reveal);
reveal();
