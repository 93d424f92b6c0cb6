// Page of `export_html`. It shows precomputed landscapes in the panel, whose scripts figure_widget.js and panel.js precede
// this one and read everything from a `model`.

const find = (id) => document.getElementById(`lossviz-${id}`);
const round3 = (value) => String(Number(value.toPrecision(3)));
const formatFactor = (value) => `×${value < 10 ? value.toFixed(2) : value < Infinity ? round3(value) : "inf"}`;

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
      if ("table" in value) return this.lookUp(value);
      return "columns" in value ? this.join(value.columns) : value;
    });
  }

  // Returns nested values with their arrays in place of references.
  readAll(value) {
    if (Array.isArray(value)) return value.map((one) => this.readAll(one));
    if (value === null || typeof value !== "object") return value;
    return "array" in value ? this.unpack(value.array) : mapValues(value, (one) => this.readAll(one));
  }

  lookUp({ table, index }) {
    const values = this.unpack(table);
    return Array.from(this.unpack(index), (i) => values[i]);
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

function openPage() {
  const data = JSON.parse(find("data").textContent);
  const arrays = new Arrays(data.arrays);
  const runs = data.runs.map((run) => arrays.read(run));
  const common = mapValues(data.parts, (part) => arrays.read(part));
  const one = runs.length === 1;
  const values = { ...data.values };
  const picture = () => data.k.indexOf(values.k) * data.sigma.length + data.sigma.indexOf(values.sigma);
  const findRows = () => runs.map((run) => findRow(run.step, values.step));
  const ofRun = (i, key) => arrays.unpack(data.pictures[picture()].runs[i][key].array);

  // Stands in for the Jupyter model that the panel reads and sends messages to.
  const [nothing, listeners] = [{}, {}];
  const { panes, controls, timeline, summary } = data;
  const shown = { panes, controls, timeline, summary, hidden: [], state: "", serial: 0 };
  const model = {
    get: (name) => (name in shown ? shown[name] : nothing),
    on: (name, listener) => (listeners[name] = [...(listeners[name] || []), listener]),
    off: (name, listener) => (listeners[name] = listeners[name].filter((one) => one !== listener)),
    send: (message) => {
      if (message.kind === "shown") find("picture").dataset.drawn = message.serial;
      else if (message.kind === "click") handleClick(message);
      else if (message.kind === "set") set({ [message.name]: message.value });
    },
  };
  const push = (parts) => {
    const { chip, cautions } = data.pictures[picture()];
    Object.assign(shown, parts, { values: { ...values } });
    shown.report = { tiles: listTiles(findRows()), warnings: cautions, chip };
    shown.serial += 1;
    find("picture").dataset.asked = shown.serial;
    const changed = [...("balls" in parts ? ["balls"] : []), "serial", "values", "report"];
    for (const name of changed) (listeners[`change:${name}`] || []).forEach((listen) => listen());
    const spelled = { ...values, sigma: typeof values.sigma === "string" ? `'${values.sigma}'` : values.sigma };
    spelled.log = values.loss_axis === "log" ? "True" : "False";
    find("recipe").textContent = data.recipe.replace(/\{(k|sigma|step|log)\}/g, (_, name) => spelled[name]);
  };

  const landscapeUpdates = () => {
    const drawing = data.pictures[picture()].axes[values.loss_axis];
    const axis = { ...drawing, log: values.loss_axis === "log" };
    drawing.read = drawing.read || {
      ...mapValues(drawing.parts, (part) => arrays.read(part, axis)),
      balls: arrays.readAll(drawing.balls),
    };
    return drawing.read;
  };

  const listTiles = (rows) => {
    const tiles = one ? [] : runs.map((run, i) => [run.name, round3(run.loss[rows[i]]), `step ${run.step[rows[i]]}`]);
    if (one) {
      const stay = new Balls({ plateaus: shown.balls.plateaus }).plateauAt(values.step);
      const isHere = stay && stay.start <= values.step && values.step <= stay.end;
      const when = stay && (isHere ? "now" : `${stay.start} – ${stay.end}`);
      const what = stay && stay.level ? `, ${stay.level.name} (${stay.level.loss})` : "";
      tiles.push([`loss at step ${runs[0].step[rows[0]]}`, round3(runs[0].loss[rows[0]]), ""]);
      tiles.push(["plateau", ...(stay ? [stay.loss, when + what] : ["none", ""])]);
    }
    const worst = Math.max(...rows.map((row, i) => ofRun(i, "factor")[row]));
    const off = Math.max(...rows.map((row, i) => runs[i].off[row]));
    tiles.push(["error here", formatFactor(worst), ""], ...data.pictures[picture()].tiles);
    return [...tiles, ["off the plane", `${(100 * off).toFixed(1)}%`, ""], ["variance", ...data.variance]];
  };

  const set = (changes) => {
    Object.assign(values, changes);
    const moved = Object.keys(changes).some((name) => name !== "step");
    push(moved ? { ...common, ...landscapeUpdates() } : {});
  };

  // A click on a run or its curve selects that step; a click on the surface the nearest step within `data.reach`.
  const handleClick = ({ pane, trace, index, x, y }) => {
    const [kind, which = 0] = trace.split("-");
    let best = { distance: data.reach };
    if (kind === "trajectory") best = { step: runs[which].step[index] };
    else if (["surface", "ball"].includes(kind)) {
      for (const run of runs) {
        run.step.forEach((step, row) => {
          const distance = Math.hypot(run.x[row] - x, run.y[row] - y);
          if (distance <= best.distance) best = { distance, step };
        });
      }
    }
    if (pane !== "fit" && "step" in best) set({ step: best.step });
  };

  // figure_widget.js reads the theme again when an attribute of the root element changes.
  const theme = document.documentElement.dataset;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => (theme.dark = matches));
  // Without hover, Plotly's buttons would cover the title permanently.
  if (matchMedia("(hover: none)").matches) CONFIG.displayModeBar = false;
  Plotly = module.exports; // at the head of this script
  set({ ...data.values });
  new Panel(model, find("picture"));
}

openPage();
