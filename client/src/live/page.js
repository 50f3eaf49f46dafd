// What the server says goes in by `/events`; what is asked goes out by `/ask` and `/run`. Nothing else is loaded.

const SPECIES = ["setosa", "versicolor", "virginica"];
const FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"];
const PLANE = { width: 7.5, height: 2.8 };  // cm, petal length and width
const SPARK = 700;  // ms that an arrival is lit
const ROWS = 8;
const KEPT = 1000;  // marks, and round trips
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

// The token has become a cookie: it need not stand in the address, on a projector.
if (location.search) history.replaceState(null, "", location.pathname);

// --- the plane: three layers, so that a frame draws only what is new ------------------------------------

const layers = Object.fromEntries(["surface", "ink", "sparks"].map((id) => [id, $(id).getContext("2d")]));
let size = { width: 0, height: 0 };  // of the plane, CSS pixels
const margin = { left: 46, right: 10, top: 8, bottom: 42 };
let colours = {};
let grid = null;  // the regions, as they came
let marks = new Map();  // by place and species: a flower that comes again is the same mark

const x = (cm) => margin.left + Math.min(Math.max(cm / PLANE.width, 0), 1) * size.width;
const y = (cm) => margin.top + (1 - Math.min(Math.max(cm / PLANE.height, 0), 1)) * size.height;

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
    ["card", "text", "muted", "line", ...SPECIES].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  drawSurface();
  for (const mark of marks.values()) drawMark(mark);
  wake();
}

function drawSurface() {
  const context = layers.surface;
  context.clearRect(0, 0, size.width + 100, size.height + 100);
  if (grid) context.drawImage(tinted(grid), margin.left, margin.top, size.width, size.height);
  context.strokeStyle = colours.line;
  context.strokeRect(margin.left + 0.5, margin.top + 0.5, size.width - 1, size.height - 1);
  context.fillStyle = colours.muted;
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "top";
  for (let cm = 0; cm <= PLANE.width; cm++) context.fillText(cm, x(cm), margin.top + size.height + 6);
  context.fillText("petal length (cm)", margin.left + size.width / 2, margin.top + size.height + 24);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let cm = 0; cm <= PLANE.height; cm += 0.5) context.fillText(cm.toFixed(1), margin.left - 8, y(cm));
  context.save();
  context.translate(8, margin.top + size.height / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText("petal width (cm)", 0, 0);
  context.restore();
}

// Each pixel in the colour of the likeliest species, the paler the less sure; between the grid's points the
// probabilities are interpolated.
function tinted({ columns, rows, thousandths, classes }) {
  const [width, height] = [Math.max(1, Math.round(size.width)), Math.max(1, Math.round(size.height))];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const rgb = classes.map((name) => hex(colours[name] ?? colours.muted));
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
      image.data[pixel + 3] = 255 * (0.06 + 0.34 * Math.max(0, (most / 1000 - 1 / 3) * 1.5));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const hex = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function outline(context, species, px, py, r) {
  context.beginPath();
  if (species === "setosa") context.arc(px, py, r, 0, 2 * Math.PI);
  else if (species === "versicolor") {
    context.moveTo(px, py - r * 1.2);
    context.lineTo(px + r * 1.15, py + r * 0.85);
    context.lineTo(px - r * 1.15, py + r * 0.85);
    context.closePath();
  } else if (species) context.rect(px - r * 0.9, py - r * 0.9, r * 1.8, r * 1.8);
  else {
    context.moveTo(px - r, py - r), context.lineTo(px + r, py + r);
    context.moveTo(px + r, py - r), context.lineTo(px - r, py + r);
  }
}

function drawMark({ flower, species, truth }) {
  const context = layers.ink, [px, py] = [x(flower[2]), y(flower[3])];
  outline(context, species, px, py, 5);
  context.lineWidth = 1.5;
  context.strokeStyle = species ? colours.card : colours.text;
  context.fillStyle = colours[species] ?? "transparent";
  context.stroke();
  context.fill();
  if (species && truth && species !== truth) {
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
  const [px, py] = [x(value("petal_length")), y(value("petal_width"))];
  context.strokeStyle = colours.text;
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(px - 9, py), context.lineTo(px + 9, py), context.moveTo(px, py - 9), context.lineTo(px, py + 9);
  context.stroke();
  sparks = sparks.filter(({ born }) => now - born < SPARK);
  for (const { flower, species, born } of sparks) {
    const age = Math.max(0, (now - born) / SPARK);
    outline(context, species, x(flower[2]), y(flower[3]), still.matches ? 10 : 6 + 14 * age);
    context.globalAlpha = still.matches ? 1 : 1 - age;
    context.lineWidth = 2;
    context.strokeStyle = colours[species] ?? colours.text;
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
    const key = `${answer.flower[2]} ${answer.flower[3]} ${answer.species}`;
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
const centimetres = (flower) =>
  flower.map((cm) => cm.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 3 })).join(" · ");
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

const legend = Object.fromEntries(SPECIES.map((name) => [name, document.querySelector(`.legend .${name}`)]));
const shape = (species) => legend[species]?.cloneNode(true) ?? "";

// The place for an answer, and how to fill it.
function place(into, waiting) {
  const said = element("p", { className: "said", text: waiting });
  const bars = element("dl", { className: "bars" });
  const filled = SPECIES.map((name) => {
    const bar = element("i", { className: name }), p = element("dd", { text: "–" });
    bars.append(element("dt", { text: name }), element("div", { className: "bar", "aria-hidden": "true" }, bar), p);
    return { name, bar, p };
  });
  const why = element("p", { className: "why" });
  into.append(said, bars, why);
  return (answer) => {
    said.replaceChildren(shape(answer.species), answer.species ?? `${answer.outcome}: ${answer.error.code}`);
    for (const { name, bar, p } of filled) {
      const probability = answer.probabilities?.[name];
      bar.style.transform = `scaleX(${probability ?? 0})`;
      p.textContent = probability === undefined ? "–" : percent(probability);
    }
    why.textContent = explained(answer);
  };
}

function explained({ outcome, error, truth, species, flower, ms, cold_start, in_distribution, model }) {
  const words = [`${centimetres(flower)} cm`, `${duration(ms)} ms there and back`];
  if (outcome !== "answered") return `${error.message}. ${words.join(", ")}.`;
  if (cold_start) words.push("a cold start");
  if (truth) words.push(truth === species ? "as the data says" : `the data says ${truth}`);
  const far = in_distribution ? "" : " Unlike any flower in the training data: the answer is a guess.";
  return `${words.join(", ")}; model ${model.slice(0, 8)}.${far}`;
}

const showLatest = place($("latest"), "None yet");
const showOwn = place($("own"), "Move the sliders and ask");
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
      const [flower, said, p, ms] = rows[n];
      flower.textContent = centimetres(answer.flower);
      said.replaceChildren(shape(answer.species), answer.species ?? `${answer.outcome}: ${answer.error.code}`);
      p.textContent = answer.species ? percent(answer.probabilities[answer.species]) : "–";
      ms.textContent = duration(answer.ms);
    });
  }, Math.max(0, written + 250 - performance.now()));
}

