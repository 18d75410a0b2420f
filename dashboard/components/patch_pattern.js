// A picture with its patches: colour says how much each is read; a click on one asks for it.
export default function (component) {
  const { parentElement, data, setStateValue } = component;
  const root = parentElement.querySelector(".picture");
  const pattern = patternOf(data.pattern);
  const boxes = numbersOf(data.boxes, Float32Array);
  const places = numbersOf(data.places, Int32Array);
  const own = new Map();
  places.forEach((position, patch) => own.set(position, patch));
  const list = data.list; // of which list of the tokens these patches are
  const panels = data.panels;
  let panel = Math.min(Number(root.dataset.panel || 0), panels.length - 1);
  let strength = Number(root.dataset.strength || 0.8);
  let kept = data.query;
  let seen = { list: 0, position: kept, direction: root.dataset.direction || "reads" };
  let over = null;

  const stage = document.createElement("div");
  stage.className = "stage";
  stage.tabIndex = 0;
  stage.setAttribute("role", "img");
  stage.setAttribute("aria-label", data.label);
  const image = document.createElement("img");
  image.alt = "";
  image.draggable = false;
  const canvas = document.createElement("canvas");
  stage.append(image, canvas);

  const row = document.createElement("div");
  row.className = "row";
  const label = document.createElement("label");
  label.textContent = "colour";
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.05", value: strength });
  slider.oninput = () => {
    strength = Number(slider.value);
    root.dataset.strength = strength;
    paint();
  };
  label.append(slider);
  row.append(label);
  if (panels.length > 1) {
    panels.forEach((one, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = one.name;
      button.onclick = () => {
        panel = number;
        root.dataset.panel = number;
        paint();
      };
      row.append(button);
    });
  }
  const says = document.createElement("div");
  says.className = "says";
  says.setAttribute("aria-live", "polite");
  root.replaceChildren(stage, row, says);

  const inPanel = () => panels[panel].patches;
  const edges = (patch) => boxes.subarray(4 * patch, 4 * patch + 4);

  function patchAt(event) {
    const area = stage.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * data.width;
    const y = ((event.clientY - area.top) / area.height) * data.height;
    for (const patch of inPanel()) {
      const [left, top, right, bottom] = edges(patch);
      if (x >= left && x < right && y >= top && y < bottom) return patch;
    }
    return null;
  }

  stage.onmousemove = (event) => {
    const patch = patchAt(event);
    if (patch === over) return;
    over = patch;
    ask();
  };
  stage.onmouseleave = () => {
    over = null;
    ask();
  };
  stage.onclick = (event) => {
    const patch = patchAt(event);
    if (patch !== null && list === 0) pick(patch);
  };
  stage.onkeydown = (event) => {
    const patches = inPanel();
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[
      event.key
    ];
    if (event.key === "Enter" && over !== null && list === 0) pick(over);
    if (event.key === "Escape") over = null;
    if (!step && event.key !== "Escape") return;
    event.preventDefault();
    if (step) over = over === null ? patches[0] : beside(over, step, patches);
    ask();
  };

  function beside(patch, [right, down], patches) {
    const [l, t, r, b] = edges(patch);
    const x = (l + r) / 2 + right * (r - l);
    const y = (t + b) / 2 + down * (b - t);
    const found = patches.find((one) => {
      const [left, top, rightmost, bottom] = edges(one);
      return x >= left && x < rightmost && y >= top && y < bottom;
    });
    return found === undefined ? patch : found;
  }

  function pick(patch) {
    kept = places[patch];
    setStateValue("query", kept);
    ask();
  }

  function ask() {
    if (over !== null) seen = { ...seen, list, position: places[over] };
    else seen = { ...seen, list: 0, position: kept };
    paint();
    const position = over === null ? null : seen.position;
    tell(data.group, { from: data.name, list: seen.list, position, direction: seen.direction, kept });
  }

  function paint() {
    const way = !data.same && seen.list === 1 ? "readers" : seen.direction;
    const weights = way === "reads" ? pattern.reads(seen.position) : pattern.readers(seen.position);
    const lit = data.same ? list === 0 : (way === "reads" ? 1 : 0) === list;
    const patches = inPanel();
    const mine = Float32Array.from(patches, (patch) => (lit ? weights[places[patch]] : 0));
    const top = fullColour(mine, () => true);
    const scale = window.devicePixelRatio || 1;
    const width = stage.clientWidth;
    const height = stage.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale((scale * width) / data.width, (scale * height) / data.height);
    let sum = 0;
    patches.forEach((patch, i) => {
      const [left, upper, right, lower] = edges(patch);
      sum += mine[i];
      pen.fillStyle = `rgba(213, 94, 0, ${(strength * mine[i]) / top})`;
      pen.fillRect(left, upper, right - left, lower - upper);
    });
    const asked = seen.list === list ? own.get(seen.position) : undefined;
    if (asked !== undefined && patches.includes(asked)) {
      const [left, upper, right, lower] = edges(asked);
      for (const [colour, size] of [["#ffffff", 4], [data.accent, 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = (size * data.width) / Math.max(width, 1);
        pen.strokeRect(left, upper, right - left, lower - upper);
      }
    }
    for (const [number, button] of row.querySelectorAll("button").entries())
      button.setAttribute("aria-pressed", String(number === panel));
    const verb = way === "reads" ? "are read with" : "read it with";
    const count = way === "reads" ? shown(sum) : `${shown(sum / Math.max(patches.length, 1))} each`;
    says.textContent = `The patches ${verb} ${count}. Full colour: ${shown(top)}.`;
  }

  const deaf = hear(data.group, data.name, (told) => {
    root.dataset.direction = told.direction;
    kept = told.kept;
    seen = { list: told.list, position: told.position ?? kept, direction: told.direction };
    paint();
  });
  image.onload = paint;
  image.src = data.picture;
  const resized = new ResizeObserver(paint);
  resized.observe(stage);
  paint();
  return () => {
    deaf();
    resized.disconnect();
  };
}
