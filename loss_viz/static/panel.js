// The panel around the figures, in JupyterLab and on the page of `export_html`: the surface above a row of controls and
// the loss curve, which is the time line. It reads traits of a `model` and reports what the user does in messages, so
// the same code serves a kernel and a page without one.

const FRAME_MS = 60; // milliseconds per frame while the ball rolls
const ECHO_MS = 1500; // how long an older value from the kernel may arrive after a newer one was sent
const SEND_MS = 40; // between two messages of a slider that is dragged
const NARROW = 700; // pixels
const WIDE = 1075; // from here on the row of controls is one line
const NARROW_FIT = 170; // height of the network's answer below the surfaces, as in panel.css
const SHARES = [20, 80]; // least and greatest width of the first of two surfaces, in percent
// What can be shared, and what it is.
const SHARED = {
  picture: "PNG of the surface as it is now, with its errors and warnings",
  page: "one HTML file of this landscape, which turns and plays without Python",
  film: "GIF of the ball that rolls along the run",
  code: "copies the Python code that draws this figure",
};
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

const asMath = (formula) => formula.replace(/\^(\d)/g, (_, digit) => SUPERSCRIPTS[digit]).replace(/\((\w+)\)$/, " $1");
const inWords = (number) => Number(number).toLocaleString("en-US");

