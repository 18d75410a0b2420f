// An answer, word by word. Words are buttons where one can be picked: one of them is in the tab
// order, arrow keys go to the others.
export default function (component) {
  const { parentElement, data, setStateValue } = component;
  const root = parentElement.querySelector(".answer");
  const drawn = JSON.stringify([data.pieces, data.scale, data.label, data.pressable]);
  if (root.dataset.drawn !== drawn) draw(root, data);
  root.dataset.drawn = drawn;
  const buttons = [...root.querySelectorAll("button")];
  const current = data.picked ?? 0;
  buttons.forEach((button, number) => {
    button.setAttribute("aria-pressed", String(number === data.picked));
    button.tabIndex = number === current ? 0 : -1;
    button.onclick = () => setStateValue("picked", number);
    button.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      buttons[(number + step + buttons.length) % buttons.length].focus();
    };
  });
}

function draw(root, data) {
  const words = document.createElement("p");
  words.setAttribute("role", "group");
  words.setAttribute("aria-label", data.label);
  data.pieces.forEach((piece, number) => {
    const word = document.createElement(data.pressable ? "button" : "span");
    if (data.pressable) word.type = "button";
    word.className = "word";
    word.textContent = piece.text;
    if (piece.tint !== undefined) word.style.setProperty("--tint", String(piece.tint));
    if (piece.wrong) word.classList.add("wrong");
    if (piece.changed) word.classList.add("changed");
    if (piece.about) {
      word.title = piece.about;
      word.setAttribute("aria-label", `${piece.text}: ${piece.about}`);
    }
    if (number > 0) words.append(" ");
    words.append(word);
  });
  root.replaceChildren(words);
  if (!data.scale) return;
  const [name, low, high] = data.scale;
  const legend = document.createElement("div");
  legend.className = "legend";
  const ramp = document.createElement("i");
  const part = (text) => Object.assign(document.createElement("span"), { textContent: text });
  legend.append(part(name), part(low), ramp, part(high));
  root.append(legend);
}
