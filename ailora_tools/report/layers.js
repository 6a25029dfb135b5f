"use strict";
// Maps, the layer that is lit in all figures, the page of one layer, the rank slider, several fine-tunes.
(() => {
  const { state } = page;
  const cividis = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  const unit = () => page.data.unit || "layer";

  // Lit layers: "17" or "10-20".
  const range = () => {
    const found = /^(\d+)(?:\s*[-–]\s*(\d+))?$/.exec((state.layers || "").trim());
    return found ? [Number(found[1]), Number(found[2] ?? found[1])].sort((a, b) => a - b) : null;
  };
  page.lighten = (data, layout) => {
    const lit = range();
    if (!lit) return data;
    const inside = (trace) => trace.meta.layer >= lit[0] && trace.meta.layer <= lit[1];
    const band = { type: "rect", line: { width: 1.5, color: "#e03131" }, fillcolor: "rgba(224,49,49,.10)", layer: "below" };
    const along = layout.meta?.layers;
    if (along) {
      const names = data[0].type === "heatmap" ? data[0][along].map(Number) : null;
      const ends = names ? names.map((name, at) => [name, at]).filter(([name]) => name >= lit[0] && name <= lit[1]).map(([, at]) => at) : lit;
      const across = along === "x" ? "y" : "x";
      if (ends.length) layout.shapes = [...(layout.shapes || []), {
        ...band, layer: names ? "above" : "below", ...(names ? { fillcolor: "rgba(0,0,0,0)" } : {}), [`${along}0`]: ends[0] - 0.5, [`${along}1`]: ends.at(-1) + 0.5,
        [`${across}ref`]: "paper", [`${across}0`]: 0, [`${across}1`]: 1,
      }];
    }
    const of = data.filter((trace) => trace.meta?.layer !== undefined);
    if (!of.length) return data;
    const changed = data.map((trace) => trace.meta?.layer === undefined ? trace : inside(trace)
      ? { ...trace, line: { ...trace.line, width: 2.6 } } : { ...trace, opacity: 0.12 });
    const front = (trace) => trace.meta?.layer !== undefined && inside(trace) ? 1 : 0;
    return changed.sort((a, b) => front(a) - front(b));
  };
  function light(text) {
    page.keep({ layers: text.trim() });
    const lit = range();
    $$(".figure").forEach((box) => {
      box.classList.toggle("lit", Boolean(lit) && Boolean($("path[data-layer]", box)));
      $$("path[data-layer]", box).forEach((path) => path.classList.toggle("on", Boolean(lit) && path.dataset.layer >= lit[0] && path.dataset.layer <= lit[1]));
    });
    const input = $("#layers");
    if (input && input.value !== text) input.value = text;
    page.redraw();
  }

  // The picker stands in the navigation: a layer or a range, and a button for the page of one layer.
  function picker() {
    const layers = [...new Set(page.data.rows.map((row) => row.layer))].sort((a, b) => a - b);
    if (layers.length < 2) return;
    const holder = document.createElement("div");
    holder.className = "picker";
    holder.innerHTML = `<label for="layers">Light ${unit()}</label><input type="search" id="layers" inputmode="text" autocomplete="off"
      placeholder="${layers[0]}-${layers.at(-1)}" aria-label="Light one ${unit()}, or a range, in all figures">
      <button type="button" id="before" aria-label="One before">‹</button><button type="button" id="after" aria-label="One after">›</button>
      <button type="button" id="open-layer">Open</button>`;
    $("nav .row").append(holder);
    const step = (by) => {
      const lit = range();
      const at = lit ? layers.indexOf(lit[0]) + by : by > 0 ? 0 : layers.length - 1;
      light(String(layers[(at + layers.length) % layers.length]));
    };
    $("#layers").addEventListener("input", (event) => { if (event.target.value.trim() === "" || /^\d+(\s*[-–]\s*\d+)?$/.test(event.target.value.trim())) light(event.target.value); });
    $("#before").addEventListener("click", () => step(-1));
    $("#after").addEventListener("click", () => step(1));
    $("#open-layer").addEventListener("click", () => open((range() || layers)[0]));
  }

  // Maps: a menu chooses the metric; arrow keys move over the cells, Enter or a click opens the layer.
  function mapMenu(select) {
    const name = select.dataset.map;
    const key = `metric-${name}`;
    const box = $(`.figure[data-map="${name}"]`);
    if ([...select.options].some((option) => option.value === state[key])) select.value = state[key];
    const show = () => {
      const { figure, maps } = page.data.overviews[name];
      const map = maps[select.value];
      const trace = figure.data[0];
      Object.assign(trace, { z: map.z, text: map.text, zmin: map.range[0], zmax: map.range[1] });
      trace.hovertemplate = `%{y}, ${unit()} %{x}<br>%{text}<br>%{customdata}<extra></extra>`;
      Object.assign(trace.colorbar, { tickvals: map.ticks.values, ticktext: map.ticks.texts });
      page.data.figures[box.dataset.figure] = figure;
      $(`[data-meaning="${name}"]`).innerHTML = map.meaning;
      $(`[data-name="${name}"]`).textContent = map.label;
      box.setAttribute("aria-label", `Map of layers and matrices: ${map.label}`);
    };
    const changed = () => { show(); page.keep({ [key]: select.value }); repaint(box, page.data.figures[box.dataset.figure].data[0]); if (page.drawn.has(box)) page.draw(box); };
    select.addEventListener("change", changed);
    show();
    if (state[key]) repaint(box, page.data.figures[box.dataset.figure].data[0]);
    box.addEventListener("keydown", (event) => cursor(event, box));
  }
  function shade(share) {
    const at = Math.min(0.9999, Math.max(0, share)) * (cividis.length - 1);
    const parts = [cividis[Math.floor(at)], cividis[Math.floor(at) + 1]].map((text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)));
    return `rgb(${parts[0].map((value, i) => Math.round(value + (parts[1][i] - value) * (at % 1))).join()})`;
  }
  // The still picture follows the menu too: it is what gets printed.
  function repaint(box, trace) {
    const picture = $(".plot>svg", box);
    const [wide, tall, span] = [1000 / trace.x.length, 1000 / trace.y.length, trace.zmax - trace.zmin || 1];
    const cells = trace.z.flatMap((line, row) => line.map((value, at) => value === null ? ""
      : `<path d="M${at * wide} ${row * tall}h${wide}v${tall}h${-wide}z" fill="${shade((value - trace.zmin) / span)}"/>`));
    picture.innerHTML = cells.join("");
    $$(".colours .y", box).forEach((tick) => tick.remove());
    trace.colorbar.tickvals.forEach((value, at) => {
      const tick = Object.assign(document.createElement("span"), { className: "y", textContent: trace.colorbar.ticktext[at] });
      tick.style.top = `${100 - 100 * (value - trace.zmin) / span}%`;
      $(".colours", box).append(tick);
    });
  }
  const said = Object.assign(document.createElement("output"), { className: "sr" });
  document.body.append(said);
  function cursor(event, box) {
    const trace = page.data.figures[box.dataset.figure].data[0];
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.key === "Enter" && box.at) { event.preventDefault(); const [, role] = trace.meta[box.at[1]]; open(Number(trace.x[box.at[0]]), role, trace.meta[box.at[1]][0]); }
    if (!move) return;
    event.preventDefault();
    const clamp = (value, most) => Math.min(most - 1, Math.max(0, value));
    box.at = box.at ? [clamp(box.at[0] + move[0], trace.x.length), clamp(box.at[1] + move[1], trace.y.length)] : [0, 0];
    const [x, y] = box.at;
    box.cursor = { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { width: 3, color: "#e03131" } };
    said.textContent = `${trace.meta[y].join(" ")}, ${unit()} ${trace.x[x]}: ${trace.text[y][x] || "none"}`;
    page.draw(box);
  }
  page.clicked = (box, point) => {
    if (!page.data.rows) return;
    if (box.dataset.map) { const [stack, role] = point.data.meta[point.pointIndex[0]]; open(Number(point.x), role, stack); return; }
    const along = page.data.figures[box.dataset.figure].layout.meta?.layers;
    const layer = point.data.meta?.layer ?? (along === "x" ? point.x : along === "y" ? point.y : undefined);
    if (layer !== undefined) light(String(layer));
  };

  // The page of one layer.
  let panel;
  const same = (row, layer, stack) => row.layer === layer && row.stack === stack;
  function open(layer, role = "", stack) {
    const { rows = [] } = page.data;
    const stacks = [...new Set(rows.filter((row) => row.layer === layer).map((row) => row.stack))];
    if (!stacks.length) return;
    const own = stacks.includes(stack) ? stack : stacks[0];
    light(String(layer));
    panel ??= made();
    const of = rows.filter((row) => same(row, layer, own));
    $("h2", panel).textContent = `${unit()[0].toUpperCase()}${unit().slice(1)} ${layer}${own ? `, ${own}` : ""}`;
    const menu = $("select", panel);
    menu.hidden = stacks.length < 2;
    menu.replaceChildren(...stacks.map((name) => new Option(name, name, false, name === own)));
    panel.at = { layer, role, stack: own };
    $(".facts", panel).innerHTML = "";
    for (const row of of) {
      const line = document.createElement("div");
      line.innerHTML = `<dt>${row.name}, ${row.shape.join(" × ")}</dt><dd></dd>`;
      $("dd", line).textContent = row.tensor;
      $(".facts", panel).append(line);
    }
    $(".metrics", panel).replaceChildren(metrics(layer, own, of));
    const several = own && stacks.length > 1;
    page.keep({ anchor: `layer-${layer}${role || several ? `-${role || "all"}` : ""}${several ? `-${own}` : ""}` });
    if (!panel.open) panel.showModal();
    figures(layer, own, of);
  }
  function made() {
    const box = document.createElement("dialog");
    box.id = "layer-page";
    box.innerHTML = `<header><h2 tabindex="-1" autofocus></h2><select aria-label="Stack"></select><button type="button" data-step="-1">‹ before</button>
      <button type="button" data-step="1">after ›</button><button type="button" data-row>In the table</button><button type="button" data-close>Close</button></header>
      <div class="inside"><dl class="facts"></dl><div class="grid own"></div><div class="metrics scroll" tabindex="0"></div></div>`;
    document.body.append(box);
    const layers = [...new Set(page.data.rows.map((row) => row.layer))].sort((a, b) => a - b);
    const step = (by) => open(layers[(layers.indexOf(box.at.layer) + by + layers.length) % layers.length], box.at.role, box.at.stack);
    $$("[data-step]", box).forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
    $("select", box).addEventListener("change", (event) => open(box.at.layer, box.at.role, event.target.value));
    $("[data-close]", box).addEventListener("click", () => box.close());
    $("[data-row]", box).addEventListener("click", () => { const { at } = box; box.close(); page.toRow(at); });
    box.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" && event.target.tagName !== "SELECT") step(-1);
      if (event.key === "ArrowRight" && event.target.tagName !== "SELECT") step(1);
    });
    box.addEventListener("close", () => page.keep({ anchor: "" }));
    return box;
  }
  function metrics(layer, stack, of) {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    head.innerHTML = `<th scope="col">metric</th>${of.map((row) => `<th scope="col">${row.name}</th><th scope="col" title="among the layers, from the largest">place</th>`).join("")}`;
    const body = table.createTBody();
    const names = Object.keys(page.data.overviews).filter((name) => name === `change-${state.tuned || 0}` || name === "weights");
    const done = new Set();
    for (const name of names) {
      const { figure, maps } = page.data.overviews[name];
      const [trace] = figure.data;
      const at = trace.x.indexOf(String(layer));
      for (const [key, map] of Object.entries(maps)) {
        if (done.has(key)) continue;
        done.add(key);
        const line = body.insertRow();
        const title = line.appendChild(document.createElement("th"));
        Object.assign(title, { scope: "row", textContent: map.label.replace(" (log scale)", "") });
        for (const row of of) {
          const own = trace.meta.findIndex(([its, role]) => its === stack && role === row.role);
          const known = own < 0 ? [] : map.z[own].filter((value) => value !== null);
          const value = own < 0 ? null : map.z[own][at];
          line.insertCell().textContent = own < 0 ? "–" : map.text[own][at] || "–";
          line.insertCell().textContent = value === null || known.length < 2 ? "" : `${1 + known.filter((other) => other > value).length} of ${known.length}`;
        }
      }
    }
    const line = body.insertRow();
    line.innerHTML = `<th scope="row">elements, 5 / 25 / 50 / 75 / 95 %</th>`;
    for (const row of of) { line.insertCell().textContent = row.elements; line.insertCell(); }
    return table;
  }
  async function figures(layer, stack, of) {
    const holder = $(".own", panel);
    await page.ready;
    holder.replaceChildren();
    const wanted = [];
    const groups = [["spectra-", "Singular values, with the noise edge of each"], [`delta-`, "Singular values of the change over their noise edge"]];
    for (const [start, title] of groups) {
      const bases = Object.entries(page.data.figures).filter(([name]) => name.startsWith(start));
      const traces = bases.flatMap(([name, figure]) => start === "delta-" && !new RegExp(`-${state.tuned || 0}(-\\d+)?$`).test(name) ? [] : figure.data)
        .filter((trace) => trace.meta && same(trace.meta, layer, stack))
        .map((trace) => { const row = of.find((one) => one.role === trace.meta.role); return { ...trace, name: row.name, showlegend: true, line: { width: 2.2, color: row.colour } }; });
      if (!traces.length) continue;
      const layout = page.themed(bases[0][1].layout);
      Object.assign(layout, { showlegend: true, height: 340, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } });
      layout.yaxis = { ...layout.yaxis, title: { text: start === "delta-" ? "singular value of ΔW / edge" : "singular value", font: { size: 13 } }, range: undefined, autorange: true };
      if (start === "spectra-") layout.shapes = of.map((row) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: row.edge, y1: row.edge, line: { dash: "dash", width: 1.5, color: row.colour } }));
      wanted.push([title, traces, layout]);
    }
    const heads = Object.entries(page.data.figures).filter(([name]) => name.startsWith("heads-") && name.includes("effective_rank"));
    const bars = heads.flatMap(([name, figure]) => {
      const row = of.find((one) => name.startsWith(`heads-${one.role}-`));
      const stacks = [...new Set(page.data.rows.map((one) => one.stack))];
      const mine = stacks.length < 2 || page.data.figures[`spectra-${name.split("-")[1]}-${name.split("-").at(-1)}`]?.data[0].meta.stack === stack;
      const at = figure.data[0].y.indexOf(String(layer));
      return row && mine && at >= 0 ? [{ type: "bar", x: figure.data[0].x, y: figure.data[0].z[at], name: row.name, marker: { color: row.colour } }] : [];
    });
    if (bars.length) {
      const layout = page.themed({ height: 340, margin: { l: 60, r: 16, t: 40, b: 48 }, xaxis: { title: { text: "head" } }, yaxis: { title: { text: "effective rank" } }, barmode: "group", legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, showlegend: true });
      wanted.push(["Effective rank of its heads", bars, layout]);
    }
    // All cards stand before any is drawn: each takes its width from the others beside it.
    holder.append(...wanted.map(([title]) => card(title)));
    wanted.forEach(([, data, layout], at) => Plotly.newPlot($$(".live-own", holder)[at], data, layout, { responsive: true, displayModeBar: false, displaylogo: false }));
  }
  function card(title) {
    const made = document.createElement("figure");
    made.className = "card";
    made.innerHTML = `<figcaption><h3></h3></figcaption><div class="live-own" style="height:340px"></div>`;
    $("h3", made).textContent = title;
    return made;
  }
  page.open = open;

  // The rank slider: a line in the figures over ranks, and what the adapters would hold.
  function ranks() {
    const slider = $("#rank");
    if (!slider || !page.data.ranks?.length) return;
    const wanted = page.data.ranks.findIndex((one) => String(one.rank) === state.rank);
    if (wanted >= 0) slider.value = wanted;
    const show = () => {
      const at = page.data.ranks[Number(slider.value)];
      page.rank = at.rank;
      $("#rank-value").textContent = at.rank;
      slider.setAttribute("aria-valuetext", `rank ${at.rank}`);
      for (const [key, text] of Object.entries(at.texts)) $(`[data-held="${key}"]`).textContent = text;
      $$(".figure[data-energy]").forEach((box) => { if (page.drawn.has(box)) page.draw(box); });
    };
    slider.addEventListener("input", () => { show(); page.keep({ rank: String(page.data.ranks[Number(slider.value)].rank) }); });
    show();
  }

  function fineTunes() {
    const tuned = $("#tuned");
    if (!tuned) return;
    const show = () => {
      $$("[data-tuned]").forEach((part) => { part.hidden = part.dataset.tuned !== tuned.value; });
      page.redraw();
    };
    if (state.tuned && [...tuned.options].some((option) => option.value === state.tuned)) { tuned.value = state.tuned; show(); }
    tuned.addEventListener("change", () => { show(); page.keep({ tuned: tuned.value }); });
  }

  page.begin = () => {
    $$(".figure").forEach(page.tools);
    if (page.data.rows) picker();
    $$("select[data-map]").forEach(mapMenu);
    ranks();
    fineTunes();
    page.tables?.();
    if (state.layers) light(state.layers);
    const found = /^layer-(\d+)(?:-(\w+))?(?:-(.+))?$/.exec(state.anchor);
    if (found && page.data.rows) open(Number(found[1]), found[2] === "all" ? "" : found[2], found[3]);
    else page.follow(state.anchor);
  };
})();