function element(kind, properties = {}, ...children) {
  const node = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const mapValues = (values, change) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
const named = (name, i) => (i ? `${name}-${i}` : name); // trace names of several runs, as in Python's `trace_key`

// Returns the loss that is higher on its axis by a fraction of the axis, like Python's `Scale.lift`.
function lift(loss, share, { low, high, log }) {
  const more = share * (high - low);
  return log ? 10 ** (Math.log10(loss) + more) : loss + more;
}

// The surface of a pane as its grid.
class Grid {
  constructor({ x, y, z, rgba }) {
    Object.assign(this, { z: decode(z), rgba: decode(rgba) });
    const [xs, ys] = [decode(x), decode(y)];
    let width = 1;
    while (width < ys.length && ys[width] === ys[0]) width++;
    this.x = xs.slice(0, width);
    this.y = ys.filter((_, i) => i % width === 0);
  }

  contains(x, y) {
    return [[x, this.x], [y, this.y]].every(([at, ends]) => ends[0] <= at && at <= ends[ends.length - 1]);
  }

  // Returns loss and color where the drawn triangles are at a point, or at the edge next to it.
  at(x, y, log) {
    const [i, right] = place(x, this.x);
    const [j, up] = place(y, this.y);
    const corner = j * this.x.length + i;
    const [a, b, c, d] = [corner, corner + 1, corner + this.x.length + 1, corner + this.x.length];
    const parts = right >= up ? [[a, 1 - right], [b, right - up], [c, up]] : [[a, 1 - up], [c, right], [d, up - right]];
    const mean = (read) => parts.reduce((sum, [index, weight]) => sum + (weight ? weight * read(index) : 0), 0);
    const height = mean((index) => (log ? Math.log10(this.z[index]) : this.z[index]));
    return { loss: log ? 10 ** height : height, height, rgba: [0, 1, 2, 3].map((part) => mean((index) => this.rgba[index][part])) };
  }
}

// Returns the cell of an axis at a value, and how far into it that is.
function place(value, ends) {
  let i = 0;
  while (i < ends.length - 2 && ends[i + 1] <= value) i++;
  return [i, Math.min(1, Math.max(0, (value - ends[i]) / (ends[i + 1] - ends[i])))];
}

// Returns the recorded row closest to a step.
function findRow(steps, step) {
  let best = 0;
  for (let i = 1; i < steps.length; i++) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
  return best;
}

// The balls on surfaces and curves, and the functions of the networks there, at any step. `data` is what Python's
// `describe_balls` returns; `findSurface` returns the update of the surface of a pane.
class Balls {
  constructor(data, findSurface) {
    Object.assign(this, { findSurface, grids: {} });
    Object.assign(this, { runs: [], panes: {}, plateaus: [], outputs: null }, decodeAll(data));
  }

  // Returns the updates of the figures at a step.
  at(step) {
    const parts = {};
    this.runs.forEach((run, i) => {
      const row = findRow(run.step, step);
      parts[named("curve_step", i)] = { x: [run.step[row]], y: [run.loss[row]] };
      for (const [pane, { shape, shadow, runs, ...axis }] of Object.entries(this.panes)) {
        // The surface of a training that goes on may end some steps before its curve.
        const { x, y, loss, height } = mapValues(runs[i], (values) => values[Math.min(row, values.length - 1)]);
        parts[named(`${pane}_error`, i)] = { x: [x, x], y: [y, y], z: [loss, height] };
        parts[named(`${pane}_ball`, i)] = {
          ...shape,
          x: shape.x.map((value) => value + x),
          y: shape.y.map((value) => value + y),
          z: Array.from(shape.z, (share) => lift(loss, share, axis)),
          customdata: Array(shape.x.length).fill([run.step[row], loss]),
        };
        parts[named(`${pane}_shadow`, i)] = this.layShadow(pane, shadow, axis, { x, y, loss, height });
      }
    });
    return this.outputs ? { ...parts, ...this.functionsAt(step) } : parts;
  }

  // Lays the shadow of a ball on the surface: the closer it is to the ball, the darker.
  layShadow(pane, { x, y, dark, lift: share, reach, ...corners }, axis, ball) {
    const surface = this.findSurface(pane);
    if (this.grids[pane]?.of !== surface) this.grids[pane] = { of: surface, grid: surface.z && new Grid(surface) };
    const { grid } = this.grids[pane];
    const draw = (loss) => (axis.log ? Math.log10(loss) : loss);
    const gap = Math.abs(draw(ball.loss) - draw(ball.height)) / (reach * (axis.high - axis.low));
    const near = grid?.contains(ball.x, ball.y) ? Math.max(0, 1 - gap) : 0; // 0 also where the height is unknown
    if (!(near > 0)) return { ...corners, ...mapValues({ x, y, z: x }, () => [NaN]), i: [], j: [], k: [], rgba: [[0, 0, 0, 0]] };
    const points = Array.from(x, (dx, i) => grid.at(ball.x + dx, ball.y + y[i], axis.log));
    return {
      ...corners,
      x: x.map((dx) => Math.min(grid.x[grid.x.length - 1], Math.max(grid.x[0], ball.x + dx))),
      y: y.map((dy) => Math.min(grid.y[grid.y.length - 1], Math.max(grid.y[0], ball.y + dy))),
      z: points.map(({ loss }) => lift(loss, share, axis)),
      rgba: points.map(({ rgba: [r, g, b, a] }, i) => [r, g, b].map((value) => value * (1 - near * dark[i])).concat(a)),
    };
  }

  functionsAt(step) {
    const { x } = this.outputs;
    const parts = {};
    this.outputs.runs.forEach(({ step: steps, levels, low, unit }, i) => {
      const level = levels[findRow(steps, step)];
      parts[named("fit_network", i)] = { x, y: Array.from(level, (value) => low + unit * value) };
    });
    const level = this.plateauAt(step)?.level;
    const known = level && level.y.length; // of some levels only the loss is known
    parts.fit_level = known ? { x, y: level.y, name: level.name, showlegend: true } : NO_CURVE;
    return parts;
  }

  // Returns the plateau at a step, else the longest one.
  plateauAt(step) {
    const here = this.plateaus.filter(({ start, end }) => start <= step && step <= end);
    return [...(here.length ? here : this.plateaus)].sort((a, b) => b.end - b.start - (a.end - a.start))[0];
  }
}

const NO_CURVE = { x: [], y: [], name: "", showlegend: false };

// How the positions of a slider map to the values of a setting. The first position of a setting that may be "auto" is
// that.
class Positions {
  constructor(row) {
    Object.assign(this, row);
    this.first = row.auto ? 1 : 0;
  }

  get count() {
    if (this.kind === "list") return this.values.length;
    return this.first + Math.round((this.high - this.low) / this.step) + 1;
  }

  valueAt(position) {
    if (this.kind === "list") return this.values[position];
    if (position < this.first) return "auto";
    const value = this.low + (position - this.first) * this.step;
    return Number((this.kind === "log" ? 10 ** value : value).toPrecision(3));
  }

  // Widens the range to hold a value that was set in code.
  widen(value) {
    if (this.kind === "list" || value === "auto") return;
    const number = this.kind === "log" ? Math.log10(value) : value;
    if (number < this.low) this.low = this.step < 1 ? Math.floor(number) : number;
    if (number > this.high) this.high = this.step < 1 ? Math.ceil(number) : number;
  }

  // Returns the position of a value, which may be a fraction.
  find(value) {
    if (this.kind === "list") return this.values.indexOf(value);
    if (value === "auto") return 0;
    return this.first + ((this.kind === "log" ? Math.log10(value) : value) - this.low) / this.step;
  }
}

// One setting: label, input, and the place of its error message. `send` takes the value that the user chose.
class Control {
  constructor(row, id, send, hold) {
    Object.assign(this, { row, send, hold, sent: null });
    this.error = element("p", { className: "lossviz-error", id: `${id}-error`, hidden: true, role: "alert" });
    this.label = element("label", { htmlFor: id, textContent: row.label });
    this.build();
    this.input.id = id;
    this.input.setAttribute("aria-describedby", this.error.id);
    this.input.title = row.hint;
    this.el = element("div", { className: `lossviz-field lossviz-${row.kind}` }, this.label, ...this.parts, this.error);
    this.el.dataset.name = row.name;
  }

  build() {
    const { kind } = this.row;
    if (kind === "choice") return this.buildChoice();
    if (kind === "number") return this.buildText();
    if (kind === "formula") return this.buildFormula();
    return this.buildSlider();
  }

  buildChoice() {
    const isShownOnly = (choice) => (this.row.shown_only || []).includes(choice);
    const options = this.row.choices.map((choice) =>
      element("option", { value: choice, textContent: choice, disabled: isShownOnly(choice) }),
    );
    this.input = element("select", { autocomplete: "off" }, ...options);
    this.parts = [this.input];
    this.input.addEventListener("change", () => this.choose(this.input.value));
    this.display = (value) => (this.input.value = value);
  }

  buildText() {
    const isNumber = this.row.kind === "number"; // or a formula
    this.input = element("input", { type: "text", autocomplete: "off", spellcheck: false });
    if (isNumber) this.input.inputMode = "decimal";
    this.parts = [this.input];
    const read = (text) => (isNumber && text !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
    this.input.addEventListener("change", () => this.choose(read(this.input.value.trim())));
    this.display = (value) => (this.input.value = value);
  }

  // Buttons for the formulas of the post, and a field for any other.
  buildFormula() {
    this.buildText();
    this.input.placeholder = "✎ your own f(x)";
    this.chips = this.row.choices.map((formula) => {
      const chip = element("button", { type: "button", className: "lossviz-chip", textContent: asMath(formula) });
      chip.title = `Learn ${asMath(formula)}`;
      chip.addEventListener("click", () => {
        this.show(formula);
        this.choose(formula);
      });
      return chip;
    });
    this.parts = [element("span", { className: "lossviz-chips", role: "group" }, ...this.chips), this.input];
    this.parts[0].setAttribute("aria-label", "Functions of the post");
    this.display = (value) => {
      this.chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(this.row.choices[i] === value)));
      this.input.value = this.row.choices.includes(value) ? "" : value;
    };
  }

  buildSlider() {
    this.positions = new Positions(this.row);
    this.input = element("input", { type: "range", autocomplete: "off", min: 0, step: 1 });
    this.output = element("output", {});
    this.track = element("span", { className: "lossviz-track" }, this.input);
    this.parts = [this.track, this.output];
    this.input.addEventListener("input", () => {
      const value = this.positions.valueAt(Number(this.input.value));
      this.show(value, true);
      this.choose(value, true);
    });
    this.input.addEventListener("pointerdown", () => {
      this.hold(true);
      const ends = ["pointerup", "pointercancel"];
      const release = () => {
        ends.forEach((end) => window.removeEventListener(end, release));
        this.hold(false);
      };
      ends.forEach((end) => window.addEventListener(end, release));
    });
    this.display = (value, byUser = false) => {
      this.positions.widen(value);
      this.input.max = this.positions.count - 1;
      if (!byUser) this.input.value = Math.round(this.positions.find(value));
      this.write(value);
    };
  }

  // Writes the value of a slider; of "auto" also what it stands for.
  write(value) {
    const meant = value === "auto" && this.taken ? `auto (${this.taken})` : String(value);
    this.output.textContent = meant;
    this.input.setAttribute("aria-valuetext", meant);
  }

  choose(value, dragging = false) {
    this.sent = { value, at: performance.now() };
    clearTimeout(this.timer);
    if (dragging && this.lastSent && performance.now() - this.lastSent < SEND_MS) {
      this.timer = setTimeout(() => this.choose(value), SEND_MS);
      return;
    }
    this.lastSent = performance.now();
    this.send(this.row.name, value);
  }

  // Shows a value of the model that is new: what the user is typing, or what was refused, stays. A value that may be
  // older than what the user has chosen since is shown later, if it is still the model's by then.
  receive(value) {
    clearTimeout(this.late);
    if (value === this.received) return;
    if (this.sent && performance.now() - this.sent.at < ECHO_MS && this.sent.value !== value) {
      this.late = setTimeout(() => this.receive(value), ECHO_MS);
      return;
    }
    this.sent = null;
    this.received = value;
    this.show(value);
  }

  show(value, byUser = false) {
    this.value = value;
    this.display(value, byUser);
  }

  // Says what "auto" took.
  setTaken(text) {
    this.taken = text;
    if (this.output && this.value !== undefined) this.write(this.value);
  }

  showError(text) {
    this.error.textContent = text;
    this.error.hidden = !text;
    this.input.setAttribute("aria-invalid", String(Boolean(text)));
  }

  // A control without effect on the present picture is disabled and says why.
  setReason(reason) {
    this.input.disabled = Boolean(reason);
    this.input.title = reason || this.row.hint;
    this.el.classList.toggle("lossviz-off", Boolean(reason));
  }
}

