// The server's events come from `/events`; requests go to `/ask`, `/regions` and `/run`. Nothing else is loaded.

const COLOURS = 8;  // and as many shapes, in other pairs each time the colours begin anew: 64 classes differ
let about = { features: [], classes: [], axes: [0, 0], target: "" };
const SPARK = 700;  // ms that an arrival is lit
const ROWS = 8;
const KEPT = 1000;  // marks, and round trips
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

// The token is now a cookie: remove it from the address, which may be on a projector.
if (location.search) history.replaceState(null, "", location.pathname);

// --- the plane: three layers, so that a frame draws only what is new ------------------------------------

const layers = Object.fromEntries(["surface", "ink", "sparks"].map((id) => [id, $(id).getContext("2d")]));
let size = { width: 0, height: 0 };  // of the plane, CSS pixels
const margin = { left: 64, right: 10, top: 8, bottom: 42 };
let colours = {};
let grid = null;  // the regions, as the server sent them
let marks = new Map();  // by row and label: a repeated one is the same mark

let axes = [0, 0];  // the features that the plane shows
const colour = (label) => { const k = about.classes.indexOf(label); return k < 0 ? colours.text : colours[`c${k % COLOURS}`]; };

const part = (k, v) => { const { low, high } = about.features[k]; return Math.min(Math.max((v - low) / (high - low || 1), 0), 1); };
const spot = (values) => [margin.left + part(axes[0], values[axes[0]]) * size.width,
  margin.top + (1 - part(axes[1], values[axes[1]])) * size.height];

