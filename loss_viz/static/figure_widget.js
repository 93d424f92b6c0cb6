// Front end of `LiveFigures`: Plotly figures side by side. Arrays arrive as binary buffers, one update per trace, and
// only the newest state is drawn. The browser decides only what belongs to it: theme, sizes, pointer events, and the
// camera that all 3D panes share.
let Plotly = null; // set by the script that this is a part of
let loading = Promise.resolve(); // until it is set

const ARRAYS = {
  ...{ float32: Float32Array, float64: Float64Array },
  ...{ uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array },
};
const THEMES = {
  light: { ink: "#22303c", dim: "#9aa5ae", grid: "#dfe5ea" },
  dark: { ink: "#d7dfe6", dim: "#7c8790", grid: "#46525c" },
};
const DARK = 140; // luminance below which lines on a surface are white
const CONFIG = { displaylogo: false, showSendToCloud: false, toImageButtonOptions: { filename: "loss_viz", scale: 2 } };
const CLICK_RADIUS = 4; // pixels: a press that moves less is a click, otherwise a camera drag
const HOVER_MS = 150; // between two points of the surface that are asked for
const MOVING_MS = 500; // between two pictures of a movement
const REST_MS = 200; // without new pictures, until words and axes follow
const ZOOM_SPEED = 0.002; // per pixel of the wheel
const SETTLE_FRAMES = 12; // a scene keeps moving for some frames after the last pointer event

function decode(value) {
  if (!(value && value.data instanceof DataView)) return value;
  const { dtype, shape, data } = value;
  const flat = new ARRAYS[dtype](data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
  if (shape.length < 2) return flat;
  return Array.from({ length: shape[0] }, (_, i) => flat.subarray(i * shape[1], (i + 1) * shape[1]));
}

// Decodes the arrays anywhere inside a value.
function decodeAll(value) {
  if (Array.isArray(value)) return value.map(decodeAll);
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  if (value.data instanceof DataView) return decode(value);
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, decodeAll(one)]));
}

// Drawn by the traces themselves, without a layout of the figure.
const DIRECT = new Set(["x", "y", "z", "i", "j", "k", "customdata", "vertexcolor", "line.color"]);

function setAt(target, [name, ...rest], value) {
  if (rest.length) setAt((target[name] = target[name] || {}), rest, value);
  else target[name] = value;
}

function isWithin(values, axis) {
  const [low, high] = [...axis.range].sort((a, b) => a - b);
  return values.every((value) => low <= axis.d2l(value) && axis.d2l(value) <= high);
}

function readTheme(el) {
  let rgb = [255, 255, 255];
  for (let node = el; node; node = node.parentElement) {
    const numbers = getComputedStyle(node).backgroundColor.match(/[\d.]+/g) || [0, 0, 0, 0]; // empty while detached
    const [r, g, b, alpha = 1] = numbers.map(Number);
    if (alpha > 0) {
      rgb = [r, g, b];
      break;
    }
  }
  const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128;
  return { paper: rgb, dark, ...THEMES[dark ? "dark" : "light"] };
}

// Blends RGBA colors over the paper. WebGL meshes take opaque vertex colors only.
function mix(rgba, paper) {
  const over = (value, a, i) => Math.round((value * a + paper[i] * (255 - a)) / 255);
  return Array.from(rgba, ([r, g, b, a]) => [over(r, a, 0), over(g, a, 1), over(b, a, 2)]);
}

const toCss = ([r, g, b]) => `rgb(${r},${g},${b})`;

// Returns the color of a line on a background, like Python's `level_traces`.
const standOut = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b < DARK ? "#ffffff" : THEMES.light.ink);

