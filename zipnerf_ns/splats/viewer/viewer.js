// Draws a scene of Gaussians in PlayCanvas's SOG format (meta.json and its images) as gsplat does, with WebGL 2.
//
// The images are textures that the shaders decode: a Gaussian takes 28 bytes of a phone's graphics memory. When the
// camera has moved, a worker, which runs this same file, sorts the Gaussians by depth, and their colors from there are
// computed into a texture.
"use strict";

const NEAR = 0.01; // gsplat's near plane
const MOST_PIXELS_PER_POINT = 2; // finer screens are drawn coarser: the eye does not see it, the battery does

// ---------------------------------------------------------------------------------------------------------- sorting

/** Indices of the Gaussians before the camera, the farthest first: a radix sort of the depths' upper 24 bits. */
function sortByDepth(places, eye, forward) {
  const total = places.length / 3;
  const depths = new Float32Array(total), keys = new Uint32Array(depths.buffer);
  const first = new Uint32Array(total);
  const low = new Uint32Array(4097), high = new Uint32Array(4097);
  let count = 0;
  for (let i = 0, j = 0; i < total; i++, j += 3) {
    const depth = (places[j] - eye[0]) * forward[0] + (places[j + 1] - eye[1]) * forward[1] +
                  (places[j + 2] - eye[2]) * forward[2];
    if (depth <= NEAR) continue;
    depths[i] = depth;
    // Bits of positive numbers are ordered as the numbers are; turned around, the farthest has the smallest key.
    const key = keys[i] = ~keys[i] >>> 8;
    low[(key & 4095) + 1]++;
    high[(key >>> 12) + 1]++;
    first[count++] = i;
  }
  for (let i = 0; i < 4096; i++) {
    low[i + 1] += low[i];
    high[i + 1] += high[i];
  }
  const second = new Uint32Array(count), order = new Uint32Array(count);
  for (let i = 0; i < count; i++) second[low[keys[first[i]] & 4095]++] = first[i];
  for (let i = 0; i < count; i++) order[high[keys[second[i]] >>> 12]++] = second[i];
  return order;
}

// ---------------------------------------------------------------------------------------------------------- loading

function compile(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return { program, at: (name) => gl.getUniformLocation(program, name) };
}

async function fetchCounted(name, count) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const reader = answer.body.getReader(), chunks = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    count(part.value.length);
  }
  return new Blob(chunks);
}

function makeTexture(gl, internal, format, type, image, width, height) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  if (width) gl.texImage2D(gl.TEXTURE_2D, 0, internal, width, height, 0, format, type, image);
  else gl.texImage2D(gl.TEXTURE_2D, 0, internal, format, type, image);
  return texture;
}

/** The scene's textures by the names of the shaders' samplers, and the size of those that have a texel a Gaussian. */
async function loadTextures(gl, meta, count) {
  const files = { meansLow: meta.means.files[0], meansHigh: meta.means.files[1], scales: meta.scales.files[0],
                  quats: meta.quats.files[0], sh0: meta.sh0.files[0] };
  if (meta.shN) [files.sets, files.labels] = meta.shN.files;
  const blobs = await Promise.all(Object.values(files).map((name) => fetchCounted(name, count)));
  const textures = {};
  let size;
  for (const [i, name] of Object.keys(files).entries()) {
    // Numbers, not colors: nothing may be multiplied or converted.
    const image = await createImageBitmap(blobs[i], { premultiplyAlpha: "none", colorSpaceConversion: "none" });
    if (name === "meansLow") size = [image.width, image.height];
    textures[name] = makeTexture(gl, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, image);
    image.close();
  }
  const books = new Float32Array(3 * 256);
  [meta.scales, meta.sh0, meta.shN].forEach((part, row) => part && books.set(part.codebook.slice(0, 256), 256 * row));
  textures.codebooks = makeTexture(gl, gl.R32F, gl.RED, gl.FLOAT, books, 256, 3);
  textures.colors = makeTexture(gl, gl.RGB10_A2, gl.RGBA, gl.UNSIGNED_INT_2_10_10_10_REV, null, ...size);
  return { textures, size };
}