// Moves the ball along `frames`, some of the training steps; skips some of them if drawing is slow.
class Player {
  constructor({ button, frames, where, go, isReady }) {
    Object.assign(this, { button, frames, where, go, isReady, timer: null });
    button.addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
    this.showState();
  }

  play() {
    const frames = this.frames();
    if (!frames.length) return;
    if (this.where() >= frames[frames.length - 1]) this.go(frames[0]);
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
    const ahead = this.frames().filter((step) => step > this.where());
    if (!ahead.length) return this.pause();
    this.go(ahead[Math.min(n, ahead.length) - 1]);
  }

  showState() {
    const playing = this.timer !== null;
    this.button.textContent = playing ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", playing ? "pause" : "play");
    this.button.title = playing ? "Pause (space)" : "Roll the ball along the run (space)";
  }
}

let panelCount = 0; // for unique ids

class Panel {
  constructor(model, el) {
    Object.assign(this, { model, el, number: panelCount++, controls: {}, balls: new Balls({}), moved: {} });
    el.classList.add("lossviz");
    el.classList.toggle("lossviz-alone", !model.get("panes").curve.data.some(({ uid }) => uid === "loss-1"));
    this.buildStage();
    this.buildRow();
    this.buildTimeline();
    this.buildFooter();
    this.buildDrawer();
    el.append(this.stage, this.row, this.timeline, this.footer);
    this.listeners = {
      "change:values": () => this.showValues(),
      "change:errors": () => this.showErrors(),
      "change:notes": () => this.showNotes(),
      "change:work": () => this.showWork(),
      "change:report": () => this.showReport(),
      "change:timeline": () => this.showTimeline(),
      "change:state": () => this.showState(),
      "change:balls": () => this.showBalls(),
      "msg:custom": (message, buffers) => this.receive(message, buffers),
    };
    for (const [event, listener] of Object.entries(this.listeners)) model.on(event, listener);
    this.onKey = (event) => this.handleKey(event);
    // JupyterLab would take single letters typed here as commands; Ctrl + S is still its own.
    this.onAnyKey = ({ ctrlKey, metaKey, altKey }) => {
      if (ctrlKey || metaKey || altKey) el.removeAttribute("data-lm-suppress-shortcuts");
      else el.setAttribute("data-lm-suppress-shortcuts", "true");
    };
    window.addEventListener("keydown", this.onAnyKey, true);
    el.addEventListener("keydown", this.onKey);
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(el);
    this.fit();
    const onZoom = "bounds" in model.get("values") ? (ends) => this.zoomTo(ends) : null;
    this.figures = renderFigures({ model: this.layer(), el: this.stage, slots: { curve: this.curve }, onZoom });
    this.showBalls();
    this.showTimeline();
    this.showValues();
    this.showErrors();
    this.showNotes();
    this.showWork();
    this.showReport();
    this.showState();
  }

