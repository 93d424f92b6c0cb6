// Page of `export_html`. It shows precomputed landscapes with the panel's front end, figure_widget.js, which precedes
// this script and reads its updates from a `model`. Updates that depend on the ball are assembled here.

const FRAME_MS = 60; // milliseconds per step of the animation

const find = (id) => document.getElementById(`lossviz-${id}`);
const mapValues = (values, change) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
const named = (name, i) => (i ? `${name}-${i}` : name); // trace names of several runs, as in Python's `trace_key`
const round3 = (value) => String(Number(value.toPrecision(3)));
const formatFactor = (value) => `×${value < 10 ? value.toFixed(2) : value < Infinity ? round3(value) : "inf"}`;

function element(kind, text = "") {
  const node = document.createElement(kind);
  node.textContent = text;
  return node;
}

// Returns the recorded row closest to a step.
function findRow(steps, step) {
  let best = 0;
  for (let i = 1; i < steps.length; i++) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
  return best;
}

// Returns the loss that is higher on its axis by a fraction of the axis, like Python's `Scale.lift`.
function lift(loss, share, { scale: [low, high], log }) {
  const more = share * (high - low);
  return log ? 10 ** (Math.log10(loss) + more) : loss + more;
}

// The base64-encoded arrays of the file, each stored once, decoded on first use.
class Arrays {
  constructor(packed) {
    Object.assign(this, { packed, unpacked: new Map() });
  }

  unpack(number) {
    if (!this.unpacked.has(number)) {
      const { dtype, shape, base64 } = this.packed[number];
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const flat = new ARRAYS[dtype](bytes.buffer);
      const [n, width] = shape;
      const cut = () => Array.from({ length: n }, (_, i) => flat.subarray(i * width, (i + 1) * width));
      this.unpacked.set(number, width === undefined ? flat : cut());
    }
    return this.unpacked.get(number);
  }

  // Returns the values of an update with their arrays in place of references.
  read(part, axis) {
    return mapValues(part, (value) => {
      if (value === null || typeof value !== "object") return value;
      if ("array" in value) return this.unpack(value.array);
      if ("losses" in value) return Array.from(this.unpack(value.losses), (loss) => lift(loss, value.lift, axis));
      if ("colors" in value) return this.paint(value);
      return "columns" in value ? this.join(value.columns) : value;
    });
  }

  paint({ colors, index, left }) {
    const [palette, shares] = [this.unpack(colors), this.unpack(left)];
    return Array.from(this.unpack(index), (color, i) => [...palette[color], shares[i]]);
  }

  join(numbers) {
    const columns = numbers.map((number) => this.unpack(number));
    return Array.from(columns[0], (_, i) => columns.map((column) => column[i]));
  }
}

// Moves the ball along `stops`, training steps spread half by arc length and half by time. Skips some if the page is
// slow.
class Player {
  constructor(stops, { button, where, go, isReady }) {
    Object.assign(this, { stops, button, where, go, isReady, timer: null });
    button.addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
  }

  play() {
    if (this.where() >= this.stops[this.stops.length - 1]) this.go(this.stops[0]);
    this.moved = performance.now();
    this.timer = setTimeout(() => this.advance(), FRAME_MS);
    this.showState();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.showState();
  }

  advance() {
    this.timer = setTimeout(() => this.advance(), FRAME_MS);
    if (!this.isReady()) return;
    const n = Math.max(1, Math.floor((performance.now() - this.moved) / FRAME_MS));
    this.moved = performance.now();
    const ahead = this.stops.filter((step) => step > this.where());
    if (!ahead.length) return this.pause();
    this.go(ahead[Math.min(n, ahead.length) - 1]);
  }

  showState() {
    this.button.textContent = this.timer === null ? "play" : "pause";
    this.button.dataset.playing = this.timer !== null;
  }
}

// Sets up a slider over a list of values with a label below each; hidden if there is only one value.
function setUpSlider(name, values, first, choose) {
  const [slider, ticks] = [find(name), find(`${name}-ticks`)];
  Object.assign(slider, { min: 0, max: values.length - 1, step: 1, value: first });
  ticks.replaceChildren(...values.map((value) => element("span", String(value).replace(/^0\./, "."))));
  ticks.classList.toggle("lossviz-many", values.join("").length > 24);
  find(`${name}-control`).hidden = values.length < 2;
  const show = (at) => {
    slider.setAttribute("aria-valuetext", String(values[at]));
    [...ticks.children].forEach((node, i) => node.classList.toggle("lossviz-chosen", i === at));
  };
  slider.addEventListener("input", () => {
    show(Number(slider.value));
    choose(Number(slider.value));
  });
  show(first);
}