/** Positions for the worker, of the textures' bytes. */
function readPlaces(gl, meta, textures, [width, height]) {
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const [low, high] = [textures.meansLow, textures.meansHigh].map((texture) => {
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const bytes = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    return bytes;
  });
  const places = new Float32Array(3 * meta.count);
  for (let i = 0; i < meta.count; i++) {
    for (let axis = 0; axis < 3; axis++) {
      const share = (low[4 * i + axis] + 256 * high[4 * i + axis]) / 65535;
      const value = meta.means.mins[axis] + (meta.means.maxs[axis] - meta.means.mins[axis]) * share;
      places[3 * i + axis] = Math.sign(value) * Math.expm1(Math.abs(value));
    }
  }
  return places;
}

// ----------------------------------------------------------------------------------------------------------- camera

const add = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => a.map((value) => value / Math.hypot(...a));

/** A camera that goes around a target and stays upright. */
class Orbit {
  constructor(view) {
    this.view = view;
    this.up = unit(view.up);
    const offset = add(view.position, view.target, -1);
    let ahead = add(offset, this.up, -dot(offset, this.up));
    if (Math.hypot(...ahead) < 1e-6 * Math.hypot(...offset)) {
      ahead = cross(this.up, Math.abs(this.up[0]) < 0.5 ? [1, 0, 0] : [0, 1, 0]);
    }
    this.ahead = unit(ahead);
    this.aside = cross(this.up, this.ahead);
    this.reset();
  }

  reset() {
    const offset = add(this.view.position, this.view.target, -1);
    this.distance = Math.hypot(...offset);
    this.target = this.view.target;
    this.azimuth = 0;
    this.turn(0, Math.asin(Math.max(-1, Math.min(1, dot(offset, this.up) / this.distance))), true);
  }

  turn(azimuth, elevation, absolute = false) {
    this.azimuth += azimuth;
    this.elevation = Math.max(-1.5, Math.min(1.5, elevation + (absolute ? 0 : this.elevation)));
  }

  /** Where the camera is, and its axes: right, down, forward. */
  pose() {
    const level = add(this.ahead.map((value) => value * Math.cos(this.azimuth)), this.aside, Math.sin(this.azimuth));
    const back = add(level.map((value) => value * Math.cos(this.elevation)), this.up, Math.sin(this.elevation));
    const forward = back.map((value) => -value);
    const right = unit(cross(forward, this.up));
    return { eye: add(this.target, back, this.distance), axes: [right, cross(forward, right), forward] };
  }

  /** Moves the target so that it follows a finger. */
  pan(right, down, pixelsPerUnit) {
    const { axes } = this.pose();
    this.target = add(add(this.target, axes[0], -right / pixelsPerUnit), axes[1], -down / pixelsPerUnit);
  }
}

/** Calls back whenever mouse, fingers, wheel or keys have moved the camera. */
function listen(canvas, orbit, focal, moved) {
  const fingers = new Map();
  const center = () => [...fingers.values()].reduce((sum, at) => add(sum, at, 1 / fingers.size), [0, 0]);
  const spread = () => Math.hypot(...add(...[...fingers.values()].slice(0, 2), -1));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const from = center(), wide = fingers.size > 1 && spread();
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const [right, down] = add(center(), from, -1);
    if (wide) orbit.distance *= wide / Math.max(1, spread());
    if (wide || event.shiftKey || event.buttons & 6) orbit.pan(right, down, focal() / orbit.distance);
    else orbit.turn(-right * 0.006, down * 0.006);
    moved();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    // Lines, pixels, or a trackpad's pinch, which browsers tell as a wheel with Ctrl.
    orbit.distance *= Math.exp(event.deltaY * (event.deltaMode ? 0.03 : event.ctrlKey ? 0.01 : 0.001));
    moved();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { orbit.reset(); moved(); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    orbit.turn(0.05 * step[0], 0.05 * step[1]);
    moved();
  });
}

// ---------------------------------------------------------------------------------------------------------- drawing