  showBalls() {
    this.balls = new Balls(this.model.get("balls"), (pane) => this.model.get(`${pane}_surface`));
    this.moveBalls();
  }

  // Draws the balls at the step of the time line.
  moveBalls() {
    if (!this.figures) return;
    this.moved = this.balls.at(this.step);
    this.figures.redraw();
  }

  showState() {
    this.el.dataset.state = this.model.get("state");
    this.showHeadline();
    this.showShare();
  }

  // The model as the figures see it: reports of drawn pictures pass through this panel, too.
  layer() {
    const { model } = this;
    return {
      get: (name) => (name in this.moved ? { ...model.get(name), ...this.moved[name] } : model.get(name)),
      on: (event, listener) => model.on(event, listener),
      off: (event, listener) => model.off(event, listener),
      send: (message) => {
        if (message.kind === "shown" && model.get("surface_surface").z) this.still?.remove();
        model.send(message);
      },
    };
  }

  send(name, value) {
    this.model.send({ kind: "set", name, value });
  }

  // Container queries would leave the panel empty in cells that JupyterLab lays out off screen.
  fit() {
    const width = this.el.clientWidth;
    if (!width) return;
    this.el.style.setProperty("--lv-width", `${width}px`);
    this.isNarrow = width < NARROW;
    this.el.classList.toggle("lossviz-narrow", this.isNarrow);
    this.divider.setAttribute("aria-orientation", this.isNarrow ? "horizontal" : "vertical");
    this.el.classList.toggle("lossviz-medium", width >= NARROW && width < WIDE);
  }

  buildStage() {
    this.headline = element("p", { className: "lossviz-headline" });
    this.headline.setAttribute("aria-live", "polite");
    this.chip = element("button", { type: "button", className: "lossviz-trust" });
    this.details = element("div", { className: "lossviz-details", hidden: true, id: `lossviz-details-${this.number}` });
    this.chip.title = "How far the surface can be trusted: show all figures";
    this.chip.setAttribute("aria-controls", this.details.id);
    this.toggle(this.chip, this.details);
    this.network = element("p", { className: "lossviz-network" });
    this.aim = element("button", { type: "button", className: "lossviz-aim", textContent: "⟲" });
    this.aim.title = "Back to the best view of the whole run (R)";
    this.aim.setAttribute("aria-label", "best view of the run");
    this.aim.addEventListener("click", () => this.showWhole());
    this.trials = element("div", { className: "lossviz-trials", hidden: true });
    this.usual = element("button", { type: "button", className: "lossviz-usual", textContent: "the usual picture" });
    this.usual.title = "Beside this surface: one flat plane, as most pictures of loss landscapes have it";
    this.usual.addEventListener("click", () => this.send("beside", this.model.get("values").beside === "none" ? "flat" : "none"));
    const tools = element("div", { className: "lossviz-tools" }, this.chip, this.aim, this.usual, this.trials);
    const above = [this.headline, tools, this.details, this.network];
    this.stage = element("div", { className: "lossviz-stage" }, ...above, this.buildDivider());
    this.showStill();
  }