function layOut() {
  const { width, height } = $("stage").getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  for (const context of Object.values(layers)) {
    context.canvas.width = Math.round(width * ratio);
    context.canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  size = { width: width - margin.left - margin.right, height: height - margin.top - margin.bottom };
  const style = getComputedStyle(document.documentElement);
  colours = Object.fromEntries(
    ["card", "text", "muted", "line", ...Array.from({ length: COLOURS }, (_, k) => `c${k}`)].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  redraw();
}

function redraw() {
  drawSurface();
  layers.ink.clearRect(0, 0, size.width + 100, size.height + 100);
  for (const mark of marks.values()) drawMark(mark);
  wake();
}

function drawSurface() {
  const context = layers.surface;
  context.clearRect(0, 0, size.width + 100, size.height + 100);
  if (!about.features.length) return;
  if (grid) context.drawImage(tinted(grid), margin.left, margin.top, size.width, size.height);
  context.strokeStyle = colours.line;
  context.strokeRect(margin.left + 0.5, margin.top + 0.5, size.width - 1, size.height - 1);
  context.fillStyle = colours.muted;
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "top";
  const [across, up] = axes.map((k) => about.features[k]);
  for (const v of ticksOf(across)) {
    context.fillText(number(v), margin.left + part(axes[0], v) * size.width, margin.top + size.height + 6);
  }
  context.fillText(fitting(context, named(across), size.width), margin.left + size.width / 2, margin.top + size.height + 24);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const v of ticksOf(up)) context.fillText(number(v), margin.left - 8, margin.top + (1 - part(axes[1], v)) * size.height);
  context.save();
  context.translate(8, margin.top + size.height / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(fitting(context, named(up), size.height), 0, 0);
  context.restore();
}

// Some six round numbers.
function ticksOf({ low, high }) {
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = power * ([1, 2, 5].find((n) => n * power >= rough) ?? 10), found = [];
  for (let k = Math.ceil(low / step); k * step <= high && found.length < 20; k++) found.push(k * step);
  return found;
}

// Each pixel in the colour of the likeliest class, the paler the less sure; between the grid's points the
// probabilities are interpolated.
function tinted({ columns, rows, thousandths, classes }) {
  const [width, height] = [Math.max(1, Math.round(size.width)), Math.max(1, Math.round(size.height))];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const rgb = classes.map((k) => hex(colours[`c${k % COLOURS}`]));
  const image = context.createImageData(width, height);
  for (let j = 0; j < height; j++) {
    const v = (1 - (j + 0.5) / height) * (rows - 1);
    const row = Math.min(Math.floor(v), rows - 2), fv = v - row;
    for (let i = 0; i < width; i++) {
      const u = ((i + 0.5) / width) * (columns - 1);
      const column = Math.min(Math.floor(u), columns - 2), fu = u - column;
      const at = (row * columns + column) * classes.length, above = at + columns * classes.length;
      let best = 0, most = -1;
      for (let k = 0; k < classes.length; k++) {
        const low = thousandths[at + k] * (1 - fu) + thousandths[at + classes.length + k] * fu;
        const high = thousandths[above + k] * (1 - fu) + thousandths[above + classes.length + k] * fu;
        const p = low * (1 - fv) + high * fv;
        if (p > most) [best, most] = [k, p];
      }
      const pixel = (j * width + i) * 4;
      [image.data[pixel], image.data[pixel + 1], image.data[pixel + 2]] = rgb[best];
      image.data[pixel + 3] = 255 * (0.06 + 0.34 * Math.max(0, (most / 1000 - 1 / about.classes.length) / (1 - 1 / about.classes.length)));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// The text, or as much of its beginning as fits.
function fitting(context, text, width) {
  let kept = text;
  while (kept && context.measureText(kept === text ? text : `${kept}…`).width > width) kept = kept.slice(0, -1);
  return kept === text ? text : `${kept}…`;
}

const hex = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// Corners of each shape around a circle of radius 1; the first one is that circle.
const polygon = (n, turn, inner = 1) => Array.from({ length: n }, (_, k) => {
  const angle = 2 * Math.PI * (k / n + turn), r = 1.2 * (k % 2 ? inner : 1);
  return [Math.sin(angle) * r, -Math.cos(angle) * r];
});
const SHAPES = [null, polygon(3, 0), polygon(4, 1 / 8), polygon(4, 0), polygon(3, 0.5), polygon(10, 0, 0.45),
  polygon(8, 0, 0.35), polygon(6, 0)];

// Which shape a class has; below 0 for none.
function form(label) {
  const k = about.classes.indexOf(label);
  return k < 0 ? k : (k + Math.floor(k / COLOURS)) % COLOURS;
}

function outline(context, label, px, py, r) {
  context.beginPath();
  const k = form(label);
  if (k < 0) {
    context.moveTo(px - r, py - r), context.lineTo(px + r, py + r);
    context.moveTo(px + r, py - r), context.lineTo(px - r, py + r);
  } else if (k === 0) context.arc(px, py, r, 0, 2 * Math.PI);
  else {
    for (const [cx, cy] of SHAPES[k]) context.lineTo(px + cx * r, py + cy * r);
    context.closePath();
  }
}

function drawMark({ values, label, truth }) {
  const context = layers.ink, [px, py] = spot(values);
  outline(context, label, px, py, 5);
  context.lineWidth = label ? 1 : 1.5;
  context.strokeStyle = colours.text;  // to be seen on any region
  context.fillStyle = label ? colour(label) : "transparent";
  context.fill();
  context.stroke();
  if (label && truth && label !== truth) {
    context.beginPath();
    context.arc(px, py, 9, 0, 2 * Math.PI);
    context.strokeStyle = colours.text;
    context.stroke();
  }
}

let sparks = [];

function drawSparks(now) {
  const context = layers.sparks;
  context.clearRect(0, 0, size.width + 100, size.height + 100);
  if (!about.features.length) return;
  const [px, py] = spot(own());
  context.strokeStyle = colours.text;
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(px - 9, py), context.lineTo(px + 9, py), context.moveTo(px, py - 9), context.lineTo(px, py + 9);
  context.stroke();
  sparks = sparks.filter(({ born }) => now - born < SPARK);
  for (const { values, label, born } of sparks) {
    const age = Math.max(0, (now - born) / SPARK);
    outline(context, label, ...spot(values), still.matches ? 10 : 6 + 14 * age);
    context.globalAlpha = still.matches ? 1 : 1 - age;
    context.lineWidth = 2;
    context.strokeStyle = colour(label);
    context.stroke();
  }
  context.globalAlpha = 1;
}

// --- frames: one at a time, and none while nothing moves ------------------------------------------------

let arrived = [];  // since the last frame
let awake = false;
// For measurements: ms from the reply at the server to the end of the frame that shows it.
const measured = { latencies: [], drawn: 0, arrived: 0 };
window.live = measured;

function wake() {
  if (!awake) requestAnimationFrame(frame);
  awake = true;
}

function frame(now) {
  const drawn = arrived;
  arrived = [];
  for (const answer of drawn) {
    const key = `${answer.values} ${answer.label}`;
    marks.delete(key);
    marks.set(key, answer);
    if (marks.size > KEPT) marks.delete(marks.keys().next().value);
    drawMark(answer);
    sparks.push({ ...answer, born: now });
  }
  drawSparks(now);
  awake = false;
  if (sparks.length) wake();
  if (drawn.length) setTimeout(() => {  // a task of its own: the frame is done
    const shown = performance.timeOrigin + performance.now();
    measured.latencies.push(...drawn.map(({ at }) => shown - at));
    measured.latencies.splice(0, measured.latencies.length - 5000);
    measured.drawn += drawn.length;
  });
}

// --- words ---------------------------------------------------------------------------------------------

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const number = (v) => String(Number(v.toPrecision(4)));
const named = ({ name, unit }) => (unit ? `${name} (${unit})` : name);
const united = (v, { unit }) => (unit ? `${number(v)} ${unit}` : number(v));
// Of a long row, what the plane shows.
const brief = (values) => (values.length <= 4 ? values.map((v, k) => [v, k]) : axes.map((k) => [values[k], k]))
  .map(([v, k]) => united(v, about.features[k])).join(" · ");
const duration = (ms) => (ms < 10 ? ms.toFixed(1) : ms.toFixed(0));

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  const { className, text, ...attributes } = properties;
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [key, set] of Object.entries(attributes)) made.setAttribute(key, set);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

function shape(label) {
  const k = form(label);
  if (k < 0) return "";
  const make = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, set] of Object.entries(attributes)) made.setAttribute(key, set);
    return made;
  };
  const svg = make("svg", { class: `mark c${about.classes.indexOf(label) % COLOURS}`, viewBox: "0 0 16 16", "aria-hidden": "true" });
  svg.append(k ? make("polygon", { points: SHAPES[k].map(([cx, cy]) => `${8 + 5.5 * cx},${8 + 5.5 * cy}`).join(" ") })
    : make("circle", { cx: 8, cy: 8, r: 5.5 }));
  return svg;
}

// Build the elements for an answer; returns a function that fills them: six bars at most, in the model's order.
function place(into, waiting) {
  const label = element("p", { className: "label", text: waiting });
  const bars = element("dl", { className: "bars" });
  const why = element("p", { className: "why" });
  into.replaceChildren(label, bars, why);
  const fill = (names, probabilities) => bars.replaceChildren(...names.slice(0, 6).flatMap((name) => {
    const bar = element("i", { className: `c${about.classes.indexOf(name) % COLOURS}` });
    bar.style.transform = `scaleX(${probabilities[name] ?? 0})`;
    const p = element("dd", { text: name in probabilities ? percent(probabilities[name]) : "–" });
    return [element("dt", { text: name, title: name }), element("div", { className: "bar", "aria-hidden": "true" }, bar), p];
  }));
  fill(about.classes, {});
  return (answer) => {
    label.replaceChildren(shape(answer.label), answer.label ?? `${answer.outcome}: ${answer.error.code}`);
    const probabilities = answer.probabilities;
    if (probabilities) fill(about.classes.filter((name) => name in probabilities), probabilities);
    else fill(about.classes, {});
    why.textContent = explained(answer);
  };
}

function explained({ outcome, error, truth, label, values, ms, cold_start, in_distribution, model }) {
  const words = [brief(values), `${duration(ms)} ms there and back`];
  if (outcome !== "answered") return `${error.message}. ${words.join(", ")}.`;
  if (cold_start) words.push("a cold start");
  if (truth) words.push(truth === label ? "as the data says" : `the data says ${truth}`);
  const far = in_distribution ? "" : " Outside of the training data: the answer is a guess.";
  return `${words.join(", ")}; model ${model.slice(0, 8)}.${far}`;
}

let showLatest = () => {}, showOwn = () => {};
const rows = Array.from({ length: ROWS }, () => {
  const cells = [0, 1, 2, 3].map(() => element("td", { text: "–" }));
  $("last").append(element("tr", {}, ...cells));
  return cells;
});

let last = [], roundTrips = [], ticks = [];
let written = 0, writing = false;

// Four times a second is as fast as anyone reads.
function write() {
  if (writing) return;
  writing = true;
  setTimeout(() => {
    writing = false;
    written = performance.now();
    if (last.length) showLatest(last[0]);
    last.forEach((answer, n) => {
      const [row, label, p, ms] = rows[n];
      row.textContent = brief(answer.values);
      label.replaceChildren(shape(answer.label), answer.label ?? `${answer.outcome}: ${answer.error.code}`);
      p.textContent = answer.label ? percent(answer.probabilities[answer.label] ?? 0) : "–";
      ms.textContent = duration(answer.ms);
    });
  }, Math.max(0, written + 250 - performance.now()));
}

// --- events from the server ------------------------------------------------------------------------------

layOut();  // before there is anything to draw
const events = new EventSource("events");
const on = (name, handle) => events.addEventListener(name, ({ data }) => handle(JSON.parse(data)));
let running = true;

on("about", (next) => {
  $("run").disabled = !next.may_pause;
  $("run").title = next.may_pause ? "" : "Only the person who started this page can pause the run";
  // After a reconnection, or with a model of the same shape, the sliders stay where they are.
  const kind = ({ target, features, classes }) => JSON.stringify([target, classes, features]);
  const same = kind(about) === kind(next);
  about = next;
  $("source").textContent = `It asks about ${about.source}.`;
  if (!same) build();
  wantRegions();
});

// Build everything that has the model's names.
function build() {
  document.title = $("title").textContent = `${about.target}, live`;
  axes = [...about.axes];
  [marks, sparks, arrived, last, grid] = [new Map(), [], [], [], null];
  ["axis-x", "axis-y"].forEach((id, n) => {
    $(id).replaceChildren(...about.features.map((feature, k) => element("option", { text: named(feature), value: k })));
    $(id).value = axes[n];
  });
  $("sliders").classList.toggle("many", about.features.length > 8);
  $("sliders").replaceChildren(...about.features.map(({ name, low, high, step, middle }, k) => {
    const input = element("input", { type: "range", id: `f${k}`, min: low, max: high, step });
    input.value = middle;
    input.addEventListener("input", () => moved(k));
    return element("div", { className: "slider" }, element("label", { text: name, for: `f${k}` }),
      element("output", { for: `f${k}` }), input);
  }));
  $("classes").replaceChildren(...about.classes.map((name) => element("li", {}, shape(name), name)));
  const names = about.features.map(named).join(", ");
  $("row-head").textContent = about.features.length > 4 ? "Row, as the plane shows it" : names.length > 80 ? "Row" : names;
  showLatest = place($("latest"), "None yet");
  showOwn = place($("own"), "Move the sliders and ask");
  for (const cells of rows) for (const cell of cells) cell.textContent = "–";
  document.querySelector("main").classList.remove("empty");
  about.features.forEach((_, k) => moved(k));
  redraw();
}

// One at a time, and only when the sliders have come to rest: each costs requests.
let resting = 0, pending = false, again = false;

function wantRegions() {
  clearTimeout(resting);
  resting = setTimeout(askRegions, 250);
}

async function askRegions() {
  if (pending) return void (again = true);
  pending = true, again = false;
  const { shape } = about, asked = [...axes];
  const fresh = () => about.shape === shape && asked.every((k, n) => k === axes[n]);
  try {
    const response = await post("regions", { axes: asked.map((k) => about.features[k].name), row: fields() });
    const answer = await response.json();
    if (fresh() && response.ok) {
      grid = answer;
      $("regions").textContent = "Colour: the model's answer with the other features as the sliders say; the paler, " +
        `the less sure. Model ${grid.model.slice(0, 8)}.`;
      drawSurface();
    } else if (fresh()) {
      $("regions").textContent = `No new regions: ${answer.error.message}.`;
      if (response.status >= 429) setTimeout(wantRegions, 2000);
    }
  } catch (error) {
    $("regions").textContent = `No new regions: ${error.message}.`;
  }
  pending = false;
  if (again) wantRegions();
}

on("answers", ({ of, answers }) => {
  ticks.push({ time: performance.now(), of, drawn: answers.length });
  measured.arrived += of;
  answers = answers.filter(({ shape }) => shape === about.shape);  // none of the model before
  arrived.push(...answers);
  arrived.splice(0, arrived.length - KEPT);  // a page in the background has no frames
  last = [...answers.toReversed(), ...last].slice(0, ROWS);
  roundTrips = [...roundTrips, ...answers.filter(({ outcome }) => outcome !== "failed").map(({ ms }) => ms)].slice(-200);
  write();
  wake();
});

on("status", (status) => {
  linked(status.link, { up: "Connected", down: `No connection: ${status.reason}`, closed: "Closed", gone: status.reason }[status.link]);
  for (const [name, count] of Object.entries(status.counters)) {
    if ($(name)) $(name).textContent = count.toLocaleString("en");
  }
  $("per_second").textContent = status.per_second < 10 ? status.per_second.toFixed(1) : Math.round(status.per_second);
  const sorted = roundTrips.toSorted((a, b) => a - b);
  $("median").textContent = sorted.length ? `${duration(sorted[sorted.length >> 1])} ms` : "–";
  $("rate").textContent = status.on ? `The run asks up to ${status.rate} times a second, while a page is open.`
    : "The run is paused.";
  running = status.on;
  $("run").textContent = running ? "Pause the run" : "Start the run";
  const recent = ticks = ticks.filter(({ time }) => time > performance.now() - 2000);
  const [of, drawn] = ["of", "drawn"].map((key) => recent.reduce((sum, tick) => sum + tick[key], 0));
  if (of) $("sampling").textContent = of === drawn ? "Showing every answer." : of < 1.05 * drawn ? "Showing nearly every answer."
    : `Showing 1 in ${(of / drawn).toFixed(1)} answers: more arrive than can be seen.`;
});

events.onerror = () => linked("down", events.readyState === EventSource.CLOSED
  ? "The server refuses this page: open it again" : "The server is unreachable; trying again");

function linked(state, text) {
  $("link").dataset.link = state;
  if ($("link").textContent !== text) $("link").textContent = text;
}

// --- requests to the server ------------------------------------------------------------------------------

const own = () => about.features.map((_, k) => Number($(`f${k}`).value));
const fields = () => Object.fromEntries(own().map((v, k) => [about.features[k].name, v]));
const post = (path, body) => fetch(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

function moved(k) {
  const slider = $(`f${k}`), text = united(Number(slider.value), about.features[k]);
  slider.previousElementSibling.textContent = text;
  slider.setAttribute("aria-valuetext", text);
  if (!axes.includes(k)) wantRegions();
  wake();
}

["axis-x", "axis-y"].forEach((id, n) => $(id).addEventListener("change", () => {
  axes[n] = Number($(id).value);
  grid = null;
  wantRegions();
  redraw();
}));

// A short cut for a mouse; the sliders do the same.
$("sparks").addEventListener("click", ({ offsetX, offsetY }) => {
  if (!about.features.length) return;
  const parts = [(offsetX - margin.left) / size.width, 1 - (offsetY - margin.top) / size.height];
  axes.forEach((k, n) => {
    const { low, high } = about.features[k];
    $(`f${k}`).value = low + parts[n] * (high - low);
    moved(k);
  });
});

let asking = false;
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (asking || !about.features.length) return;
  asking = true;
  $("submit").textContent = "Asking…";
  const values = own();
  const failed = (code, message) => ({ outcome: "not asked", values, ms: 0, error: { code, message } });
  try {
    const response = await post("ask", fields());
    const answer = await response.json();
    showOwn(response.ok ? answer : failed(answer.error.code, answer.error.message));
  } catch (error) {
    showOwn(failed("no_server", `The server does not answer (${error.message})`));
  }
  $("submit").textContent = "Ask the function";
  asking = false;
});

$("run").addEventListener("click", () => post("run", { on: !running }).catch(() => {}));

new ResizeObserver(layOut).observe($("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layOut);
