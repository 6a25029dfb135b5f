"use strict";
// The page works in three steps: still pictures are there at once, the data are unpacked, then plotly.js, which takes the
// place of each picture as it comes into view.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const page = {}; // what the parts of this script share: data, state, draw

(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const coarse = matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const boxes = () => $$(".figure").filter((box) => box.dataset.figure);
  page.drawn = new Set();

  // State: what the reader chose, kept in the address, so that it can be sent and survives a reload.
  const state = page.state = { anchor: "" };
  const [anchor, ...pairs] = location.hash.slice(1).split("&");
  state.anchor = decodeURIComponent(anchor);
  for (const pair of pairs) {
    const [key, value] = pair.split("=").map(decodeURIComponent);
    if (/^(theme|rank|tuned|layers|metric-[\w-]+)$/.test(key) && value) state[key] = value;
  }
  page.keep = (changes) => {
    Object.assign(state, changes);
    const kept = Object.entries(state).filter(([key, value]) => key !== "anchor" && value);
    const told = kept.map(([key, value]) => `${encodeURIComponent(key)}=${encodeURIComponent(value)}`);
    history.replaceState(null, "", `#${[encodeURIComponent(state.anchor), ...told].join("&")}`);
  };
  page.follow = (id) => {
    const target = id && document.getElementById(id);
    if (target) target.scrollIntoView();
    return Boolean(target);
  };
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && !event.ctrlKey && !event.metaKey && page.follow(link.hash.slice(1))) {
      event.preventDefault();
      page.keep({ anchor: link.hash.slice(1) });
    }
  });

  // Theme: the system's, until the button is used or the address says another.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  if (state.theme === "dark" || state.theme === "light") root.dataset.theme = state.theme;
  $("#theme").addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    page.keep({ theme: root.dataset.theme });
    page.redraw();
  });
  dark.addEventListener("change", () => page.redraw());

  // Figures take the colours of the page. On touch screens a drag scrolls; zoom is by buttons everywhere.
  page.themed = (layout) => {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line") };
    const copy = structuredClone(layout);
    for (const key of Object.keys(copy)) if (/^[xy]axis/.test(key)) {
      copy[key] = { ...axis, ...copy[key], title: { font: { size: 13 }, ...copy[key].title }, tickfont: { size: 12 } };
    }
    return {
      ...copy, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      dragmode: coarse.matches ? false : "zoom",
    };
  };
  const settings = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

  function shown(box) {
    const figure = page.data.figures[box.dataset.figure];
    const layout = page.themed(figure.layout);
    layout.height = box.clientHeight || layout.height;
    layout.uirevision = box.dataset.zoom || "0";
    const inner = box.clientWidth - 110;
    let data = figure.data.map((trace) => ({ ...trace }));
    if (data[0].type === "heatmap" && inner / data[0].x.length < 6) Object.assign(data[0], { xgap: 0 });
    if (layout.xaxis.dtick > 1 || data[0].type === "heatmap") fewer(layout, data[0], inner);
    data = page.lighten(data, layout);
    if (box.dataset.energy && page.rank) layout.shapes = [...(layout.shapes || []), level(page.rank)];
    if (box.cursor) layout.shapes = [...(layout.shapes || []), box.cursor];
    return [data, layout];
  }
  const level = (x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { width: 2, color: colour("--accent") } });
  function fewer(layout, trace, inner) {
    // Layer numbers side by side need about 24 pixels each.
    const ends = layout.xaxis.range;
    const count = layout.xaxis.type === "category" ? trace.x.length : ends ? ends[1] - ends[0] : 0;
    const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500];
    const step = steps.find((one) => count / one * 26 <= inner) || 1000;
    if (count && typeof (layout.xaxis.dtick ?? 1) === "number") layout.xaxis.dtick = Math.max(step, count > 24 || layout.xaxis.type === "category" ? step : layout.xaxis.dtick || 1);
    if (layout.xaxis.type === "category") layout.xaxis.tickangle = 0;
  }

  page.draw = async (box) => {
    page.drawn.add(box);
    if (!page.plotly) return;
    const live = $(".live", box);
    const [data, layout] = shown(box);
    await Plotly.react(live, data, layout, settings);
    box.dataset.drawn = "yes";
    box.classList.add("drawn");
    if (!box.dataset.listening) {
      box.dataset.listening = "yes";
      live.on("plotly_click", ({ points: [point] }) => page.clicked(box, point));
    }
  };
  // Those in view now; the others when they come into view.
  page.redraw = () => {
    for (const box of page.drawn) {
      const { top, bottom } = box.getBoundingClientRect();
      if (bottom > -600 && top < innerHeight + 600) page.draw(box);
      else { page.drawn.delete(box); delete box.dataset.drawn; watcher.unobserve(box); watcher.observe(box); }
    }
  };
  window.drawAll = async () => {
    await page.ready;
    return Promise.all(boxes().filter((box) => box.offsetParent && !box.dataset.drawn).map(page.draw));
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !page.drawn.has(entry.target)) page.draw(entry.target);
  }, { rootMargin: "500px" });

  // On paper: the still pictures, and everything that is folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = $$("details:not([open])").filter((one) => !one.closest(".needs-script"));
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));

  // Beside each figure: zoom with a way back, pictures to take along, and its numbers as a table.
  const acts = [
    ["−", "Zoom out", (box) => zoom(box, 1.6)], ["+", "Zoom in", (box) => zoom(box, 0.6)],
    ["Reset", "Show all", (box) => { box.dataset.zoom = String(Number(box.dataset.zoom || 0) + 1); box.cursor = null; page.draw(box); }],
    ["Numbers", "The numbers of this figure as a table", (box) => numbers(box)],
    ["SVG", "Save as SVG", (box) => save(box, "svg")], ["PNG", "Save as PNG", (box) => save(box, "png")],
  ];
  page.tools = (box) => {
    const bar = document.createElement("div");
    bar.className = "acts";
    for (const [text, label, act] of acts) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, title: label });
      button.setAttribute("aria-label", `${label}: ${box.getAttribute("aria-label")}`);
      button.dataset.act = text.toLowerCase();
      button.addEventListener("click", async () => { await page.ready; act(box); });
      bar.append(button);
    }
    box.after(bar);
  };
  function zoom(box, by) {
    const live = $(".live", box);
    if (!box.dataset.drawn) return;
    const changes = {};
    for (const name of ["xaxis", "yaxis"]) {
      const axis = live._fullLayout[name];
      const [low, high] = axis.range.map(Number);
      const [middle, half] = [(low + high) / 2, (high - low) / 2 * by];
      if (axis.type !== "category" || name === "xaxis") changes[`${name}.range`] = [middle - half, middle + half];
    }
    Plotly.relayout(live, changes);
  }
  async function save(box, format) {
    await page.draw(box);
    const live = $(".live", box);
    const { width, height } = live.getBoundingClientRect();
    const [data, layout] = shown(box);
    const figure = { data, layout: { ...layout, paper_bgcolor: colour("--card"), title: { text: box.getAttribute("aria-label"), x: 0.02, font: { size: 15 } }, margin: { ...layout.margin, t: (layout.margin.t || 0) + 34 } } };
    const url = await Plotly.toImage(figure, { format, width: Math.max(640, width), height: height + 34, scale: format === "png" ? 2 : 1 });
    page.download(`${page.data.slug}-${box.dataset.figure}.${format}`, url);
  }
  function numbers(box) {
    const there = box.parentElement.querySelector(".numbers");
    if (there) { there.remove(); return; }
    const holder = document.createElement("div");
    Object.assign(holder, { className: "numbers", tabIndex: 0 });
    holder.append(asTable(page.data.figures[box.dataset.figure]));
    box.parentElement.append(holder);
  }
  function asTable({ data, layout }) {
    const table = document.createElement("table");
    const traces = data.filter((trace) => trace.y?.some((value) => value !== null) && trace.fill === undefined);
    const heat = traces[0]?.type === "heatmap" ? traces[0] : null;
    const columns = heat ? heat.x : [...new Set(traces.flatMap((trace) => trace.x))];
    if (!heat && columns.every((x) => typeof x === "number")) columns.sort((a, b) => a - b);
    const row = (cells) => {
      const line = table.insertRow();
      cells.forEach((cell, at) => {
        const made = line.appendChild(document.createElement(at ? "td" : "th"));
        if (at) made.textContent = cell ?? "–"; else { made.scope = "row"; made.innerHTML = cell; }
      });
    };
    row([layout.xaxis.title.text, ...columns]);
    if (heat) heat.y.forEach((name, at) => row([name, ...(heat.text ? heat.text[at] : heat.z[at])]));
    else for (const trace of traces) {
      const of = new Map(trace.x.map((x, at) => [x, trace.y[at]]));
      row([trace.name || layout.yaxis.title.text, ...columns.map((x) => of.get(x))]);
    }
    return table;
  }

  page.download = (name, url) => {
    const link = Object.assign(document.createElement("a"), { href: url, download: name });
    link.click();
    if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
  const blob = (type, text) => URL.createObjectURL(new Blob([text], { type }));
  $("#json").addEventListener("click", async () => { await page.unpacked; page.download(`${page.data.slug}.json`, blob("application/json", JSON.stringify(page.data.document, null, 1))); });
  $("#csv").addEventListener("click", async () => { await page.unpacked; page.download(`${page.data.slug}.csv`, blob("text/csv", page.data.csv)); });
  page.copy = async (text, button) => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  $$("[data-copy]").forEach((button) => button.addEventListener("click", () => page.copy(button.dataset.copy, button)));

  function decode(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const signs = atob(text);
    const bytes = new Uint8Array(signs.length);
    for (let at = 0; at < signs.length; at += 1) bytes[at] = signs.charCodeAt(at);
    return bytes;
  }
  async function unpack(id) {
    if (!$(id).textContent) return "";
    const bytes = decode($(id).textContent);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  const painted = new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); setTimeout(done, 300); });
  page.start = () => {
    if (typeof DecompressionStream === "undefined") return; // the still pictures stay
    const plotly = painted.then(() => unpack("#plotly"));
    page.unpacked = painted.then(() => unpack("#data")).then((text) => { page.data = JSON.parse(text); page.begin(); });
    page.ready = page.unpacked.then(() => plotly).then((text) => {
      if (!text) return; // a page without figures
      document.head.append(Object.assign(document.createElement("script"), { textContent: text }));
      page.plotly = true;
      page.drawn.clear();
      boxes().forEach((box) => watcher.observe(box));
    });
  };
})();