  // The border between two surfaces, which gives one or the other more room: dragged, or moved by the arrow keys.
  buildDivider() {
    this.divider = element("div", { className: "lossviz-divider", tabIndex: 0, role: "separator" });
    this.divider.title = "Drag: more room for one of the surfaces (double-click: as much for both)";
    const names = { label: "border between the surfaces", valuemin: SHARES[0], valuemax: SHARES[1] };
    for (const [name, value] of Object.entries(names)) this.divider.setAttribute(`aria-${name}`, value);
    this.divide(50);
    this.divider.addEventListener("dblclick", () => this.divide(50));
    this.divider.addEventListener("pointerdown", ({ pointerId }) => this.divider.setPointerCapture(pointerId));
    this.divider.addEventListener("pointermove", (event) => {
      if (!this.divider.hasPointerCapture(event.pointerId)) return;
      const box = this.stage.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width;
      const y = (event.clientY - box.top) / (box.height - NARROW_FIT);
      this.divide(Math.round(100 * (this.isNarrow ? y : x)));
    });
    this.divider.addEventListener("keydown", ({ key }) => {
      const moved = { ArrowLeft: -5, ArrowUp: -5, ArrowRight: 5, ArrowDown: 5, Home: -100, End: 100 }[key];
      if (moved) this.divide(this.firstShare + moved);
    });
    return this.divider;
  }

  // Gives the first of two surfaces a share of the stage, in percent.
  divide(share) {
    this.firstShare = Math.min(SHARES[1], Math.max(SHARES[0], share));
    const parts = { "--lv-first": `${this.firstShare}fr`, "--lv-second": `${100 - this.firstShare}fr`, "--lv-share": this.firstShare / 100 };
    for (const [name, value] of Object.entries(parts)) this.el.style.setProperty(name, value);
    this.divider.setAttribute("aria-valuenow", this.firstShare);
    this.divider.setAttribute("aria-valuetext", `${this.firstShare} % for the first`);
  }

  // Shows a picture of the surface until the surface itself is drawn.
  showStill() {
    const still = this.model.get("still");
    if (!still?.light) return;
    const { dark } = readTheme(this.el.isConnected ? this.el : document.body);
    this.still = element("img", { className: "lossviz-still", src: still[dark ? "dark" : "light"], alt: "" });
    this.stage.append(this.still);
  }

  // Asks for the surface between the ends of the axes; for all of it if they lie beyond it.
  zoomTo(ends) {
    if (!this.model.get("values").bounds) {
      const layout = this.model.get("surface_layout");
      this.whole = [layout["scene.xaxis.range"], layout["scene.yaxis.range"]];
    }
    const isWhole = this.whole && ends.every(([low, high], i) => high - low >= this.whole[i][1] - this.whole[i][0]);
    this.send("bounds", isWhole ? null : ends);
    if (isWhole) this.figures.showEnds(this.whole);
  }

  showWhole() {
    if (this.model.get("values").bounds) this.send("bounds", null);
    this.figures.aim();
  }

