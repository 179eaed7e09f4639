"""Style and script of the page, inlined into it."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --text: #1b2430; --muted: #5c6775; --line: #dfe3e9;
  --grid: #e8ebf0; --accent: #2458c5; --train: #3b74d9; --eval: #d9480f; --bad: #d00030;
  --layer-light: 46%;
  --run-0: #2563c9; --run-1: #d9480f; --run-2: #12875a; --run-3: #9333b8;
  --run-4: #a87400; --run-5: #0b88a6; --run-6: #c21f5b; --run-7: #5b6472; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1217; --card: #161c24; --text: #e4eaf1; --muted: #97a3b2; --line: #2a323d;
  --grid: #242c36; --accent: #7fb0ff; --train: #6ea3f7; --eval: #ff9257; --bad: #ff6b81;
  --layer-light: 68%;
  --run-0: #6ea3f7; --run-1: #ff9257; --run-2: #4cc38f; --run-3: #cd8bea;
  --run-4: #e0b040; --run-5: #4ec3e0; --run-6: #f47ba4; --run-7: #a9b4c2; }
  .heat { filter: invert(.92) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 14px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
header, main { max-width: 1480px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 20px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
header p { margin: 2px 0 10px; color: var(--muted); }
nav { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 4px 18px;
  padding: 8px max(24px, calc(50vw - 716px)); background: var(--page);
  border-bottom: 1px solid var(--line); }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav .chips { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-left: auto; }
section { scroll-margin-top: 64px; }
h2 { font-size: 18px; margin: 26px 0 8px; }
h3 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
section > h3 { margin: 18px 0 8px; }
section > p { color: var(--muted); margin: 6px 0 10px; max-width: 130ch; }
code, dd { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12px; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tiles { row-gap: 0; }
.tiles div { grid-row: span 3; display: grid; grid-template-rows: subgrid; align-items: end;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 9px 12px; margin-bottom: 10px; }
.tiles small { align-self: start; }
.tiles span, .tiles small { color: var(--muted); font-size: 12px; }
.tiles strong { font-size: 21px; font-weight: 600; line-height: 1.3; white-space: nowrap; }

/* The figures of a row share the heights of title, legend, plot and caption. */
.grid { display: grid; column-gap: 14px; align-items: stretch; margin-bottom: -8px; }
.charts { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.large { grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); }
.of-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.of-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.of-4 { grid-template-columns: repeat(4, minmax(0, 1fr)); }
@media (max-width: 1100px) { .of-4 { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 700px) { .grid { grid-template-columns: minmax(0, 1fr); } }
figure { grid-row: span 4; display: grid; grid-template-rows: subgrid; margin: 0 0 14px;
  min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 18px 10px 12px; }
/* Outside a grid there are no rows to share, and what scrolls would shrink to nothing. */
section > figure, details > figure { display: block; }
figure > * { min-width: 0; }
figure > h3 { grid-row: 1; }
figure > .legend, figure > .chip { grid-row: 2; align-self: start; }
figure > .plot, figure > p { grid-row: 3; }
figcaption { grid-row: 4; color: var(--muted); font-size: 12px; margin-top: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; color: var(--muted);
  margin-bottom: 8px; }
.key { display: inline-flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.key i { flex: none; width: 18px; height: 0; border-top: 2.5px solid var(--c); }
.key i.thin { border-top-width: 1.5px; }
.key i.dashed { border-top: 1.5px dashed var(--c); }
.key i.dots { width: 8px; height: 8px; border: 0; border-radius: 50%; background: var(--c); }
.key i.ramp { width: 44px; height: 8px; border: 0; border-radius: 2px;
  background: linear-gradient(90deg, hsl(205 62% var(--layer-light)),
    hsl(250 62% var(--layer-light)), hsl(295 62% var(--layer-light)),
    hsl(340 62% var(--layer-light)), hsl(25 62% var(--layer-light))); }
.chip { display: inline-flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.chip i { flex: none; width: 10px; height: 10px; border-radius: 3px; background: var(--c); }
.run-0 { --c: var(--run-0); } .run-1 { --c: var(--run-1); } .run-2 { --c: var(--run-2); }
.run-3 { --c: var(--run-3); } .run-4 { --c: var(--run-4); } .run-5 { --c: var(--run-5); }
.run-6 { --c: var(--run-6); } .run-7 { --c: var(--run-7); }
figure.run { border-top: 3px solid var(--c); }
figure .chip { font-size: 12px; color: var(--muted); margin-bottom: 4px; }

.plot { display: grid; grid-template-columns: auto calc(var(--labels) + 10px) minmax(0, 1fr);
  grid-template-rows: var(--height) 18px auto; font-size: 11px; color: var(--muted);
  font-variant-numeric: tabular-nums; }
.y-title { grid-column: 1; grid-row: 1; writing-mode: vertical-rl; transform: rotate(180deg);
  text-align: center; }
.y-axis { grid-column: 2; grid-row: 1; position: relative; }
.y-axis span { position: absolute; right: 6px; transform: translateY(-50%); white-space: nowrap; }
.area { grid-column: 3; grid-row: 1; position: relative; min-width: 0; }
.area svg, .area img { display: block; width: 100%; height: 100%; }
.box { position: absolute; top: 0; bottom: 0; }
.x-axis { grid-column: 3; grid-row: 2; position: relative; }
.x-axis span { position: absolute; top: 3px; transform: translateX(-50%); white-space: nowrap; }
.x-title { grid-column: 3; grid-row: 3; text-align: center; }
.lines { overflow: hidden; border-bottom: 1px solid var(--line);
  border-left: 1px solid var(--line); }
.lines path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.lines .grid { stroke: var(--grid); stroke-width: 1; }
.lines .reference { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 5 4; }
.line { stroke: var(--c); }
.line.train { stroke-width: 1.3; opacity: .8; }
.line.eval, .line.total { stroke-width: 2; }
.line.layer { stroke-width: 1.2; opacity: .75; }
.dots { stroke: var(--c); stroke-width: 6; stroke-linecap: round; }
.bad { stroke: var(--bad); stroke-width: 7; stroke-linecap: round; }
.cross { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--muted);
  display: none; pointer-events: none; }
.heat { image-rendering: pixelated; }
.cells { position: absolute; inset: 0; display: grid; pointer-events: none; color: #1b2430;
  grid-template-columns: repeat(var(--n), 1fr); grid-auto-rows: 1fr; }
.cells b { display: flex; align-items: center; justify-content: center; font-weight: 400; }
.cells .strong { color: #ffffff; }
@media (prefers-color-scheme: dark) {
  .cells { color: #e4eaf1; } .cells .strong { color: #0e1217; } }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 14px; font-size: 12px;
  color: var(--muted); margin: 0 0 12px; }
.bar-box { width: 260px; padding: 0 12px; }
.bar { display: block; width: 100%; height: 12px; }
.bar-labels { position: relative; height: 18px; }
.bar-labels span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.dot { width: 12px; height: 12px; vertical-align: -1px; }

.scroll { overflow-x: auto; width: fit-content; max-width: 100%; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; margin-bottom: 8px; }
.scroll:has(.summary) { width: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 5px 12px; vertical-align: top; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 400; }
table .chip { min-width: 11ch; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; }
table.numbers { width: auto; min-width: min(100%, 480px); }
table.summary { width: 100%; }
.differences td { overflow-wrap: anywhere; min-width: 10ch; }
.numbers th, .numbers td { padding: 5px 9px; }
.numbers thead th { line-height: 1.25; }
@media (max-width: 900px) { .numbers th, .numbers td { padding: 5px 7px; font-size: 12px; } }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.constants { display: flex; flex-wrap: wrap; gap: 0 16px; }
.constants b { font-weight: 500; color: var(--text); }
details { margin-bottom: 8px; }
summary { cursor: pointer; color: var(--accent); padding: 3px 0; }
.facts { columns: 380px; column-gap: 32px; margin: 4px 0 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; }
.facts div { display: flex; gap: 12px; justify-content: space-between; break-inside: avoid;
  padding: 1px 0; }
.facts dt { color: var(--muted); font-size: 12px; }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
#tip { position: fixed; display: none; z-index: 9; pointer-events: none; max-width: 340px;
  background: var(--card); color: var(--text); border: 1px solid var(--line); border-radius: 6px;
  box-shadow: 0 3px 14px rgb(0 0 0 / 25%); padding: 6px 10px; font-size: 12px; }
#tip div { display: flex; align-items: center; gap: 7px; font-variant-numeric: tabular-nums; }
#tip i { width: 9px; height: 9px; border-radius: 2px; background: var(--c); flex: none; }
#tip span { margin-left: auto; padding-left: 14px; }
footer { height: 40px; }
"""