class Pane {
  constructor(model, name, listeners) {
    Object.assign(this, { model, name, ...listeners, drawnUpdates: {}, appliedLayout: {}, vertexColors: {} });
    Object.assign(this, { drewAt: -Infinity, isDraft: false });
    this.waiting = {}; // changes of the layout that are not yet drawn
    this.behind = new Map(); // values by trace that Plotly's own copy does not have: it would draw the old ones again
    this.pending = null; // promises of Plotly
    Object.assign(this, { opened: false, ready: false, drawn: false, closed: false, held: false });
    this.gd = document.createElement("div");
    this.gd.className = `lossviz-pane lossviz-pane-${name}`;
    this.onPress = (event) => Object.assign(this, { held: true, at: [event.clientX, event.clientY], found: null });
    this.onRelease = (event) => {
      if (!this.held) return;
      const moved = Math.hypot(event.clientX - this.at[0], event.clientY - this.at[1]);
      Object.assign(this, { held: false, clicked: moved < CLICK_RADIUS });
      this.keepCamera();
      this.onCameraMove(this);
      if (this.found && this.clicked) this.sendClick(this.found);
      this.onReady();
    };
    this.gd.addEventListener("pointerdown", this.onPress, true);
    // Plotly fires its own camera events before the camera moves, and for some moves not at all.
    this.gd.addEventListener("pointermove", (event) => {
      if (!event.buttons) this.onRelease(event); // released outside the window
      else if (this.held) this.onCameraMove(this);
    });
    // The wheel scrolls the page; with Ctrl it zooms: into the picture where that can be computed again, else by the
    // camera.
    const onWheel = (event) => {
      if (!event.ctrlKey) event.stopPropagation();
      else if (this.onZoom && this.scene) this.zoom(event);
      else this.onCameraMove(this);
    };
    this.gd.addEventListener("wheel", onWheel, { passive: false, capture: true });
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, this.onRelease, true);
  }

  // Prepares the figure when the pane is first shown: each 3D scene takes one of the few WebGL contexts of a page. It is
  // created with the arrays that have arrived by then, because Plotly takes as long to draw them into an empty one.
  open() {
    if (this.opened) return;
    this.opened = true;
    const { data, layout } = JSON.parse(JSON.stringify(this.model.get("panes")[this.name]));
    Object.assign(this, { data, layout });
    this.traces = data.map((trace) => trace.uid || trace.name);
    this.updates = [...this.traces.map((trace) => `${this.name}_${trace}`), `${this.name}_layout`];
    this.themeColors = data.map(({ meta }) => ["ink", "paper"].includes(meta) && meta); // of lines and words
    this.isText = data.map(({ mode }) => mode === "text");
    this.liesOnSurface = data.map(({ name }) => ["levels", "level names"].includes(name)); // hidden while that changes
    this.isLate = data.map(({ name }, i) => this.liesOnSurface[i] || name === "casing"); // may follow once the pictures rest
    loading.then(() => {
      if (this.closed) return;
      this.ready = true;
      this.onReady();
    });
  }

  async create(edits, layout, camera) {
    for (const [i, values] of edits) for (const [key, value] of Object.entries(values)) setAt(this.data[i], key.split("."), value);
    for (const [key, value] of Object.entries(layout)) setAt(this.layout, key.split("."), value);
    if (camera && this.layout.scene) this.layout.scene.camera = camera;
    await this.follow(Plotly.newPlot(this.gd, this.data, this.layout, CONFIG));
    if (this.closed) return;
    this.keepDragMode();
    this.gd.on("plotly_click", (event) => this.onPoint(event.points[0]));
    this.gd.on("plotly_hover", (event) => this.sendHover(event.points[0]));
    this.gd.on("plotly_relayout", (event) => "scene.camera" in event && this.onCameraMove(this)); // from the mode bar
  }

  // Plotly reports a 3D point on mouse down, before it is clear whether a drag follows; a 2D point on mouse up.
  onPoint(point) {
    const trace = this.traces[point.curveNumber];
    const found = { pane: this.name, trace, index: point.pointNumber, x: point.x, y: point.y };
    if (this.held) this.found = found;
    else if (this.clicked) this.sendClick(found);
  }

  // Scales the axes around the point under the pointer, and reports their ends once the wheel rests.
  zoom(event) {
    event.preventDefault();
    event.stopPropagation();
    const names = ["xaxis", "yaxis"];
    const ends = this.zooming?.ends || names.map((name) => this.gd._fullLayout.scene[name].range);
    const factor = Math.exp(ZOOM_SPEED * Math.max(-100, Math.min(100, event.deltaY)));
    const at = this.pointed || ends.map(([low, high]) => (low + high) / 2);
    const next = ends.map(([low, high], i) => [low, high].map((end) => at[i] + (end - at[i]) * factor));
    clearTimeout(this.zooming?.rest);
    const rest = setTimeout(() => {
      this.zooming = null;
      this.onZoom(next);
    }, REST_MS);
    const isQueued = this.zooming?.isQueued;
    this.zooming = { ends: next, rest, isQueued: true };
    if (isQueued) return;
    requestAnimationFrame(() => this.showEnds(this.zooming ? Object.assign(this.zooming, { isQueued: false }).ends : next));
  }

  showEnds(ends) {
    this.keepCamera();
    const ranges = { "scene.xaxis.range": ends[0], "scene.yaxis.range": ends[1] };
    for (const [key, value] of Object.entries(ranges)) this.appliedLayout[key] = value;
    this.follow(Plotly.relayout(this.gd, ranges));
  }

  // Asks for the network at a point of the surface; not more often than it can be drawn.
  sendHover(point) {
    if (Number.isFinite(point.z)) this.pointed = [point.x, point.y];
    if (this.traces[point.curveNumber] !== "surface" || !Number.isFinite(point.x)) return;
    if (this.held || performance.now() - (this.hovered || 0) < HOVER_MS) return;
    this.hovered = performance.now();
    this.model.send({ kind: "hover", x: point.x, y: point.y });
  }

  sendClick(found) {
    this.found = null;
    this.model.send({ kind: "click", ...found });
  }

  get scene() {
    const layout = this.gd._fullLayout;
    return layout && layout.scene && layout.scene._scene;
  }

  // Plotly sets the drag mode at every redraw, which pins the view for half a second and drops drags in between; while
  // the ball is playing that may be all of them. So skip the call when the mode is already set.
  keepDragMode() {
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

  // Plotly saves the camera only if the button is released over its canvas; otherwise the next redraw resets it.
  keepCamera() {
    if (this.scene) this.scene.saveLayout(this.gd.layout);
  }

  // Takes the camera of another pane, at once and without a redraw. `relayout` would fire the event of a camera move,
  // and the panes would trigger each other.
  setCamera(camera) {
    if (!this.scene || !camera || this.held) return;
    this.scene.setViewport({ camera, aspectratio: this.scene.fullSceneLayout.aspectratio });
    this.keepCamera();
  }

  themeEdits(theme) {
    const layout = { "font.color": theme.ink, "modebar.color": theme.dim, "modebar.activecolor": theme.ink };
    for (const key of Object.keys(this.gd._fullLayout || this.layout)) {
      if (/^[xy]axis\d*$/.test(key)) layout[`${key}.gridcolor`] = theme.grid;
      if (key === "scene") for (const axis of ["xaxis", "yaxis", "zaxis"]) layout[`scene.${axis}.gridcolor`] = theme.grid;
    }
    return layout;
  }

  // Applies new values only: a camera or range that has been set may since have been changed by the user.
  changeLayout(layout, values) {
    for (const [key, value] of Object.entries(values)) {
      if (JSON.stringify(this.appliedLayout[key]) === JSON.stringify(value)) continue;
      this.appliedLayout[key] = layout[key] = value;
    }
  }

  // Draws the pending updates; false if that is not possible now. A new scene starts with the shared camera; one that
  // the user has turned keeps it.
  async draw(theme, camera, turned) {
    if (!this.ready || this.held) return false;
    const { model } = this;
    const edits = new Map(); // new values by trace
    const layout = {};
    const edit = (i, values) => edits.set(i, { ...edits.get(i), ...values });
    this.updates.forEach((name, i) => {
      const [values, drawn] = [model.get(name), this.drawnUpdates[name] || {}];
      if (drawn === values) return;
      this.drawnUpdates[name] = values;
      if (i === this.data.length) return this.changeLayout(layout, values);
      for (const [key, value] of Object.entries(values)) {
        if (drawn[key] === value) continue;
        if (key === "rgba") this.vertexColors[i] = decode(value);
        else edit(i, { [key]: decode(value) });
      }
      if (this.vertexColors[i] && drawn.rgba !== values.rgba) edit(i, this.paint(i, theme));
    });
    if (this.theme !== theme) {
      this.theme = theme;
      Object.assign(layout, this.themeEdits(theme));
      for (const i of Object.keys(this.vertexColors)) edit(Number(i), this.paint(i, theme));
      const colors = { ink: theme.ink, paper: toCss(theme.paper) };
      this.themeColors.forEach((name, i) => name && edit(i, { "line.color": colors[name] }));
    }
    if (layout["scene.camera"]) this.aimed = layout["scene.camera"];
    if (turned) delete layout["scene.camera"];
    if (!this.drawn && camera) delete layout["scene.camera"];
    if (this.drawn && this.canWait(layout) && this.drawDirectly(edits)) {
      Object.assign(this.waiting, layout);
      return true;
    }
    return this.drawFully(edits, layout, camera);
  }

  // Returns the colors of a surface, or those of lines and words on it.
  paint(i, theme) {
    const colors = mix(this.vertexColors[i], theme.paper);
    if (this.data[i].type === "mesh3d") return { vertexcolor: colors.map(toCss) };
    return { [this.isText[i] ? "textfont.color" : "line.color"]: colors.map(standOut) };
  }

  // Draws traces and layout by Plotly's public function, which lays out and draws the whole figure.
  async drawFully(edits, layout, camera) {
    Object.assign(layout, { ...this.waiting, ...layout });
    for (const [i, values] of this.behind) edits.set(i, { ...values, ...edits.get(i) });
    this.waiting = {};
    this.behind = new Map();
    if (!this.ready || (this.drawn && !edits.size && !Object.keys(layout).length)) return true;
    const isFirst = !this.drawn;
    this.drawn = true;
    this.keepCamera();
    const show = () => this.liesOnSurface.forEach((lies, i) => lies && this.showOnSurface(i, true));
    if (isFirst) await this.create(edits, layout, camera);
    else await this.update(edits, layout, show);
    if (this.closed) return false;
    show(); // what is new
    if (layout["scene.camera"] || !camera) this.onCameraSet(this);
    return true;
  }

  async update(edits, layout, show) {
    const { gd } = this;
    const traces = {};
    for (const [i, values] of edits) {
      for (const [key, value] of Object.entries(values)) {
        (traces[key] = traces[key] || Array(gd.data.length).fill(undefined))[i] = value;
      }
    }
    show();
    await this.follow(Plotly.update(gd, traces, layout, [...gd.data.keys()]));
  }

  // Whether changes of the layout may be drawn some moments after those of the traces: words, and how far the axes of
  // losses and factors reach.
  canWait(layout) {
    const { type } = this.gd._fullLayout.scene?.zaxis || {};
    return Object.entries(layout).every(
      ([key, value]) =>
        ["title.text", "yaxis2.range"].includes(key) || (key.startsWith("scene.zaxis.") && (key !== "scene.zaxis.type" || value === type)),
    );
  }

  // Hands new arrays to the drawings of the traces themselves, which takes a tenth of the time; false, with nothing
  // changed, where a trace is hidden or this version of Plotly is built differently.
  drawDirectly(edits) {
    const { gd } = this;
    const draws = [];
    const waiting = [...edits.keys()].filter((i) => this.isLate[i]);
    for (const [i, values] of edits) {
      if (this.isLate[i]) continue;
      const drawing = this.scene ? this.findMesh(i) : this.findPath(i, values);
      const isEmpty = (values.x || gd._fullData[i].x || []).length === 0;
      if (!drawing || isEmpty || !Object.keys(values).every((key) => DIRECT.has(key))) return false;
      draws.push(() => {
        for (const trace of [gd.data[i], gd._fullData[i]]) {
          for (const [key, value] of Object.entries(values)) setAt(trace, key.split("."), value);
        }
        drawing(gd._fullData[i]);
      });
    }
    try {
      draws.forEach((draw) => draw());
      waiting.forEach((i) => this.liesOnSurface[i] && this.showOnSurface(i, false));
      const late = this.scene ? waiting : edits.keys();
      for (const i of late) this.behind.set(i, { ...this.behind.get(i), ...edits.get(i) });
      if (!this.scene || !draws.length) return true;
      const now = performance.now();
      if (now - this.drewAt < MOVING_MS) this.draft();
      this.drewAt = now;
      this.scene.glplot.redraw();
      return true;
    } catch {
      return false;
    }
  }

  // Shows or hides lines and words of a trace, which take long to draw. Words are drawn in front of everything, because
  // a number of which the surface hides a part reads as another one.
  showOnSurface(i, areShown) {
    const { glplot, traces } = this.scene || {};
    const { textMarkers, linePlot } = traces?.[this.gd._fullData[i].uid] || {};
    for (const part of [textMarkers, linePlot]) {
      if (!part || part.areShown === areShown) continue;
      const isNew = !("areShown" in part);
      part.areShown = areShown;
      for (const name of isNew ? ["draw", "drawTransparent"] : []) {
        const draw = part[name];
        part[name] = function (camera) {
          if (!this.areShown) return;
          if (this === textMarkers) this.gl.depthRange(0, 0);
          draw.call(this, camera);
          if (this === textMarkers) this.gl.depthRange(0, 1);
        };
      }
      if (isNew && part === textMarkers) this.keepTextSize(part);
      glplot.redraw(); // which draws at once
    }
  }

  // Plotly divides the size of words that it has not drawn before by the ratio of the last picture.
  keepTextSize(textMarkers) {
    const { update } = textMarkers;
    textMarkers.update = (options) => {
      textMarkers.pixelRatio = 1; // as in the first update; each picture sets it again
      update.call(textMarkers, options);
    };
  }

  // Draws less while pictures follow each other: fewer pixels where WebGL has no GPU, which doubles the number of pictures,
  // and nothing a second time to know what is under the pointer, for which Plotly waits until all of it is drawn.
  draft() {
    this.isDraft = true;
    for (const object of this.scene.glplot.objects) object.dirty = false; // which asks for the second time only
    if (this.movingRatio === undefined) {
      const { gl } = this.scene.glplot;
      const names = gl.getExtension("WEBGL_debug_renderer_info");
      const hasNoGpu = names && /swiftshader|llvmpipe|software/i.test(gl.getParameter(names.UNMASKED_RENDERER_WEBGL));
      this.movingRatio = hasNoGpu ? 0.7 : 1; // asking takes as long as a picture
    }
    this.setPixelRatio(this.movingRatio);
  }

  setPixelRatio(ratio) {
    const { glplot } = this.scene;
    const { canvas, pixelRatio } = glplot;
    if (ratio === pixelRatio) return;
    const [width, height] = [canvas.width, canvas.height].map((side) => Math.round((side / pixelRatio) * ratio));
    Object.assign(glplot, { pixelRatio: ratio });
    Object.assign(canvas, { width, height });
  }

  // Draws what has waited until the pictures rest.
  async settle(camera) {
    if (this.isDraft) {
      this.isDraft = false;
      this.setPixelRatio(this.gd._context.plotGlPixelRatio);
      this.scene.glplot.update();
      this.scene.glplot.redraw();
    }
    await this.drawFully(new Map(), {}, camera);
  }

  // Returns a function that draws a 3D trace.
  findMesh(i) {
    const { uid, visible } = this.gd._fullData[i];
    const mesh = this.scene.traces?.[uid];
    if (visible !== true || typeof mesh?.update !== "function" || !this.scene.glplot?.redraw) return null;
    return (trace) => mesh.update(trace);
  }

  // Returns a function that draws a line, or a single point, in two dimensions. The axes must stay as they are.
  findPath(i, values) {
    const { gd } = this;
    const { uid, visible, mode, xaxis = "x", yaxis = "y" } = gd._fullData[i];
    const [x, y] = [xaxis, yaxis].map((name) => gd._fullLayout[name.replace(/^([xy])/, "$1axis")]);
    const group = gd.querySelector(`.scatterlayer .trace${uid}`);
    const node = group?.querySelector(mode === "lines" ? "path.js-line" : "path.point");
    const fits = (key, axis) => !axis.autorange || !(key in values) || isWithin(values[key], axis);
    if (visible !== true || !node || !x?.c2p || !fits("x", x) || !fits("y", y)) return null;
    if (mode !== "lines" && gd._fullData[i].x.length !== 1) return null;
    return (trace) => {
      let pen = "M";
      const places = Array.from(trace.x, (_, j) => {
        const [px, py] = [x.c2p(x.d2c(trace.x[j])), y.c2p(y.d2c(trace.y[j]))];
        if (!Number.isFinite(px) || !Number.isFinite(py)) return ((pen = "M"), "");
        const [before] = [pen, (pen = "L")];
        return `${before}${px.toFixed(2)},${py.toFixed(2)}`;
      });
      if (mode === "lines") node.setAttribute("d", places.join("") || "M0,0");
      else node.setAttribute("transform", `translate(${places[0].slice(1)})`);
    };
  }

  get waits() {
    return this.isDraft || this.behind.size > 0 || Object.keys(this.waiting).length > 0;
  }

  resize() {
    if (!this.gd._fullLayout || !this.gd.clientWidth) return;
    this.follow(Plotly.Plots.resize(this.gd));
    if (this.behind.size) this.drawFully(new Map(), {});
  }

  // Plotly fails if its figure is purged before its promises are kept.
  follow(promise) {
    this.pending = Promise.allSettled([this.pending, promise]);
    return promise;
  }

  close() {
    Object.assign(this, { ready: false, closed: true });
    for (const type of ["pointerup", "pointercancel"]) window.removeEventListener(type, this.onRelease, true);
    if (this.pending) this.pending.then(() => Plotly.purge(this.gd));
  }
}

