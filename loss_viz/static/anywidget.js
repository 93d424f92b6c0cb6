// How a widget starts in a notebook. Plotly's source arrives as a trait: anywidget gives a widget's script two seconds to
// load, and drops all messages of the kernel if its five megabytes take longer. The panels of a page share it.
const MOST_MS = 500; // for a first paint, which never comes in a tab that is not visible
const modules = (globalThis.lossvizPlotly ??= {}); // promises by version

async function loadPlotly(model) {
  const { source, version } = model.get("_plotly");
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  Plotly = (await (modules[version] ??= import(url))).default;
  URL.revokeObjectURL(url);
}

// Waits until the browser has painted an element and the images in it. While Plotly loads, it paints nothing.
async function painted(el) {
  const frame = () => new Promise((go) => requestAnimationFrame(go));
  const decoded = [...el.querySelectorAll("img")].map((image) => image.decode().catch(() => null));
  const shown = Promise.all(decoded).then(frame).then(frame);
  await Promise.race([shown, new Promise((go) => setTimeout(go, MOST_MS))]);
}

// Returns the definition of a widget; `open` shows it, without figures at first, and returns the function that closes it.
const asWidget = (open) => ({
  render: ({ model, el }) => {
    let start = null;
    loading = new Promise((go) => (start = go));
    const close = open(model, el);
    painted(el).then(() => start(loadPlotly(model)));
    return close;
  },
});
