// A button that presses the camera in a chart's own bar: the browser draws the PNG, nothing is sent.
export default function (component) {
  const { parentElement, data } = component;
  const button = parentElement.querySelector("button");
  button.setAttribute("aria-label", `Save ${data.title} as PNG`);
  button.onclick = () => {
    const camera = `.st-key-${CSS.escape(data.chart)} .modebar-btn[data-title^="Download plot"]`;
    document.querySelector(camera)?.click();
  };
}
