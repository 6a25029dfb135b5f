"use strict";
// Tables: sort by any column, filter rows, choose columns, copy what is shown.
(() => {
  $$("th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = $("tbody", head.closest("table"));
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    $$("th", head.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const by = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? String(x).localeCompare(y) : Number(x) - Number(y);
      return (down ? -1 : 1) * by;
    };
    body.append(...[...body.rows].sort(order));
  }));

  const table = $("#table table");
  const filter = $("#filter");
  const rows = table ? $$("tbody tr", table) : [];
  // Numbers and ranges choose layers, any of them; words must all be in the name of the matrix.
  const fits = (row, terms) => {
    const layers = terms.filter((term) => /^\d+(-\d+)?$/.test(term)).map((term) => term.split("-").map(Number));
    const words = terms.filter((term) => !/^\d+(-\d+)?$/.test(term));
    const layer = Number(row.dataset.layer);
    const name = `${row.dataset.stack ?? row.textContent} ${row.cells[0].textContent} ${row.cells[0].title}`.toLowerCase();
    return (!layers.length || row.dataset.layer === undefined || layers.some(([low, high = low]) => layer >= low && layer <= high))
      && words.every((word) => row.dataset.role === word || (word.length > 1 && name.includes(word)));
  };
  function show() {
    const terms = filter.value.toLowerCase().replaceAll("–", "-").split(/[\s,]+/).filter(Boolean);
    rows.forEach((row) => { row.hidden = !fits(row, terms); });
    $("#shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  }
  const visible = (cell) => getComputedStyle(cell).display !== "none";
  const text = () => $$("tr", table).filter((row) => !row.hidden)
    .map((row) => [...row.cells].filter(visible).map((cell) => cell.dataset.value && cell.cellIndex ? cell.dataset.value : cell.textContent).join("\t")).join("\n");

  page.toRow = ({ layer, role, stack }) => {
    const row = rows.find((one) => Number(one.dataset.layer) === layer && one.dataset.stack === stack && (!role || one.dataset.role === role));
    if (!row) return;
    if (filter && row.hidden) { filter.value = ""; show(); }
    $$("tr.chosen").forEach((other) => other.classList.remove("chosen"));
    row.classList.add("chosen");
    row.scrollIntoView({ block: "center" });
  };
  page.tables = () => {
    if (!filter) return;
    filter.addEventListener("input", show);
    show();
    const hidden = document.head.appendChild(document.createElement("style"));
    $$("[data-column]").forEach((box) => box.addEventListener("change", () => {
      const off = $$("[data-column]").filter((one) => !one.checked).map((one) => `#table tr>:nth-child(${Number(one.dataset.column) + 1})`);
      hidden.textContent = off.length ? `${off.join()}{display:none}` : "";
    }));
    $("#copy")?.addEventListener("click", (event) => page.copy(text(), event.target));
    table.tBodies[0].addEventListener("click", ({ target }) => {
      const row = target.closest("th[scope=row]")?.parentElement;
      if (row?.dataset.layer) page.open(Number(row.dataset.layer), row.dataset.role, row.dataset.stack);
    });
  };
  page.start();
})();
