"use strict";
// Sorting a table by a column, and hiding what belongs to another task or method.
const collator = new Intl.Collator("en", { numeric: true });

function compareBodies(column, sign) {
  const key = (body) => body.rows[0].cells[column].dataset.sort;
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is missing stays last
    return sign * (isNaN(x) || isNaN(y) ? collator.compare(x, y) : x - y);
  };
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const first = head.dataset.first || "descending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const th of head.parentElement.cells) th.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const bodies = [...table.tBodies];
    bodies.sort(compareBodies(head.cellIndex, order === "ascending" ? 1 : -1));
    for (const body of bodies) table.insertBefore(body, table.tFoot);
  });
}

const method = document.getElementById("method");
const task = document.getElementById("task");
const count = document.getElementById("count");

function filter() {
  const wanted = method.value.toLowerCase().split(",").map((name) => name.trim()).filter((name) => name !== "");
  for (const element of document.querySelectorAll("[data-task], [data-method]")) {
    const other = task.value !== "" && element.dataset.task !== undefined && element.dataset.task !== task.value;
    const named = (element.dataset.method ?? "").toLowerCase();
    const apart = named !== "" && wanted.length > 0 && !wanted.some((name) => named.includes(name));
    element.toggleAttribute("hidden", other || apart);
  }
  const rows = [...document.querySelectorAll("#leaderboard tbody")];
  const shown = rows.filter((row) => !row.hidden).length;
  const all = `${rows.length} ${rows.length === 1 ? "method" : "methods"}`;
  count.textContent = shown === rows.length ? all : `${shown} of ${all}`;
  for (const section of document.querySelectorAll("main > section")) {
    const parts = [...section.querySelectorAll("[data-task], [data-method]")];
    section.hidden = parts.length > 0 && parts.every((part) => part.hidden);
  }
}

// The filters are part of the address, so that a view can be sent to somebody.
function keep() {
  const fields = new URLSearchParams();
  if (method.value.trim() !== "") fields.set("methods", method.value.trim());
  if (task.value !== "") fields.set("task", task.value);
  const text = fields.toString();
  history.replaceState(null, "", text === "" ? location.pathname + location.search : `#${text}`);
}

function restore() {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (fields.has("methods")) method.value = fields.get("methods");
  if (fields.has("task") && [...task.options].some((option) => option.value === fields.get("task"))) {
    task.value = fields.get("task");
  }
  filter();
}

method.addEventListener("input", () => { filter(); keep(); });
task.addEventListener("change", () => { filter(); keep(); });
window.addEventListener("hashchange", restore);
restore(); // a browser may have kept the fields' values

// All samples of a run, a page at a time; texts are set as text, so that nothing in them runs.
const SIZE = 50;

function browse(data) {
  const get = (name) => document.getElementById(`sample-${name}`);
  const [run, order, text, body, total] = ["run", "order", "text", "rows", "count"].map(get);
  let first = 0;
  data.forEach((entry, k) => run.add(new Option(`${entry.method}, seed ${entry.seed}, ${entry.task}`, k)));

  function draw() {
    const sign = Number(order.value);
    const needle = text.value.trim().toLowerCase();
    const rows = data[Number(run.value)].rows.filter((row) => `${row[0]} ${row[3]}`.toLowerCase().includes(needle));
    if (sign !== 0) rows.sort((a, b) => sign * ((a[2] ?? -Infinity) - (b[2] ?? -Infinity)));
    first = Math.max(0, Math.min(first, rows.length - 1));
    const shown = rows.slice(first, first + SIZE);
    body.replaceChildren(...shown.map((row) => {
      const line = document.createElement("tr");
      const value = row[2] === null ? "unscored" : row[2].toFixed(3);
      for (const cell of [row[0], String(row[1]), value, row[3]]) line.insertCell().textContent = cell;
      return line;
    }));
    total.textContent = rows.length === 0 ? "none" : `${first + 1} to ${first + shown.length} of ${rows.length}`;
    get("back").disabled = first === 0;
    get("next").disabled = first + SIZE >= rows.length;
  }

  for (const field of [run, order, text]) field.addEventListener("input", () => { first = 0; draw(); });
  get("back").addEventListener("click", () => { first = Math.max(0, first - SIZE); draw(); });
  get("next").addEventListener("click", () => { first += SIZE; draw(); });
  draw();
}

const samples = document.getElementById("sample-data");
if (samples !== null) browse(JSON.parse(samples.textContent));