// --- what the server says --------------------------------------------------------------------------------

layOut();  // before there is anything to draw
const events = new EventSource("events");
const on = (name, hear) => events.addEventListener(name, ({ data }) => hear(JSON.parse(data)));
let running = true, columns = null;

on("about", (about) => {
  $("run").disabled = !about.may_pause;
  $("run").title = about.may_pause ? "" : "The run is paused at the machine that it runs on";
  if (columns) return;  // after a reconnection: the sliders stay where they are
  columns = about.columns;
  for (const { name, min, max, mean } of columns) {
    const wider = 0.1 * (max - min);
    const tenth = (cm) => Math.max(0, Math.round(cm * 10) / 10);
    Object.assign($(name), { min: tenth(min - wider), max: tenth(max + wider), value: tenth(mean) });
    moved($(name));
  }
});

on("regions", (regions) => {
  grid = regions;
  const [length, width] = regions.sepal.map((cm) => cm.toFixed(1));
  $("regions").textContent = `Colour: the model's answer for a sepal of ${length} × ${width} cm, the mean; ` +
    `the paler, the less sure. Model ${regions.model.slice(0, 8)}.`;
  drawSurface();
});

on("answers", ({ of, answers }) => {
  ticks.push({ time: performance.now(), of, drawn: answers.length });
  measured.arrived += of;
  arrived.push(...answers);
  arrived.splice(0, arrived.length - KEPT);  // a page in the background has no frames
  last = [...answers.toReversed(), ...last].slice(0, ROWS);
  roundTrips = [...roundTrips, ...answers.filter(({ outcome }) => outcome !== "failed").map(({ ms }) => ms)].slice(-200);
  write();
  wake();
});

on("status", (status) => {
  linked(status.link, { up: "Connected", down: `No connection: ${status.reason}`, closed: "Closed" }[status.link]);
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
  if (status.regions) $("regions").textContent = `No new regions: ${status.regions}.`;
  const recent = ticks = ticks.filter(({ time }) => time > performance.now() - 2000);
  const [of, drawn] = ["of", "drawn"].map((key) => recent.reduce((sum, tick) => sum + tick[key], 0));
  if (of) $("sampling").textContent = of === drawn ? "Showing every answer."
    : `Showing 1 in ${(of / drawn).toFixed(1)} answers: more arrive than can be seen.`;
});

events.onerror = () => linked("down", events.readyState === EventSource.CLOSED
  ? "The server will not talk to this page: open it anew" : "The server is gone; looking for it");

function linked(state, text) {
  $("link").dataset.link = state;
  if ($("link").textContent !== text) $("link").textContent = text;
}

// --- what is asked ---------------------------------------------------------------------------------------

const value = (name) => Number($(name).value);
const post = (path, body) => fetch(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

function moved(slider) {
  const cm = Number(slider.value).toFixed(1);
  slider.previousElementSibling.textContent = `${cm} cm`;
  slider.setAttribute("aria-valuetext", `${cm} centimetres`);
  wake();
}

for (const name of FEATURES) {
  $(name).addEventListener("input", () => moved($(name)));
  moved($(name));
}

// A short cut for a mouse; the sliders do the same.
$("sparks").addEventListener("click", ({ offsetX, offsetY }) => {
  $("petal_length").value = ((offsetX - margin.left) / size.width) * PLANE.width;
  $("petal_width").value = (1 - (offsetY - margin.top) / size.height) * PLANE.height;
  moved($("petal_length"));
  moved($("petal_width"));
});

let asking = false;
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (asking) return;
  asking = true;
  $("submit").textContent = "Asking…";
  const flower = FEATURES.map(value);
  const failed = (code, message) => ({ outcome: "not asked", flower, ms: 0, error: { code, message } });
  try {
    const response = await post("ask", Object.fromEntries(FEATURES.map((name) => [name, value(name)])));
    const told = await response.json();
    showOwn(response.ok ? told : failed(told.error.code, told.error.message));
  } catch (error) {
    showOwn(failed("no_server", `The server does not answer (${error.message})`));
  }
  $("submit").textContent = "Ask the function";
  asking = false;
});

$("run").addEventListener("click", () => post("run", { on: !running }).catch(() => {}));

new ResizeObserver(layOut).observe($("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layOut);
