"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Set();

  // Figures take the colours of the page, so that both themes and print look right.
  function themed(layout) {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line") };
    const copy = structuredClone(layout);
    for (const key of Object.keys(copy)) if (/^[xy]axis/.test(key)) Object.assign(copy[key], axis);
    return {
      ...copy, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    };
  }
  const settings = { responsive: true, displaylogo: false, displayModeBar: false };
  function draw(box) {
    const figure = data.figures[box.dataset.figure];
    drawn.add(box);
    return Plotly.react(box, figure.data, themed(figure.layout), settings).then(() => {
      box.dataset.drawn = "yes";
      if (box.dataset.map && !box.dataset.listening) { listen(box); }
    });
  }
  const drawAll = () => Promise.all($$(".figure").filter((box) => box.offsetParent && !drawn.has(box)).map(draw));
  window.drawAll = drawAll;
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }, { rootMargin: "500px" });
  $$(".figure").forEach((box) => watcher.observe(box));
  addEventListener("beforeprint", drawAll);

  // Theme: the system's, until the button is used.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraw = () => drawn.forEach(draw);
  const now = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  $("#theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = now() === "dark" ? "light" : "dark";
    redraw();
  });
  dark.addEventListener("change", redraw);

  // Maps: a menu chooses the metric; a click goes to the row of the table.
  $$("select[data-map]").forEach((select) => {
    const show = () => {
      const { figure, maps } = data.overviews[select.dataset.map];
      const map = maps[select.value];
      const trace = figure.data[0];
      Object.assign(trace, { z: map.z, text: map.text, zmin: map.range[0], zmax: map.range[1] });
      trace.hovertemplate = `%{y}, layer %{x}<br>%{text}<extra></extra>`;
      Object.assign(trace.colorbar, { tickvals: map.ticks.values, ticktext: map.ticks.texts });
      const box = $(`.figure[data-map="${select.dataset.map}"]`);
      data.figures[box.dataset.figure] = figure;
      $(`[data-meaning="${select.dataset.map}"]`).textContent = map.meaning;
      if (drawn.has(box)) draw(box);
    };
    select.addEventListener("change", show);
    show();
  });
  function listen(box) {
    box.dataset.listening = "yes";
    box.on("plotly_click", ({ points: [point] }) => {
      const row = $(`tr[data-at="${CSS.escape(`${point.y}|${point.x}`)}"]`);
      if (!row) return;
      $$("tr.chosen").forEach((other) => other.classList.remove("chosen"));
      row.classList.add("chosen");
      row.scrollIntoView({ block: "center" });
    });
  }

  // The rank slider: a line in both energy figures, and what the adapters would hold.
  const slider = $("#rank");
  if (slider) {
    const show = () => {
      const at = data.ranks[Number(slider.value)];
      $("#rank-value").textContent = at.rank;
      slider.setAttribute("aria-valuetext", `rank ${at.rank}`);
      for (const [key, text] of Object.entries(at.texts)) $(`[data-held="${key}"]`).textContent = text;
      const shapes = [{ type: "line", x0: at.rank, x1: at.rank, yref: "paper", y0: 0, y1: 1, line: { width: 2, color: colour("--accent") } }];
      $$(".figure[data-energy]").forEach((box) => {
        data.figures[box.dataset.figure].layout.shapes = shapes;
        if (drawn.has(box)) Plotly.relayout(box, { shapes });
      });
    };
    slider.addEventListener("input", show);
    show();
  }

  // Several fine-tunes: one is shown at a time.
  const tuned = $("#tuned");
  if (tuned) tuned.addEventListener("change", () => {
    $$("[data-tuned]").forEach((part) => { part.hidden = part.dataset.tuned !== tuned.value; });
    drawAll();
  });

  // The table sorts by any column; empty cells stay last.
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
      return (down ? -1 : 1) * (Number(x) - Number(y));
    };
    body.append(...[...body.rows].sort(order));
  }));

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  $("#json").addEventListener("click", () => download(`${data.slug}.json`, "application/json", JSON.stringify(data.document, null, 1)));
  $("#csv").addEventListener("click", () => download(`${data.slug}.csv`, "text/csv", data.csv));
})();