function openPage() {
  const data = JSON.parse(find("data").textContent);
  const arrays = new Arrays(data.arrays);
  const now = { picture: data.first, step: data.step, kind: "linear" };
  const slider = find("step");
  const axis = () => ({ ...data.pictures[now.picture].axes[now.kind], log: now.kind === "log" });
  const runs = data.runs.map((run) => arrays.read(run));
  const ball = arrays.read(data.ball);
  const common = mapValues(data.parts, (part) => arrays.read(part));
  const one = runs.length === 1;
  const findRows = () => runs.map((run) => findRow(run.step, now.step));
  const ofRun = (i, key) => arrays.unpack(data.pictures[now.picture].runs[i][key].array);

  // Stands in for the Jupyter model that figure_widget.js reads and sends messages to.
  const [nothing, listeners] = [{}, {}];
  const shown = { panes: data.panes, hidden: [], state: "", summary: data.summary, serial: 0 };
  const model = {
    get: (name) => (name in shown ? shown[name] : nothing),
    on: (name, listener) => (listeners[name] = listener),
    off: (name) => delete listeners[name],
    send: (message) => {
      if (message.kind === "shown") find("picture").dataset.drawn = message.serial;
      else if (message.kind === "click") handleClick(message);
    },
  };
  const push = (parts) => {
    Object.assign(shown, parts, { serial: shown.serial + 1 });
    find("picture").dataset.asked = shown.serial;
    if (listeners["change:serial"]) listeners["change:serial"]();
    showDetails();
  };

  const landscapeUpdates = () => {
    const drawing = data.pictures[now.picture].axes[now.kind];
    drawing.read = drawing.read || mapValues(drawing.parts, (part) => arrays.read(part, axis()));
    return drawing.read;
  };

  const ballUpdates = () => {
    const parts = {};
    findRows().forEach((row, i) => {
      const { step, x, y, loss } = mapValues(runs[i], (values) => values[row]);
      parts[named("surface_error", i)] = { x: [x, x], y: [y, y], z: [loss, ofRun(i, "height")[row]] };
      parts[named("surface_ball", i)] = {
        ...ball,
        x: ball.x.map((value) => value + x),
        y: ball.y.map((value) => value + y),
        z: Array.from(ball.z, (share) => lift(loss, share, axis())),
        customdata: Array(ball.x.length).fill([step, loss]),
      };
      parts[named("curve_step", i)] = { x: [step], y: [loss] };
    });
    return parts;
  };

  // The plateau at the current step, else the longest one.
  const contains = (stay) => stay.start <= now.step && now.step <= stay.end;
  const findPlateau = () => {
    const here = data.stays.filter(contains);
    return [...(here.length ? here : data.stays)].sort((a, b) => b.end - b.start - (a.end - a.start))[0];
  };

  const fitUpdates = () => {
    if (!data.fits) return {};
    const parts = {};
    const { x } = arrays.read({ x: data.fits.x });
    const steps = data.fits.runs.map((run, i) => {
      const { step, levels } = arrays.read(run);
      const row = findRow(step, now.step);
      parts[named("fit_network", i)] = { x, y: Array.from(levels[row], (level) => run.low + run.unit * level) };
      return step[row];
    });
    const { level } = findPlateau() || {};
    const learned = level && { x, ...arrays.read(level), showlegend: true };
    parts.fit_level = learned || { x: [], y: [], name: "", showlegend: false };
    parts.fit_layout = { "title.text": `<b>the network${one ? "" : "s"} at step ${Math.max(...steps)}</b>` };
    return parts;
  };

  const listTiles = (rows) => {
    const tiles = one ? [] : runs.map((run, i) => [run.name, round3(run.loss[rows[i]]), `step ${run.step[rows[i]]}`]);
    if (one) {
      const stay = findPlateau();
      const when = stay && (contains(stay) ? "now" : `${stay.start} – ${stay.end}`);
      const what = stay && stay.level ? `, ${stay.level.name} (${stay.level.loss})` : "";
      tiles.push([`loss at step ${runs[0].step[rows[0]]}`, round3(runs[0].loss[rows[0]]), ""]);
      tiles.push(["plateau", ...(stay ? [stay.loss, when + what] : ["none", ""])]);
    }
    const worst = Math.max(...rows.map((row, i) => ofRun(i, "factor")[row]));
    const off = Math.max(...rows.map((row, i) => runs[i].off[row]));
    tiles.push(["error here", formatFactor(worst), ""], ...data.pictures[now.picture].tiles);
    return [...tiles, ["off the plane", `${(100 * off).toFixed(1)}%`, ""], ["variance", ...data.variance]];
  };

  const showDetails = () => {
    const { k, sigma, cautions } = data.pictures[now.picture];
    const rows = findRows();
    const list = element("dl");
    for (const [name, value, more] of listTiles(rows)) {
      const words = element("dd", `${value} `);
      words.append(element("small", more));
      const tile = Object.assign(element("div"), { className: `lossviz-tile-${name.split(/\W/)[0]}` });
      tile.append(element("dt", name), words);
      list.append(tile);
    }
    find("figures").replaceChildren(list, ...cautions.map((caution) => element("p", caution)));
    const losses = rows.map((row, i) => round3(runs[i].loss[row]));
    slider.value = now.step;
    slider.setAttribute("aria-valuetext", `step ${now.step}, loss ${losses.join(", ")}`);
    find("step-value").textContent = now.step;
    const spelled = { k, sigma: typeof sigma === "string" ? `'${sigma}'` : sigma, step: now.step };
    spelled.log = now.kind === "log" ? "True" : "False";
    find("recipe").textContent = data.recipe.replace(/\{(k|sigma|step|log)\}/g, (_, name) => spelled[name]);
  };

  const show = (changes) => {
    Object.assign(now, changes);
    push({ ...common, ...landscapeUpdates(), ...ballUpdates(), ...fitUpdates() });
  };
  const roll = (step) => {
    now.step = step;
    push({ ...ballUpdates(), ...fitUpdates() });
  };
  const player = new Player(data.frames, {
    button: find("play"),
    where: () => now.step,
    go: roll,
    isReady: () => Number(find("picture").dataset.drawn) === shown.serial,
  });

  // A click on a run or its curve selects that step; a click on the surface the nearest step within `data.reach`.
  const handleClick = ({ pane, trace, index, x, y }) => {
    const [kind, which = 0] = trace.split("-");
    let best = { distance: data.reach };
    if (["trajectory", "loss", "factor"].includes(kind)) best = { step: runs[which].step[index] };
    else if (["surface", "ball"].includes(kind)) {
      for (const run of runs) {
        run.step.forEach((step, row) => {
          const distance = Math.hypot(run.x[row] - x, run.y[row] - y);
          if (distance <= best.distance) best = { distance, step };
        });
      }
    }
    if (pane === "fit" || !("step" in best)) return;
    player.pause();
    roll(best.step);
  };

  const n = data.sigma.length;
  setUpSlider("k", data.k, Math.floor(data.first / n), (at) => show({ picture: at * n + (now.picture % n) }));
  setUpSlider("sigma", data.sigma, data.first % n, (at) => show({ picture: now.picture - (now.picture % n) + at }));
  Object.assign(slider, { min: data.steps[0], max: data.steps[1], step: 1 });
  slider.addEventListener("input", () => {
    player.pause();
    roll(Number(slider.value));
  });
  const kinds = Object.keys(data.pictures[0].axes);
  find("axis").replaceChildren(...kinds.map((kind) => element("option", kind)));
  find("axis-control").hidden = kinds.length < 2;
  find("axis").addEventListener("change", () => show({ kind: find("axis").value }));
  // figure_widget.js reads the theme again when an attribute of the root element changes.
  const theme = document.documentElement.dataset;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => (theme.dark = matches));
  // Without hover, Plotly's buttons would cover the title permanently.
  if (matchMedia("(hover: none)").matches) CONFIG.displayModeBar = false;
  show({});
  render({ model, el: find("picture") });
}

openPage();