// Draws the panes of a model into `el`, or into the element that `slots` names for a pane.
// `onZoom` takes the ends of the axes that the user chose.
function renderFigures({ model, el, slots = {}, onZoom = null }) {
  el.classList.add("lossviz-picture");
  const badge = el.appendChild(document.createElement("div"));
  badge.className = "lossviz-badge";
  let dirty = false;
  let drawing = false;
  let complete = false; // whether all panes have drawn the newest state
  let rest = 0;
  let closed = false;
  let theme = readTheme(el);
  const redraw = async () => {
    dirty = true;
    el.setAttribute("aria-busy", "true");
    clearTimeout(rest);
    if (drawing) return;
    drawing = true;
    await null; // the changes of one message come one by one
    while (dirty && !closed) {
      dirty = false;
      arrange();
      const serial = model.get("serial");
      let current = true;
      for (const pane of shown) {
        current = (await pane.draw(theme, camera, turned)) && current;
        await new Promise((go) => setTimeout(go)); // let the browser paint this pane before the next
      }
      if (current) model.send({ kind: "shown", serial });
      complete = current;
      if (!dirty) rest = setTimeout(finish, shown.some((pane) => pane.waits) ? REST_MS : 0);
    }
    drawing = false;
  };
  // Draws the words that have waited, and says that the figures are complete.
  const finish = async () => {
    drawing = true;
    for (const pane of shown) if (!pane.held) await pane.settle(camera);
    drawing = false;
    if (dirty) redraw();
    else if (complete && !shown.some((pane) => pane.waits)) showState();
  };
  const showState = () => {
    badge.textContent = model.get("state");
    el.classList.toggle("lossviz-stale", Boolean(model.get("state")));
    el.setAttribute("aria-busy", String(Boolean(model.get("state"))));
  };
  const showStale = () => model.get("state") && showState(); // the empty state is shown once the figures are drawn
  const showSummary = () => el.setAttribute("aria-label", model.get("summary"));
  const updateTheme = () => {
    const now = readTheme(el);
    if (String(now.paper) === String(theme.paper)) return;
    theme = now;
    redraw();
  };

  let shown = [];
  // A hidden pane is detached from the page and keeps its figure.
  const arrange = () => {
    shown = panes.filter((pane) => !model.get("hidden").includes(pane.name));
    panes.forEach((pane) => shown.includes(pane) || pane.gd.remove());
    let last = badge;
    shown.forEach((pane) => {
      const slot = slots[pane.name] || el;
      if (pane.gd.parentNode !== slot) {
        if (slot === el) last.after(pane.gd);
        else slot.prepend(pane.gd);
        if (pane.drawn) pane.setCamera(camera);
      }
      if (slot === el) last = pane.gd;
    });
    el.dataset.shown = shown.map((pane) => pane.name).join(" ");
    shown.forEach((pane) => pane.open()); // after all are attached, so that their sizes are known
  };

  let camera = null; // shared by all scenes
  let turned = false; // whether the user has moved it
  let leader = null; // the pane whose camera was moved last, until it settles
  let settled = 0;
  const shareCamera = (pane) => {
    const now = pane.scene && pane.scene.getCamera();
    if (!now || JSON.stringify(now) === JSON.stringify(camera)) return false;
    camera = now;
    pane.keepCamera();
    shown.forEach((other) => other !== pane && other.drawn && other.setCamera(camera));
    return true;
  };
  const trackCamera = () => {
    if (closed) return;
    const before = camera;
    const moved = shareCamera(leader);
    turned = turned || (moved && before !== null);
    settled = moved ? 0 : settled + 1;
    if (settled < SETTLE_FRAMES) requestAnimationFrame(trackCamera);
    else leader = null;
  };
  const startTracking = (pane) => {
    if (!pane.scene) return;
    if (!leader) requestAnimationFrame(trackCamera); // by then Plotly has handled the event
    leader = pane;
    settled = 0;
  };

  // Back to the viewpoint that was chosen for the runs on screen.
  const aim = async () => {
    turned = false;
    const pane = shown.find((one) => one.aimed && one.drawn);
    if (!pane) return;
    await pane.follow(Plotly.relayout(pane.gd, { "scene.camera": pane.aimed }));
    shareCamera(pane);
  };

  const listeners = { onReady: redraw, onCameraMove: startTracking, onCameraSet: shareCamera, onZoom };
  const panes = Object.keys(model.get("panes")).map((name) => new Pane(model, name, listeners));
  el.setAttribute("role", "figure");
  el.setAttribute("aria-busy", "true");
  showStale();
  showSummary();
  model.on("change:serial", redraw);
  model.on("change:hidden", redraw);
  model.on("change:state", showStale);
  model.on("change:summary", showSummary);
  const sizes = new ResizeObserver((changes) => {
    updateTheme(); // the background is unknown until the widget is attached
    const changed = changes.map((change) => change.target);
    panes.forEach((pane) => changed.includes(pane.gd) && pane.resize());
  });
  [el, ...panes.map((pane) => pane.gd)].forEach((node) => sizes.observe(node));
  const themes = new MutationObserver(() => requestAnimationFrame(updateTheme));
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true });
  redraw();
  // JupyterLab drops what the kernel sends before the widgets of a page that was just loaded are restored.
  model.send({ kind: "open" });

  const close = () => {
    closed = true;
    clearTimeout(rest);
    sizes.disconnect();
    themes.disconnect();
    model.off("change:serial", redraw);
    model.off("change:hidden", redraw);
    model.off("change:state", showStale);
    model.off("change:summary", showSummary);
    panes.forEach((pane) => pane.close());
  };
  const showEnds = (ends) => shown.forEach((pane) => pane.scene && pane.showEnds(ends));
  return { close, aim, redraw, showEnds, isDrawing: () => drawing };
}

