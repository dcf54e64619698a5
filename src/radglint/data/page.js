"use strict";
// One study = one viewer. Its pictures lie in a JSON block: base layers by window, mask and heat layers by query.
for (const study of document.querySelectorAll(".study")) {
  const data = JSON.parse(study.querySelector("script[type='application/json']").textContent);
  const state = { query: 0, mode: "mask", window: data.queries.length ? data.queries[0].window : 0, slice: 0, opacity: 0.45 };
  const cards = [...study.querySelectorAll(".card")];
  const slider = study.querySelector("input.slice");
  const figures = [...study.querySelectorAll(".view")];
  const BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

  const put = (figure, kind, source) => {
    const image = figure.querySelector("." + kind);
    if (image) image.src = source || BLANK;
  };

  const draw = () => {
    const query = data.queries[state.query];
    figures.forEach((figure, number) => {
      const stack = number === 0 ? data.stack : query ? query.planes[number - 1] : null;
      if (!stack) return;
      const at = number === 0 ? state.slice : 0;
      const layers = number === 0 ? (query ? query.stack : { mask: [], heat: [] }) : stack;
      put(figure, "base", stack.base[state.window][at]);
      put(figure, "unseen", stack.unseen[at]);
      put(figure, "mask", state.mode === "mask" ? layers.mask[at] : "");
      put(figure, "heat", state.mode === "heat" ? layers.heat[at] : "");
      figure.querySelector(".mask").style.opacity = state.opacity * 2 > 1 ? 1 : state.opacity * 2;
      figure.querySelector(".heat").style.opacity = state.opacity;
      const where = figure.querySelector(".where");
      if (where) where.textContent = stack.position[at];
    });
    cards.forEach((card, number) => {
      card.classList.toggle("chosen", number === state.query);
      card.querySelector(".query").setAttribute("aria-pressed", String(number === state.query));
    });
    for (const button of study.querySelectorAll("button[data-mode]"))
      button.setAttribute("aria-pressed", String(button.dataset.mode === state.mode));
    for (const button of study.querySelectorAll("button[data-window]"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.window) === state.window));
    if (slider) {
      slider.value = String(state.slice);
      slider.setAttribute("aria-valuetext", data.stack.position[state.slice]);
    }
  };

  const choose = (number) => {
    state.query = number;
    if (data.queries[number]) {
      state.window = data.queries[number].window;
      state.slice = data.queries[number].slice;
    }
    draw();
  };

  const turn = (step) => {
    state.slice = Math.max(0, Math.min(data.stack.position.length - 1, state.slice + step));
    draw();
  };

  cards.forEach((card, number) => card.addEventListener("click", () => choose(number)));
  for (const button of study.querySelectorAll("button[data-mode]"))
    button.addEventListener("click", () => { state.mode = button.dataset.mode; draw(); });
  for (const button of study.querySelectorAll("button[data-window]"))
    button.addEventListener("click", () => { state.window = Number(button.dataset.window); draw(); });
  study.querySelector("input.opacity").addEventListener("input", (event) => {
    state.opacity = Number(event.target.value) / 100;
    draw();
  });
  if (slider) {
    slider.addEventListener("input", () => { state.slice = Number(slider.value); draw(); });
    figures[0].addEventListener("wheel", (event) => {
      event.preventDefault();
      turn(event.deltaY > 0 ? -1 : 1);
    }, { passive: false });
  }
  choose(0);
}
