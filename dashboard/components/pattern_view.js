// Shows the pattern of the point under the pointer. Patterns come in sheets of neighbours and are
// kept, so that the server is asked once for each neighbourhood only.
const RESTS_MILLISECONDS = 70;
const views = new WeakMap();

export default function (component) {
  const { parentElement, data } = component;
  const view = views.get(parentElement) ?? newView(parentElement);
  views.set(parentElement, view);
  Object.assign(view, { component, data });
  view.kept = data.kept;
  take(view);
  view.watch ??= setInterval(() => attach(view), 300);
  attach(view);
  view.button.onclick = () => {
    const found = view.known.get(view.shown);
    if (found) component.setTriggerValue("opened", found.title);
  };
  return () => {
    clearInterval(view.watch);
    view.watch = undefined;
  };
}

function newView(root) {
  return {
    root,
    canvas: root.querySelector("canvas"),
    head: root.querySelector(".head"),
    facts: root.querySelector(".facts"),
    button: root.querySelector("button"),
    known: new Map(),
    shown: -1,
  };
}

function take(view) {
  const { url, samples, titles, facts, why } = view.data;
  if (why) return say(view, why);
  if (samples.every((sample) => view.known.has(sample))) return show(view, pick(view));
  const sheet = new Image();
  sheet.onload = () => {
    samples.forEach((sample, row) =>
      view.known.set(sample, { sheet, row, title: titles[row], facts: facts[row] }),
    );
    show(view, pick(view));
  };
  sheet.src = url;
}

function pick(view) {
  for (const sample of [view.over, view.data.asked, view.kept])
    if (sample >= 0 && view.known.has(sample)) return sample;
  return -1;
}

function show(view, sample) {
  const found = view.known.get(sample);
  if (!found) return;
  const { canvas } = view;
  const side = found.sheet.width;
  const paint = canvas.getContext("2d");
  paint.imageSmoothingEnabled = false;
  paint.clearRect(0, 0, canvas.width, canvas.height);
  paint.drawImage(found.sheet, 0, found.row * side, side, side, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Pattern of ${found.title}: query down, key right`);
  canvas.dataset.sample = String(sample);
  view.head.textContent = found.title;
  view.facts.textContent = found.facts;
  view.button.hidden = false;
  view.shown = sample;
}

function say(view, sentence) {
  view.head.textContent = "";
  view.facts.textContent = sentence;
}

// The chart is drawn by another part of the page, and drawn anew when its colours change.
function attach(view) {
  const chart = document.querySelector(`.st-key-${CSS.escape(view.data.chart)} .js-plotly-plot`);
  if (!chart?.on || chart === view.chart) return;
  view.chart = chart;
  chart.on("plotly_hover", (event) => over(view, sampleOf(event)));
  chart.on("plotly_unhover", () => clearTimeout(view.rest));
  chart.on("plotly_click", (event) => keep(view, sampleOf(event)));
  // A lasso of thousands of points would send all of them; its outline says the same.
  chart._ev?.prependListener?.("plotly_selected", (event) => {
    if (event?.selections?.length) event.points = [];
  });
}

function sampleOf(event) {
  const said = event?.points?.[0]?.customdata;
  return said ? Number(said[0]) : -1;
}

function over(view, sample) {
  clearTimeout(view.rest);
  view.over = sample;
  if (sample < 0) return;
  if (view.known.has(sample)) return show(view, sample);
  view.rest = setTimeout(() => view.component.setStateValue("asked", sample), RESTS_MILLISECONDS);
}

function keep(view, sample) {
  if (sample < 0) return;
  view.kept = sample;
  view.component.setStateValue("kept", sample);
}
