// How a widget starts in a notebook. Plotly's source arrives as a trait: anywidget gives a widget's script two seconds to
// load, and drops all messages of the kernel if its five megabytes take longer.
async function loadPlotly(model) {
  if (Plotly) return;
  const url = URL.createObjectURL(new Blob([model.get("_plotly")], { type: "text/javascript" }));
  Plotly = (await import(url)).default;
  URL.revokeObjectURL(url);
}

// Returns the definition of a widget; `open` draws it and returns the function that closes it.
const asWidget = (open) => ({
  render: async ({ model, el }) => {
    await loadPlotly(model);
    return open(model, el);
  },
});
