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
  const wanted = method.value.trim().toLowerCase();
  for (const one of document.querySelectorAll("[data-task], [data-method]")) {
    const other = task.value !== "" && one.dataset.task !== undefined && one.dataset.task !== task.value;
    const named = (one.dataset.method ?? "").toLowerCase();
    one.toggleAttribute("hidden", other || (named !== "" && !named.includes(wanted)));
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

method.addEventListener("input", filter);
task.addEventListener("change", filter);
filter(); // a browser may have kept the fields' values