  toggle(button, target) {
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => this.open(button, target, target.hidden));
  }

  open(button, target, shown) {
    target.hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
  }

  addControl(row) {
    const id = `lossviz-${this.number}-${row.name}`;
    const hold = (held) => this.model.send({ kind: "hold", held }); // whether a slider is held, and may move on
    const control = new Control(row, id, (name, value) => this.send(name, value), hold);
    this.controls[row.name] = control;
    return control.el;
  }

  placed(place) {
    return this.model.get("controls").filter((row) => row.place === place);
  }

  buildRow() {
    this.row = element("div", { className: "lossviz-row", role: "group" });
    this.row.setAttribute("aria-label", "Controls");
    this.row.append(...this.placed("row").map((row) => this.addControl(row)));
  }

  buildTimeline() {
    this.play = element("button", { type: "button", className: "lossviz-play" });
    this.curve = element("div", { className: "lossviz-curve" });
    this.slider = element("input", { type: "range", autocomplete: "off", className: "lossviz-step", step: 1 });
    this.slider.setAttribute("aria-label", "training step");
    this.stops = element("div", { className: "lossviz-stops" });
    this.ghost = element("output", { className: "lossviz-ghost", hidden: true });
    this.curve.append(this.stops, this.slider, this.ghost);
    this.stepError = element("p", { className: "lossviz-error", hidden: true, role: "alert" });
    this.closer = element("button", { type: "button", className: "lossviz-closer" });
    this.closer.addEventListener("click", () => this.pressCloser());
    const buttons = element("div", { className: "lossviz-buttons" }, this.play, this.closer);
    this.timeline = element("div", { className: "lossviz-timeline" }, buttons, this.curve);
    this.range = element("div", { className: "lossviz-selection", hidden: true });
    this.curve.append(this.range);
    const step = { row: { name: "step" }, input: this.slider };
    this.controls.step = Object.assign(Object.create(Control.prototype), step, {
      error: this.stepError,
      send: (name, value) => this.send(name, value),
      display: (value) => this.showStep(value),
    });
    this.slider.addEventListener("input", () => {
      this.player.pause();
      this.goTo(Number(this.slider.value), true);
    });
    this.player = new Player({
      button: this.play,
      frames: () => this.model.get("timeline").frames || [],
      where: () => this.step,
      go: (step) => this.goTo(step),
      isReady: () => !this.figures.isDrawing(),
    });
    this.slider.addEventListener("pointerdown", (event) => this.startRange(event));
    this.slider.addEventListener("pointermove", (event) => this.showGhost(event));
    this.slider.addEventListener("pointerleave", () => (this.ghost.hidden = true));
  }

  goTo(step, dragging = false) {
    this.controls.step.show(step);
    this.controls.step.choose(step, dragging);
  }

  get step() {
    return Number(this.slider.value);
  }

  showStep(step) {
    const { first = 0, last = 0 } = this.model.get("timeline");
    Object.assign(this.slider, { min: first, max: Math.max(last, first + 1), value: step === null ? last : step });
    this.moveBalls();
    this.showHeadline();
  }

  stepAt(event) {
    const box = this.slider.getBoundingClientRect();
    const inset = 8; // half of the thumb
    const share = (event.clientX - box.left - inset) / (box.width - 2 * inset);
    const { first = 0, last = 0 } = this.model.get("timeline");
    return Math.round(first + Math.min(1, Math.max(0, share)) * (last - first));
  }

  // Shows step and losses under the pointer.
  showGhost(event) {
    const step = this.stepAt(event);
    const losses = this.lossesAt(step);
    this.ghost.hidden = !losses.length || event.buttons > 0;
    this.ghost.textContent = `step ${inWords(step)}: ${losses.join(", ")}`;
    const box = this.curve.getBoundingClientRect();
    this.ghost.style.left = `${Math.min(event.clientX - box.left + 12, box.width - 170)}px`;
  }

  // Chooses a part of the run to draw on a plane of its own: by dragging with Shift, or after a press of "closer". The
  // pointer may end anywhere.
  startRange(event) {
    if (!this.canLookCloser || !(event.shiftKey || this.selecting)) return;
    event.preventDefault();
    const start = this.stepAt(event);
    const box = this.curve.getBoundingClientRect();
    const from = event.clientX;
    const draw = (move) => {
      const [left, right] = [from, move.clientX].sort((a, b) => a - b);
      Object.assign(this.range.style, { left: `${left - box.left}px`, width: `${right - left}px` });
      this.range.hidden = false;
    };
    const end = (up) => {
      window.removeEventListener("pointermove", draw);
      for (const type of ["pointerup", "pointercancel"]) window.removeEventListener(type, end);
      this.range.hidden = true;
      this.selecting = false;
      this.showCloser();
      const part = [start, this.stepAt(up)].sort((a, b) => a - b);
      if (part[1] > part[0] && up.type === "pointerup") this.send("part", part);
    };
    window.addEventListener("pointermove", draw);
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, end);
  }

  get canLookCloser() {
    return "part" in this.model.get("values");
  }

  pressCloser() {
    if (this.model.get("values").part) return this.send("part", null);
    this.selecting = !this.selecting;
    this.showCloser();
  }

  showCloser() {
    const { part } = this.model.get("values");
    this.closer.hidden = !this.canLookCloser;
    this.closer.textContent = part ? "all steps" : "closer";
    this.closer.title = part
      ? `Back from steps ${part.map(inWords).join(" to ")} to the whole run`
      : "Then drag over the curve: those steps are drawn on a plane of their own (or drag with Shift)";
    this.closer.setAttribute("aria-pressed", String(Boolean(this.selecting)));
    this.slider.classList.toggle("lossviz-selecting", Boolean(this.selecting));
  }

  lossesAt(step) {
    const losses = [];
    for (let i = 0; ; i++) {
      const values = this.model.get(`curve_loss${i ? `-${i}` : ""}`);
      if (!values || !values.x) return losses;
      const [x, y] = [decode(values.x), decode(values.y)];
      if (x.length) losses.push(Number(y[findRow(x, step)]).toPrecision(3));
    }
  }

  buildFooter() {
    this.status = element("div", { className: "lossviz-status", role: "status" });
    this.progress = element("progress", { max: 1, value: 0, hidden: true });
    this.progress.setAttribute("aria-label", "progress of the work");
    this.stop = element("button", { type: "button", className: "lossviz-stop", textContent: "Stop", hidden: true });
    this.stop.title = "Stop the current work; a run is kept up to the step that it has reached";
    this.stop.addEventListener("click", () => this.model.send({ kind: "press", button: "stop" }));
    this.footer = element("div", { className: "lossviz-footer" }, this.progress, this.stop, this.status, this.stepError);
  }

  buildDrawer() {
    const groups = ["network", "landscape"].map((place) => [place, this.placed(place)]).filter(([, rows]) => rows.length);
    if (!groups.length) return;
    this.drawer = element("aside", { className: "lossviz-drawer", hidden: true, id: `lossviz-drawer-${this.number}` });
    this.drawer.setAttribute("aria-label", "More settings");
    for (const [place, rows] of groups) {
      const group = element("fieldset", {}, element("legend", { textContent: place }));
      group.append(...rows.map((row) => this.addControl(row)));
      if (place === "network") {
        const train = element("button", { type: "button", className: "lossviz-primary", textContent: "Train" });
        train.title = "Train again with these settings and watch the loss fall";
        train.addEventListener("click", () => this.model.send({ kind: "press", button: "train" }));
        group.append(train);
      }
      this.drawer.append(group);
    }
    this.more = element("button", { type: "button", className: "lossviz-more", textContent: "more" });
    this.more.title = "Network and landscape";
    this.more.setAttribute("aria-controls", this.drawer.id);
    this.toggle(this.more, this.drawer);
    this.more.addEventListener("click", () => this.drawer.hidden || this.drawer.querySelector("select, input").focus());
    this.buildShare();
    this.row.append(this.share, this.more);
    this.stage.append(this.menu, this.drawer);
  }

  showValues() {
    const values = this.model.get("values");
    for (const [name, value] of Object.entries(values)) if (this.controls[name]) this.controls[name].receive(value);
    this.showCloser();
    this.usual.hidden = !("beside" in values);
    this.usual.setAttribute("aria-pressed", String(!this.usual.hidden && values.beside !== "none"));
    if ("plane" in values) {
      const laid = values.plane;
      const why = { parallel: "Parallel planes have no stride.", flat: "A flat plane has no stride." };
      this.controls.k.setReason(why[laid] || "");
      this.controls.sigma.setReason(laid === "flat" ? "A flat plane has no kernels to smooth." : "");
    }
  }

  showErrors() {
    const errors = this.model.get("errors");
    for (const [name, control] of Object.entries(this.controls)) control.showError(errors[name] || "");
    if (errors.part || errors.bounds) this.controls.step.showError(errors.part || errors.bounds);
    const hidden = Object.keys(errors).some((name) => errors[name] && this.drawer?.contains(this.controls[name]?.el));
    if (hidden) this.open(this.more, this.drawer, true);
  }

  showNotes() {
    const notes = this.model.get("notes");
    if (this.controls.k) this.controls.k.setTaken(notes.k || "");
    if (this.controls.sigma && this.controls.sigma.track) {
      const sigma = this.controls.sigma;
      sigma.output.title = notes.sigma || "";
      this.drawWidthErrors(sigma, notes.width_errors);
    }
  }

  // Draws the held-out error of fixed bandwidths behind the σ slider: the lower, the better.
  drawWidthErrors(control, errors) {
    control.track.querySelector("svg")?.remove();
    if (!errors) return;
    const { positions } = control;
    const highest = Math.max(...errors.error.filter(Number.isFinite), errors.auto, 1e-9);
    const points = errors.sigma.map((sigma, i) => [positions.find(sigma), errors.error[i]]);
    const line = points
      .filter(([, error]) => Number.isFinite(error))
      .map(([at, error]) => `${(100 * at) / (positions.count - 1)},${20 - (18 * error) / highest}`);
    const box = element("span");
    box.innerHTML = '<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true"><polyline/></svg>';
    box.querySelector("polyline").setAttribute("points", line.join(" "));
    control.track.prepend(box.firstChild);
    control.track.title = errors.text;
  }

  showWork() {
    const { text = "", bad = false, details = "", progress = null } = this.model.get("work");
    this.status.textContent = text;
    this.status.classList.toggle("lossviz-bad", bad);
    if (details) {
      const more = element("details", {}, element("summary", { textContent: "details" }));
      more.append(element("pre", { textContent: details }));
      this.status.append(" ", more);
    }
    this.progress.hidden = this.stop.hidden = progress === null;
    this.progress.value = progress || 0;
  }

  showReport() {
    const { tiles = [], warnings = [], chip = null, network = "" } = this.model.get("report");
    this.network.textContent = network;
    const list = element("dl");
    for (const [name, value, comment] of tiles) {
      const words = element("dd", { textContent: `${value} ` });
      words.append(element("small", { textContent: comment }));
      list.append(element("div", {}, element("dt", { textContent: name }), words));
    }
    this.details.replaceChildren(list, ...warnings.map((text) => element("p", { textContent: text })));
    this.chip.hidden = !chip;
    if (chip) this.chip.textContent = `${chip.ok ? "●" : "▲"} ${chip.text}`;
    this.chip.classList.toggle("lossviz-doubt", Boolean(chip) && !chip.ok);
    this.showHeadline();
  }

  showTimeline() {
    const { first = 0, last = 0, stops = [], trials = [] } = this.model.get("timeline");
    this.trials.replaceChildren(
      ...trials.map(({ text, settings }) => {
        const button = element("button", { type: "button", textContent: text, title: "Train again with this setting" });
        button.addEventListener("click", () => Object.entries(settings).forEach(([name, value]) => this.send(name, value)));
        return button;
      }),
    );
    this.stops.replaceChildren(
      ...stops.map(({ step, text }) => {
        const button = element("button", { type: "button", textContent: text, title: `Go to step ${inWords(step)}` });
        button.style.left = `${(100 * (step - first)) / Math.max(1, last - first)}%`;
        button.addEventListener("click", () => {
          this.player.pause();
          this.goTo(step);
        });
        return button;
      }),
    );
    this.controls.step.show(this.model.get("values").step ?? null);
  }

  showHeadline() {
    const { last = 0, headlines = [], live = false } = this.model.get("timeline");
    if (this.model.get("state") === "training") return this.headline.replaceChildren("Training …");
    if (!headlines.length && !last) return this.headline.replaceChildren();
    const { step } = this;
    this.trials.hidden = step < last;
    const here = headlines.find(({ start, end }) => start <= step && step <= end);
    const isNewest = live && step >= last; // the training goes on from here
    const count = element("b", { textContent: `Step ${inWords(step)}${isNewest ? "" : ` of ${inWords(last)}`}` });
    this.headline.replaceChildren(count, here ? `: ${here.text}` : "");
    const losses = this.lossesAt(step).join(", ");
    this.slider.setAttribute("aria-valuetext", `step ${step}, loss ${losses}${here ? `, ${here.text}` : ""}`);
  }

  async copy(text) {
    this.codeText.textContent = text;
    this.codeText.hidden = false;
    let copied = false;
    try {
      await navigator.clipboard.writeText(text);
      copied = true;
    } catch {
      getSelection().selectAllChildren(this.codeText); // without permission: selected, to copy by hand
    }
    this.code.textContent = copied ? "copied ✓" : "selected: press Ctrl + C";
    setTimeout(() => (this.code.textContent = "code"), 2500);
  }

  handleKey(event) {
    const typing = /^(text|select-one|textarea)$/.test(event.target.type || "");
    if (event.key === "Escape") {
      if (!this.details.hidden) this.open(this.chip, this.details, false);
      if (this.drawer && !this.drawer.hidden) {
        this.open(this.more, this.drawer, false);
        this.more.focus();
      }
      this.closeShare();
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // Enter in a field would select the notebook's cell
    if (typing) return;
    const inButton = ["BUTTON", "SUMMARY", "PRE"].includes(event.target.tagName);
    const chip = this.controls.target?.chips[Number(event.key) - 1];
    if (event.key === " " && !inButton) this.play.click();
    else if (event.key === "r") this.showWhole();
    else if (chip) chip.click();
    else if (event.key === "l" && this.controls.loss_axis) {
      const axis = this.controls.loss_axis;
      axis.show(axis.value === "log" ? "linear" : "log");
      axis.choose(axis.value);
    } else if (event.key === "[") this.mark = this.step;
    else if (event.key === "]" && this.mark < this.step) this.send("part", [this.mark, this.step]);
    else return;
    event.preventDefault();
  }

  close() {
    this.player.pause();
    this.sizes.disconnect();
    this.el.removeEventListener("keydown", this.onKey);
    window.removeEventListener("keydown", this.onAnyKey, true);
    for (const [event, listener] of Object.entries(this.listeners)) this.model.off(event, listener);
    this.figures.close();
    URL.revokeObjectURL(this.link?.href);
  }

  // The menu of what can be shared. Files are made by the kernel, sent to the view that has asked, and saved by the
  // browser.
  buildShare() {
    this.asker = Math.random().toString(36).slice(2);
    this.menu = element("div", { className: "lossviz-share", hidden: true, id: `lossviz-share-${this.number}`, role: "group" });
    this.menu.setAttribute("aria-label", "Share");
    this.notReady = element("p", { textContent: "Picture, page and film: once the landscape is complete." });
    this.saved = element("p", { className: "lossviz-saved", role: "status" });
    this.link = element("a", {});
    this.menu.append(...Object.entries(SHARED).map(([kind, words]) => this.buildShared(kind, words)));
    this.code = this.shared.code;
    this.codeText = element("pre", { className: "lossviz-code", hidden: true, tabIndex: 0 });
    this.menu.append(this.codeText, this.notReady, this.saved);
    this.share = element("button", { type: "button", className: "lossviz-sharer", textContent: "share" });
    this.share.append(element("span", { textContent: " ▾", "aria-hidden": "true" }));
    this.share.title = "A picture, a page, a film, or code";
    this.share.setAttribute("aria-controls", this.menu.id);
    this.toggle(this.share, this.menu);
    this.share.addEventListener("click", () => {
      if (this.menu.hidden) return;
      this.open(this.more, this.drawer, false);
      this.menu.querySelector("button:enabled").focus();
    });
    this.more.addEventListener("click", () => this.open(this.share, this.menu, false));
  }

  buildShared(kind, words) {
    const button = element("button", { type: "button", textContent: kind });
    const hint = element("span", { textContent: words, id: `${this.menu.id}-${kind}` });
    const error = element("p", { className: "lossviz-error", id: `${hint.id}-error`, hidden: true, role: "alert" });
    button.setAttribute("aria-describedby", `${hint.id} ${error.id}`);
    const ask = kind === "code" ? { kind: "press", button: "code" } : { kind: "share", file: kind, asker: this.asker };
    button.addEventListener("click", () => this.model.send(ask));
    const showError = (text) => Object.assign(error, { textContent: text, hidden: !text });
    this.shared = { ...this.shared, [kind]: button };
    this.controls[kind] = { showError };
    return element("div", { className: "lossviz-shared" }, button, hint, error);
  }

  showShare() {
    if (!this.menu) return;
    const unfinished = this.model.get("unfinished").includes(this.model.get("state"));
    this.notReady.hidden = !unfinished;
    for (const [kind, button] of Object.entries(this.shared)) button.disabled = unfinished && kind !== "code";
  }

  closeShare() {
    if (!this.menu || this.menu.hidden) return;
    this.open(this.share, this.menu, false);
    this.share.focus();
  }

  receive(message, buffers) {
    if (message.kind === "copy") this.copy(message.text);
    else if (message.kind === "file" && message.asker === this.asker) this.save(message, buffers[0]);
  }

  // Saves a file. The link stays, for browsers that save nothing without a click.
  save({ name, type }, data) {
    URL.revokeObjectURL(this.link.href);
    const link = { href: URL.createObjectURL(new Blob([data], { type })), download: name, textContent: name };
    Object.assign(this.link, link);
    this.saved.replaceChildren("Saved as ", this.link);
    this.link.click();
  }
}
