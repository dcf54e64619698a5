// Mouse, pen and touch on the picture. Nothing here depends on what the picture shows.

const DOUBLE_TAP_MS = 320;
const DOUBLE_TAP_PX = 40;
const WHEEL_PX = 40; // of a fine wheel or a trackpad, for one slice

/** Listens on the stage's canvas; `onWindow(dx, dy)` hears a right drag. */
export function listen(stage, onWindow) {
  const { canvas } = stage;
  const fingers = new Map();
  let drag = null;
  let lastTap = { timeStamp: -Infinity };
  let rolled = 0;

  const start = (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      drag = { kind: "pinch", ...pair(fingers) };
      return;
    }
    drag = { kind: kindOf(event), x: event.clientX, y: event.clientY };
    if (drag.kind === "cross") place(event);
  };

  const place = (event) => {
    const index = stage.voxelAt(event.clientX, event.clientY);
    if (index) stage.moveTo(index);
  };

  const move = (event) => {
    if (!drag || !fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, event);
    if (drag.kind === "pinch") return pinch();
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.x = event.clientX;
    drag.y = event.clientY;
    if (drag.kind === "cross") place(event);
    else if (drag.kind === "pan") stage.pan(dx, dy, event.clientX, event.clientY);
    else if (drag.kind === "window") onWindow(dx, dy);
    return undefined;
  };

  const pinch = () => {
    if (fingers.size < 2) return;
    const now = pair(fingers);
    stage.pan(now.x - drag.x, now.y - drag.y, now.x, now.y);
    if (drag.apart > 0) stage.zoom(now.apart / drag.apart, now.x, now.y);
    drag = { kind: "pinch", ...now };
  };

  const end = (event) => {
    fingers.delete(event.pointerId);
    if (fingers.size) {
      drag = null; // the second finger of a pinch is still down: wait until it goes
      return;
    }
    const wasTap = drag?.kind === "cross" && event.type === "pointerup" && event.pointerType === "touch";
    drag = null;
    if (!wasTap) return;
    const near = Math.hypot(event.clientX - lastTap.clientX, event.clientY - lastTap.clientY) < DOUBLE_TAP_PX;
    if (near && event.timeStamp - lastTap.timeStamp < DOUBLE_TAP_MS) stage.resetView(); // when tapped, not when heard of
    lastTap = event;
  };

  const wheel = (event) => {
    event.preventDefault();
    const across = stage.planeAt(event.clientX, event.clientY);
    if (across === null) return;
    if (stage.flat || event.ctrlKey || event.metaKey) {
      stage.zoom(2 ** (-event.deltaY / 400), event.clientX, event.clientY);
      return;
    }
    rolled += event.deltaMode === 0 ? event.deltaY : Math.sign(event.deltaY) * WHEEL_PX;
    const slices = Math.trunc(rolled / WHEEL_PX);
    rolled -= slices * WHEEL_PX;
    if (slices) stage.step(across, -slices);
  };

  canvas.addEventListener("pointerdown", start);
  canvas.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, end);
  canvas.addEventListener("wheel", wheel, { passive: false });
  canvas.addEventListener("dblclick", () => stage.resetView());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}

function kindOf(event) {
  if (event.pointerType === "mouse" && event.button === 2) return "window";
  if (event.pointerType === "mouse" && (event.button === 1 || event.shiftKey)) return "pan";
  return "cross";
}

/** Middle and distance of two fingers, in page pixels. */
function pair(fingers) {
  const [a, b] = [...fingers.values()];
  return {
    x: (a.clientX + b.clientX) / 2,
    y: (a.clientY + b.clientY) / 2,
    apart: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
  };
}
