// The view of `Picture`: Plotly figures side by side. Arrays come as binary buffers, one part for each trace, and only
// the newest state is drawn. Nothing is computed here but what belongs to the page: its theme, its width, its pointer,
// and the camera, which is one for all panes in 3D.
const Plotly = module.exports;

const ARRAYS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
const THEMES = {
  light: { ink: "#22303c", dim: "#9aa5ae", grid: "#dfe5ea" },
  dark: { ink: "#d7dfe6", dim: "#7c8790", grid: "#46525c" },
};
const CONFIG = { displaylogo: false, showSendToCloud: false, toImageButtonOptions: { filename: "loss_viz", scale: 2 } };
const STILL = 4; // pixels: a press that moves less is a click, more is a turn of the camera
const REST = 12; // frames: a scene glides on for some after the pointer's last move

function decode(value) {
  if (!(value && value.data instanceof DataView)) return value;
  const { dtype, shape, data } = value;
  const flat = new ARRAYS[dtype](data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
  if (shape.length < 2) return flat;
  return Array.from({ length: shape[0] }, (_, i) => flat.subarray(i * shape[1], (i + 1) * shape[1]));
}

function readTheme(el) {
  let rgb = [255, 255, 255];
  for (let node = el; node; node = node.parentElement) {
    const numbers = getComputedStyle(node).backgroundColor.match(/[\d.]+/g) || [0, 0, 0, 0]; // none outside the page
    const [r, g, b, alpha = 1] = numbers.map(Number);
    if (alpha > 0) {
      rgb = [r, g, b];
      break;
    }
  }
  const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128;
  return { paper: rgb, dark, ...THEMES[dark ? "dark" : "light"] };
}

// Colours laid over the paper; the fourth value of each says how much of the colour is left.
function mix(rgba, paper) {
  return rgba.map(([r, g, b, a]) => {
    const over = (value, i) => Math.round((value * a + paper[i] * (255 - a)) / 255);
    return `rgb(${over(r, 0)},${over(g, 1)},${over(b, 2)})`;
  });
}

class Pane {
  constructor(model, name, listeners) {
    Object.assign(this, { model, name, ...listeners, seen: {}, laid: {}, paint: {} });
    Object.assign(this, { opened: false, ready: false, drawn: false, closed: false, held: false });
    this.gd = document.createElement("div");
    this.gd.className = `lossviz-pane lossviz-pane-${name}`;
    this.press = (event) => Object.assign(this, { held: true, at: [event.clientX, event.clientY], found: null });
    this.release = (event) => {
      if (!this.held) return;
      const moved = Math.hypot(event.clientX - this.at[0], event.clientY - this.at[1]);
      Object.assign(this, { held: false, still: moved < STILL });
      this.keepCamera();
      this.onTurn(this);
      if (this.found && this.still) this.tell(this.found);
      this.onFree();
    };
    this.gd.addEventListener("pointerdown", this.press, true);
    // Plotly has events for turns and wheels, but fires them before its camera moves, and some of them without it.
    this.gd.addEventListener("pointermove", (event) => {
      if (!event.buttons) this.release(event); // released off the window
      else if (this.held) this.onTurn(this);
    });
    this.gd.addEventListener("wheel", () => this.onTurn(this), { passive: true });
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, this.release, true);
  }

  // Makes the figure, when it is first in the page: each scene costs a WebGL context, of which a page has few.
  open() {
    if (this.opened) return;
    this.opened = true;
    const { data, layout } = JSON.parse(JSON.stringify(this.model.get("panes")[this.name]));
    this.traces = data.map((trace) => trace.uid || trace.name);
    this.parts = [...this.traces.map((trace) => `${this.name}_${trace}`), `${this.name}_layout`];
    this.inked = data.map((trace) => trace.meta === "ink");
    Plotly.newPlot(this.gd, data, layout, CONFIG).then(() => {
      if (this.closed) return;
      this.ready = true;
      this.keepMode();
      this.gd.on("plotly_click", (event) => this.hit(event.points[0]));
      this.gd.on("plotly_relayout", (event) => "scene.camera" in event && this.onTurn(this)); // by the mode bar
      this.onFree();
    });
  }

  // In 3D Plotly finds the point when the button goes down, before it is known whether a turn follows; in 2D after it.
  hit(point) {
    const trace = this.traces[point.curveNumber];
    const found = { pane: this.name, trace, index: point.pointNumber, x: point.x, y: point.y };
    if (this.held) this.found = found;
    else if (this.still) this.tell(found);
  }

  tell(found) {
    this.found = null;
    this.model.send({ kind: "click", ...found });
  }

  get scene() {
    const layout = this.gd._fullLayout;
    return layout && layout.scene && layout.scene._scene;
  }

  // At each redraw Plotly sets the mode of its camera anew, and with it the view that will be in half a second; turns
  // before that are dropped, and of a ball that rolls all of them may be. What is set already is left alone here.
  keepMode() {
    const { scene } = this;
    if (!scene) return;
    const updateFx = scene.updateFx;
    scene.updateFx = (dragmode, hovermode) => {
      const { mode, keyBindingMode } = scene.camera;
      const upright = scene.fullSceneLayout.camera.up.z === 1;
      if (upright && mode === dragmode && keyBindingMode === "rotate") scene.fullSceneLayout.hovermode = hovermode;
      else updateFx.call(scene, dragmode, hovermode);
    };
  }

  // Plotly notes a turn only when the button is released over its canvas; without this the next redraw undoes it.
  keepCamera() {
    if (this.scene) this.scene.saveLayout(this.gd.layout);
  }

  // Takes the camera of another pane, at once and without a redraw. `relayout` would do it too, but it fires the event
  // that tells of a turn, so that panes would lead one another back.
  look(camera) {
    if (!this.scene || !camera || this.held) return;
    this.scene.setViewport({ camera, aspectratio: this.scene.fullSceneLayout.aspectratio });
    this.keepCamera();
  }

  themeEdits(theme) {
    const layout = { "font.color": theme.ink, "modebar.color": theme.dim, "modebar.activecolor": theme.ink };
    for (const key of Object.keys(this.gd._fullLayout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[`${key}.gridcolor`] = theme.grid;
      if (key === "scene") for (const axis of ["xaxis", "yaxis", "zaxis"]) layout[`scene.${axis}.gridcolor`] = theme.grid;
    }
    return layout;
  }

  // Only what is new: a camera or a range that was set once belongs to the user from then on.
  changeLayout(layout, values) {
    for (const [key, value] of Object.entries(values)) {
      if (JSON.stringify(this.laid[key]) === JSON.stringify(value)) continue;
      this.laid[key] = layout[key] = value;
    }
  }

  // Brings the figure up to date; false if it cannot be now. A new scene looks as those do that were there before it.
  async draw(theme, camera) {
    if (!this.ready || this.held) return false;
    const { gd, model } = this;
    const traces = {};
    const layout = {};
    const edit = (i, key, value) => ((traces[key] = traces[key] || Array(gd.data.length).fill(undefined))[i] = value);
    this.parts.forEach((part, i) => {
      const values = model.get(part);
      if (this.seen[part] === values) return;
      this.seen[part] = values;
      if (i === gd.data.length) return this.changeLayout(layout, values);
      for (const [key, value] of Object.entries(values)) {
        if (key === "rgba") this.paint[i] = decode(value);
        else edit(i, key, decode(value));
      }
      if (this.paint[i]) edit(i, "vertexcolor", mix(this.paint[i], theme.paper));
    });
    if (this.theme !== theme) {
      this.theme = theme;
      Object.assign(layout, this.themeEdits(theme));
      for (const i of Object.keys(this.paint)) edit(i, "vertexcolor", mix(this.paint[i], theme.paper));
      this.inked.forEach((inked, i) => inked && edit(i, "line.color", theme.ink));
    }
    if (!Object.keys(traces).length && !Object.keys(layout).length) return true;
    if (!this.drawn && camera) {
      delete layout["scene.camera"];
      this.look(camera);
    }
    this.drawn = true;
    this.keepCamera();
    await Plotly.update(gd, traces, layout, [...gd.data.keys()]);
    if (layout["scene.camera"] || !camera) this.onSet(this);
    return true;
  }

  resize() {
    if (this.gd._fullLayout && this.gd.clientWidth) Plotly.Plots.resize(this.gd);
  }

  close() {
    Object.assign(this, { ready: false, closed: true });
    for (const type of ["pointerup", "pointercancel"]) window.removeEventListener(type, this.release, true);
    if (this.opened) Plotly.purge(this.gd);
  }
}

function render({ model, el }) {
  el.classList.add("lossviz-picture");
  const badge = el.appendChild(document.createElement("div"));
  badge.className = "lossviz-badge";
  let dirty = false;
  let drawing = false;
  let closed = false;
  let theme = readTheme(el);
  const ask = async () => {
    dirty = true;
    if (drawing) return;
    drawing = true;
    while (dirty && !closed) {
      dirty = false;
      arrange();
      const serial = model.get("serial");
      let current = true;
      for (const pane of shown) {
        current = (await pane.draw(theme, camera)) && current;
        await new Promise((go) => setTimeout(go)); // let the page show it before the next
      }
      if (current && !dirty) showState();
      if (current) model.send({ kind: "shown", serial });
    }
    drawing = false;
  };
  const showState = () => {
    badge.textContent = model.get("state");
    el.classList.toggle("lossviz-stale", Boolean(model.get("state")));
    el.setAttribute("aria-busy", String(Boolean(model.get("state"))));
  };
  const warn = () => model.get("state") && showState(); // that all is well is said when it is on screen
  const showSummary = () => el.setAttribute("aria-label", model.get("summary"));
  const retheme = () => {
    const now = readTheme(el);
    if (String(now.paper) === String(theme.paper)) return;
    theme = now;
    ask();
  };
  const copy = (message) => {
    if (message.kind === "copy" && navigator.clipboard) navigator.clipboard.writeText(message.text).catch(() => {});
  };

  let shown = [];
  // A pane that is hidden is not in the page at all, and left as it is until it comes back.
  const arrange = () => {
    shown = panes.filter((pane) => !model.get("hidden").includes(pane.name));
    panes.forEach((pane) => shown.includes(pane) || pane.gd.remove());
    shown.forEach((pane, i) => {
      if (pane.gd.parentNode === el) return;
      (i ? shown[i - 1].gd : badge).after(pane.gd);
      if (pane.drawn) pane.look(camera);
    });
    el.dataset.shown = shown.map((pane) => pane.name).join(" ");
    shown.forEach((pane) => pane.open()); // when all have their places, and so their sizes
  };

  let camera = null; // of all scenes
  let leader = null; // the pane that was turned last, until it rests
  let rested = 0;
  const lead = (pane) => {
    const now = pane.scene && pane.scene.getCamera();
    if (!now || JSON.stringify(now) === JSON.stringify(camera)) return false;
    camera = now;
    pane.keepCamera();
    shown.forEach((other) => other !== pane && other.drawn && other.look(camera));
    return true;
  };
  const follow = () => {
    if (closed) return;
    rested = lead(leader) ? 0 : rested + 1;
    if (rested < REST) requestAnimationFrame(follow);
    else leader = null;
  };
  const turn = (pane) => {
    if (!pane.scene) return;
    if (!leader) requestAnimationFrame(follow); // by then Plotly has heard of the event too
    leader = pane;
    rested = 0;
  };

  const listeners = { onFree: ask, onTurn: turn, onSet: lead };
  const panes = Object.keys(model.get("panes")).map((name) => new Pane(model, name, listeners));
  el.setAttribute("role", "figure");
  el.setAttribute("aria-busy", "true");
  warn();
  showSummary();
  model.on("change:serial", ask);
  model.on("change:hidden", ask);
  model.on("change:state", warn);
  model.on("change:summary", showSummary);
  model.on("msg:custom", copy);
  const sizes = new ResizeObserver((changes) => {
    retheme(); // before it is in the page its background is not known
    const changed = changes.map((change) => change.target);
    panes.forEach((pane) => changed.includes(pane.gd) && pane.resize());
  });
  [el, ...panes.map((pane) => pane.gd)].forEach((node) => sizes.observe(node));
  const looks = new MutationObserver(() => requestAnimationFrame(retheme));
  for (const node of [document.documentElement, document.body]) looks.observe(node, { attributes: true });
  ask();

  return () => {
    closed = true;
    sizes.disconnect();
    looks.disconnect();
    model.off("change:serial", ask);
    model.off("change:hidden", ask);
    model.off("change:state", warn);
    model.off("change:summary", showSummary);
    model.off("msg:custom", copy);
    panes.forEach((pane) => pane.close());
  };
}

export default { render };