# Values under the pointer: of curves from their paths, of heat maps from their pixels. The names in
# capitals are constants of line_chart and heat_map; the page declares them.
SCRIPT = """

const tip = document.getElementById("tip");

function place(event) {
  tip.style.display = "block";
  const box = tip.getBoundingClientRect(), gap = 14;
  const right = event.clientX + gap + box.width < innerWidth;
  tip.style.left = Math.max(4, right ? event.clientX + gap
    : event.clientX - gap - box.width) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + gap, innerHeight - box.height - 4)) + "px";
}
function say(parent, kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return parent.appendChild(element);
}
function formatted(value, percent) {
  if (percent) return formatted(100 * value) + " %";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  return size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
}

function points(path) {
  if (path.points) return path.points;
  let x = 0, y = 0;
  path.points = [];
  for (const [, kind, a, b] of path.getAttribute("d").matchAll(/([Ml])(-?\\d+) (-?\\d+)/g)) {
    x = kind === "M" ? +a : x + +a;
    y = kind === "M" ? +b : y + +b;
    path.points.push([x, y]);
  }
  return path.points;
}
for (const svg of document.querySelectorAll("svg.lines")) {
  const cross = svg.nextElementSibling, data = svg.dataset;
  const [x0, x1] = data.x.split(",").map(Number), [y0, y1] = data.y.split(",").map(Number);
  const grid = +data.grid;
  const stepOf = x => Math.round((x0 + x / UNITS * (x1 - x0)) / grid) * grid;
  const valueOf = y => +data.log ? y0 * (y1 / y0) ** (1 - y / UNITS)
    : y0 + (1 - y / UNITS) * (y1 - y0);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * UNITS;
    const found = [];
    for (const path of svg.querySelectorAll("[data-label]")) {
      let best = null;
      for (const point of points(path))
        if (!best || Math.abs(point[0] - at) < Math.abs(best[0] - at)) best = point;
      if (best) found.push([path, best]);
    }
    if (!found.length) return;
    const near = found.reduce((a, b) => Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a);
    cross.style.display = "block";
    cross.style.left = near[1][0] / UNITS * 100 + "%";
    const step = stepOf(near[1][0]);
    tip.replaceChildren();
    say(tip, "b", data.unit + " " + step.toLocaleString("en"));
    for (const [path, point] of found) {
      const row = say(tip, "div", "");
      say(row, "i", "").style.background = getComputedStyle(path).stroke;
      const own = stepOf(point[0]);
      const where = own === step ? ""
        : " (" + data.unit + " " + own.toLocaleString("en") + ")";
      row.append(path.dataset.label + where);
      say(row, "span", formatted(valueOf(point[1]), +data.percent));
    }
    place(event);
  });
  svg.addEventListener("pointerleave", () => {
    cross.style.display = tip.style.display = "none";
  });
}

async function pixels(img) {
  const bytes = Uint8Array.from(atob(img.src.split(",")[1]), c => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) !== "IDAT") continue;
    const packed = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
}
for (const img of document.querySelectorAll("img.heat[data-row]")) {
  const data = Object.fromEntries(
    Object.entries(img.dataset).map(([name, value]) => [name, JSON.parse(value)]));
  img.addEventListener("pointermove", async event => {
    const box = img.getBoundingClientRect(), columns = img.naturalWidth, rows = img.naturalHeight;
    const spot = (start, size, count) =>
      Math.min(Math.max(Math.floor((start / size) * count), 0), count - 1);
    const column = spot(event.clientX - box.left, box.width, columns);
    const row = spot(event.clientY - box.top, box.height, rows);
    const index = (await (img.pixels ??= pixels(img)))[row * (columns + 1) + 1 + column];
    const ratio = index === 0 ? 0 : 2 ** (LOWEST + (index - 1) / PER_OCTAVE);
    const sign = index === 1 ? "≤ " : index === 1 + (HIGHEST - LOWEST) * PER_OCTAVE ? "≥ " : "";
    tip.replaceChildren();
    if (data.row === "expert") {
      const step = Math.round(data.first + column * data.width);
      say(tip, "b", `${data.title}, expert ${row}, step ${step.toLocaleString("en")}`);
    } else if (data.row === "named") {
      say(tip, "b", `${data.title}: ${data.rows[row]}, expert ${column}`);
    } else {
      say(tip, "b", `${data.title}: layer ${data.layers[row]}, expert ${column}`);
    }
    const share = data.experts ? ` (${(100 * ratio / data.experts).toPrecision(2)} % of all)` : "";
    say(tip, "div", index === NOTHING ? "no data"
      : `${sign}${ratio ? ratio.toPrecision(2) : 0} ${data.what ?? "times the mean"}${share}`);
    place(event);
  });
  img.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
"""