async function show(canvas, status) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, powerPreference: "high-performance" });
  if (!gl) throw new Error("this browser has no WebGL 2");
  canvas.addEventListener("webglcontextlost", () => fail(status, new Error("the graphics card was lost: reload")));
  const view = await (await fetchCounted("view.json", () => {})).text().then(JSON.parse);
  document.title = view.title;
  let arrived = 0;
  const count = (bytes) => {
    arrived += bytes;
    status.querySelector("progress").value = arrived / view.bytes;
    status.querySelector("span").textContent =
      `Loading ${(arrived / 1e6).toFixed(1)} of ${(view.bytes / 1e6).toFixed(1)} MB`;
  };
  const meta = await (await fetchCounted("meta.json", count)).text().then(JSON.parse);
  const { textures, size } = await loadTextures(gl, meta, count);

  const coloring = compile(gl, WHOLE_TEXTURE, colorShader(meta.shN ? meta.shN.bands : 0));
  const drawing = compile(gl, DRAWING, BLENDING);
  for (const { program, at } of [coloring, drawing]) {
    gl.useProgram(program);
    Object.entries(textures).forEach(([name, texture], unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform1i(at(name), unit);
    });
    gl.uniform3fv(at("lowest"), meta.means.mins);
    gl.uniform3fv(at("highest"), meta.means.maxs);
  }
  gl.uniform1i(drawing.at("antialiased"), meta.model === "antialiased");
  const worker = new Worker("viewer.js");
  worker.postMessage({ places: readPlaces(gl, meta, textures, size) });
  const colorTarget = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, colorTarget);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, textures.colors, 0);
  const indices = gl.getAttribLocation(drawing.program, "index");
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(indices);
  gl.vertexAttribIPointer(indices, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(indices, 1);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(...view.background, 1);

  const orbit = new Orbit(view);
  const focal = () => 0.5 * Math.min(canvas.clientWidth, canvas.clientHeight) / Math.tan(view.fov * Math.PI / 360);
  let seen = 0, sorting = false, stale = true, recolor = false, waiting = false;

  function draw() {
    waiting = false;
    const { eye, axes } = orbit.pose();
    if (stale && !sorting) {
      worker.postMessage({ eye, forward: axes[2] });
      [sorting, stale] = [true, false];
    }
    const pixels = Math.min(window.devicePixelRatio, MOST_PIXELS_PER_POINT);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((length) => Math.round(length * pixels));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    if (recolor) {
      gl.useProgram(coloring.program);
      gl.bindFramebuffer(gl.FRAMEBUFFER, colorTarget);
      gl.viewport(0, 0, ...size);
      gl.disable(gl.BLEND);
      gl.uniform3fv(coloring.at("eye"), eye);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      recolor = false;
    }
    gl.useProgram(drawing.program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.enable(gl.BLEND);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform3fv(drawing.at("eye"), eye);
    gl.uniformMatrix3fv(drawing.at("toCamera"), true, axes.flat());
    gl.uniform2f(drawing.at("size"), width, height);
    gl.uniform1f(drawing.at("focal"), focal() * pixels);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, seen);
  }
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const moved = () => { stale = true; redraw(); };
  worker.onmessage = ({ data }) => {
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
    seen = data.length;
    // Colors as often as that: they change slowly, and every camera that stands still has been sorted for.
    [sorting, recolor] = [false, true];
    status.hidden = true;
    redraw();
  };
  worker.onerror = (event) => fail(status, new Error(event.message));
  listen(canvas, orbit, focal, moved);
  new ResizeObserver(redraw).observe(canvas);
}

function fail(status, error) {
  status.hidden = false;
  status.textContent = `The scene cannot be shown: ${error.message}.`;
}

if (typeof document === "undefined") {
  let places;
  onmessage = ({ data }) => {
    if (data.places) places = data.places;
    else {
      const order = sortByDepth(places, data.eye, data.forward);
      postMessage(order, [order.buffer]);
    }
  };
} else {
  const status = document.querySelector("#status");
  show(document.querySelector("canvas"), status).catch((error) => fail(status, error));
}
