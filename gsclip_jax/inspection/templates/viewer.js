// Clouds and views of one object, unpacked from what compact.py made and drawn on one colour scale. Needs three.js as THREE.
"use strict";

const SOUND = [[196, 202, 208], [132, 150, 170]];  // below the threshold: greys
const ALARM = [[255, 214, 64], [250, 140, 22], [215, 25, 28], [120, 0, 20]];  // from the threshold on
const RANK = [[200, 206, 212], [142, 184, 222], [70, 125, 195], [92, 60, 165], [130, 15, 115]];  // no alarm: colours that only rank
const PLAIN = [190, 196, 202];
const TRUTH = [214, 39, 40];
const LIMIT = 1e9;

// Unpacking -------------------------------------------------------------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));

/** A stride without a common divisor with n. Neighbours in the file land far apart, so that the first points are a thinned cloud. */
function strideOf(n) {
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  let stride = Math.max(1, Math.round(n * 0.6180339887));
  while (divisor(n, stride) > 1) stride++;
  return stride;
}

/** The columns of a packed cloud: { x, y, z, score, ... }, Uint16Array each. */
async function columnsOf(cloud) {
  const stream = new Blob([bytesOf(cloud.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const found = {}, stride = strideOf(cloud.n);
  cloud.columns.forEach((name, number) => {
    const low = 2 * number * cloud.n, column = new Uint16Array(cloud.n);
    for (let row = 0, place = 0, value = 0; row < cloud.n; row++, place = (place + stride) % cloud.n) {
      const folded = raw[low + row] | (raw[low + cloud.n + row] << 8);
      value = (value + ((folded >>> 1) ^ -(folded & 1))) & 0xffff;
      column[place] = value;
    }
    found[name] = column;
  });
  return found;
}

/** A stack of grey views as ImageData, the views below each other. */
async function pixelsOf(base64) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const image = await createImageBitmap(new Blob([bytesOf(base64)], { type: "image/png" }), options);
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, image.width, image.height);
}

// Colours ---------------------------------------------------------------------------------------------------------------------

function blend(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), from = Math.min(Math.floor(place), stops.length - 2);
  return stops[from].map((value, i) => Math.round(value + (place - from) * (stops[from + 1][i] - value)));
}

/** The one colour scale of a page: 256 colours between the scores low and high, with the threshold in their middle. */
class ColourScale {
  constructor({ low, high, threshold }) {
    const middle = threshold === null ? (low + high) / 2 : threshold;
    Object.assign(this, { low, high, threshold, middle });
    this.table = new Uint8Array(256 * 4);
    for (let i = 0; i < 256; i++) {
      const share = i / 255;
      const colour = threshold === null ? blend(RANK, share) : share < 0.5 ? blend(SOUND, 2 * share) : blend(ALARM, 2 * share - 1);
      this.table.set([...colour, 255], 4 * i);
    }
  }
  /** Where a score stands on the scale, 0 at its low end and 1 at its high end; linear on both sides of the middle. */
  share(score) {
    const { low, middle, high } = this;
    return score < middle ? 0.5 * (score - low) / (middle - low) : 0.5 + 0.5 * (score - middle) / (high - middle);
  }
  score(share) {
    const { low, middle, high } = this;
    return share < 0.5 ? low + 2 * share * (middle - low) : middle + (2 * share - 1) * (high - middle);
  }
  index(score) { return Math.min(Math.max(Math.round(255 * this.share(score)), 0), 255); }
  css(share) {
    const i = Math.min(Math.max(Math.round(255 * share), 0), 255);
    return `rgb(${this.table.slice(4 * i, 4 * i + 3).join(" ")})`;
  }
  gradient() {
    const stops = [];
    for (let i = 0; i < 256; i++) stops.push(`${this.css(i / 255)} ${(100 * i / 256).toFixed(2)}% ${(100 * (i + 1) / 256).toFixed(2)}%`);
    return `linear-gradient(to top, ${stops.join(", ")})`;
  }
}

// The cloud -------------------------------------------------------------------------------------------------------------------

const POINTS_VERTEX = `
  in float score; in vec3 own; in float truth;
  uniform sampler2D colours; uniform float threshold, size, height; uniform int mode; uniform vec3 plain, marked;
  out vec3 colour;
  void main() {
    vec4 place = modelViewMatrix * vec4(position, 1.0);
    gl_Position = projectionMatrix * place;
    gl_PointSize = clamp(size * height / -place.z, 1.5, 48.0);
    vec3 base = mode == 1 ? own : plain;
    if (mode == 2) colour = truth > 0.5 ? marked : plain;
    else if (mode == 3) colour = plain;
    else colour = score >= threshold ? texture(colours, vec2(clamp(score, 0.0, 1.0) * (255.0 / 256.0) + 0.5 / 256.0, 0.5)).rgb : base;
  }`;
const POINTS_FRAGMENT = `
  in vec3 colour; out vec4 found;
  void main() {
    vec2 off = gl_PointCoord - 0.5;
    if (dot(off, off) > 0.25) discard;
    found = vec4(colour, 1.0);
  }`;
// Eye-dome lighting (Boucheny 2009): a pixel is darker the more its neighbours stand before it. Shape without normals.
const SHADE_FRAGMENT = `
  uniform sampler2D picture, depths; uniform vec2 pixel, planes; uniform vec3 background;
  in vec2 at; out vec4 found;
  float far_of(vec2 place) {
    float d = texture(depths, place).r;
    return d >= 1.0 ? -1.0 : log2(planes.x * planes.y / (planes.y - d * (planes.y - planes.x)));
  }
  void main() {
    float here = far_of(at);
    if (here == -1.0) { found = vec4(background, 1.0); return; }
    float dark = 0.0;
    for (int i = 0; i < 8; i++) {
      float turn = 0.7853981634 * float(i);
      float there = far_of(at + 1.4 * pixel * vec2(cos(turn), sin(turn)));
      dark += there == -1.0 ? 0.02 : min(max(0.0, here - there), 0.05);
    }
    found = vec4(texture(picture, at).rgb * exp(-dark * 5.0), 1.0);
  }`;
const SHADE_VERTEX = "out vec2 at; void main() { at = uv; gl_Position = vec4(position.xy, 0.0, 1.0); }";

const colourOf = (rgb) => new THREE.Vector3(...rgb.map((value) => value / 255));

/** One canvas that shows one cloud at a time; drag turns it, the wheel zooms, the right button or two fingers move it. */
class CloudViewer {
  constructor(canvas, scale) {
    this.canvas = canvas;
    this.scale = scale;
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: false, powerPreference: "high-performance" });
    this.renderer.setClearColor(0x000000, 0);
    this.size = 0.01;
    this.camera = new THREE.PerspectiveCamera(35, 1, 0.05, 50);
    this.controls = new THREE.TrackballControls(this.camera, canvas);
    Object.assign(this.controls, { staticMoving: true, rotateSpeed: 3, zoomSpeed: 1.2, panSpeed: 0.6, keys: ["", "", ""] });
    this.controls.minDistance = 0.15;
    this.controls.maxDistance = 20;
    this.controls.addEventListener("change", () => { this.stale = true; });
    this.colours = new THREE.DataTexture(scale.table, 256, 1);
    this.colours.needsUpdate = true;
    this.uniforms = {
      colours: { value: this.colours }, threshold: { value: 0 }, size: { value: 1 }, height: { value: 1 }, mode: { value: 0 },
      plain: { value: colourOf(PLAIN) }, marked: { value: colourOf(TRUTH) },
    };
    const points = { vertexShader: POINTS_VERTEX, fragmentShader: POINTS_FRAGMENT, glslVersion: THREE.GLSL3 };
    this.material = new THREE.ShaderMaterial({ ...points, uniforms: this.uniforms });
    this.greyMaterial = new THREE.ShaderMaterial({ ...points, uniforms: {
      ...this.uniforms, mode: { value: 3 }, plain: { value: colourOf([120, 128, 140]) }, size: { value: 1 } } });
    this.scene = new THREE.Scene();
    this.target = new THREE.WebGLRenderTarget(1, 1, { minFilter: THREE.NearestFilter, magFilter: THREE.NearestFilter });
    this.target.depthTexture = new THREE.DepthTexture(1, 1, THREE.UnsignedIntType);
    this.shade = {
      picture: { value: this.target.texture }, depths: { value: this.target.depthTexture }, pixel: { value: new THREE.Vector2() },
      planes: { value: new THREE.Vector2(this.camera.near, this.camera.far) }, background: { value: colourOf([247, 248, 250]) },
    };
    this.flat = new THREE.Scene();
    this.flat.add(new THREE.Mesh(new THREE.PlaneGeometry(2, 2), new THREE.ShaderMaterial({ glslVersion: THREE.GLSL3,
      vertexShader: SHADE_VERTEX, fragmentShader: SHADE_FRAGMENT, uniforms: this.shade, depthTest: false, depthWrite: false })));
    this.flatCamera = new THREE.OrthographicCamera(-1, 1, 1, -1, 0, 1);
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.resize();
    this.fewer = LIMIT;  // points drawn while the cloud moves
    let last = 0, moved = 0, held = false, drew = false;
    this.controls.addEventListener("start", () => { held = true; });
    this.controls.addEventListener("end", () => { held = false; });
    const frame = (now) => {
      requestAnimationFrame(frame);
      this.controls.update();
      if (drew) this.adapt(now - last);  // what the last picture cost
      drew = this.stale;
      if (this.stale) {
        moved = now;
        this.draw(this.fewer);
      } else if (this.partly && !held && now - moved > 150) this.draw(LIMIT);
      last = now;
    };
    requestAnimationFrame(frame);
  }

  resize() {
    const width = Math.max(this.canvas.clientWidth, 1), height = Math.max(this.canvas.clientHeight, 1);
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    this.renderer.setSize(width, height, false);
    const size = this.renderer.getDrawingBufferSize(new THREE.Vector2());
    this.target.setSize(size.x, size.y);
    this.shade.pixel.value.set(1 / size.x, 1 / size.y);
    this.uniforms.height.value = size.y / (2 * Math.tan(this.camera.fov * Math.PI / 360));
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.controls.handleResize();
    this.stale = true;
  }

  /** Machines without a graphics card draw fewer points while the cloud moves, and all of them when it stands still. */
  adapt(milliseconds) {
    const now = Math.min(this.fewer, this.shares ? this.shares.length : LIMIT);
    if (milliseconds > 50) this.fewer = Math.max(now * Math.max(40 / milliseconds, 0.25), 10000);
    else if (milliseconds < 25) this.fewer = Math.min(this.fewer * 1.1, LIMIT);
  }

  draw(count) {
    this.stale = false;
    this.partly = this.points && count < this.shares.length;
    for (const cloud of this.scene.children) cloud.geometry.setDrawRange(0, Math.ceil(count));
    this.uniforms.size.value = this.size * Math.sqrt(this.partly ? this.shares.length / count : 1);
    this.renderer.setRenderTarget(this.target);
    this.renderer.clear();
    this.renderer.render(this.scene, this.camera);
    this.renderer.setRenderTarget(null);
    this.renderer.render(this.flat, this.flatCamera);
    this.frames = (this.frames || 0) + 1;
  }

  /** Shows a cloud; `removed` is one without scores or null. */
  async load(cloud, removed) {
    const columns = await columnsOf(cloud), gone = removed ? await columnsOf(removed) : null;
    for (const old of [...this.scene.children]) { this.scene.remove(old); old.geometry.dispose(); }
    const span = (part) => [0, 1, 2].map((axis) => {
      const column = part.columns["xyz"[axis]];
      let low = Infinity, high = -Infinity;
      for (const value of column) { if (value < low) low = value; if (value > high) high = value; }
      return [part.about.low[axis] + low * part.about.step, part.about.low[axis] + high * part.about.step];
    });
    const about = { columns, about: cloud }, ends = cloud.n ? span(about) : [[0, 1], [0, 1], [0, 1]];
    this.middle = ends.map(([low, high]) => (low + high) / 2);
    this.radius = Math.hypot(...ends.map(([low, high]) => high - low)) / 2 || 1;
    this.cloud = cloud;
    this.columns = columns;
    const main = this.geometry(about);
    const share = new Float32Array(cloud.n);
    if (columns.score) {
      const [low, high] = cloud.scores;
      for (let i = 0; i < cloud.n; i++) share[i] = this.scale.share(low + (high - low) * columns.score[i] / 65535);
    }
    this.shares = share;
    this.sorted = Float32Array.from(share).sort();
    main.setAttribute("score", new THREE.BufferAttribute(share, 1));
    const own = new Uint8Array(3 * cloud.n);
    if (columns.red) for (let i = 0; i < cloud.n; i++) own.set([columns.red[i], columns.green[i], columns.blue[i]], 3 * i);
    main.setAttribute("own", new THREE.BufferAttribute(own, 3, true));
    const truth = new Uint8Array(cloud.n);
    if (columns.mask) truth.set(columns.mask);
    main.setAttribute("truth", new THREE.BufferAttribute(truth, 1));
    this.points = new THREE.Points(main, this.material);
    this.scene.add(this.points);
    this.gone = gone ? new THREE.Points(this.geometry({ columns: gone, about: removed }), this.greyMaterial) : null;
    if (this.gone) { this.gone.visible = false; this.scene.add(this.gone); }
    this.spacing = cloud.spacing / this.radius;
    this.greyMaterial.uniforms.size.value = 1.2 * (removed ? removed.spacing / this.radius : 1);
    this.pointSize(this.factor || 1);
    this.face(cloud.facing);
  }

  geometry({ columns, about }) {
    const places = new Float32Array(3 * about.n), made = new THREE.BufferGeometry();
    ["x", "y", "z"].forEach((name, axis) => {
      const shift = (about.low[axis] - this.middle[axis]) / this.radius, step = about.step / this.radius;
      for (let i = 0; i < about.n; i++) places[3 * i + axis] = shift + step * columns[name][i];
    });
    made.setAttribute("position", new THREE.BufferAttribute(places, 3));
    made.boundingSphere = new THREE.Sphere(new THREE.Vector3(), 1e3);  // never culled
    return made;
  }

  /** Looks at the part from a direction [3]; it fills the canvas. */
  face(direction) {
    const from = new THREE.Vector3(...(direction || [0.5, -0.75, 0.45])).normalize();
    const narrow = Math.min(1, this.camera.aspect);
    this.controls.target.set(0, 0, 0);
    this.camera.up.set(...(Math.abs(from.z) > 0.95 ? [0, 1, 0] : [0, 0, 1]));
    this.camera.position.copy(from).multiplyScalar(0.92 / Math.sin(this.camera.fov * Math.PI / 360) / narrow);
    this.camera.lookAt(this.controls.target);
    this.controls.update();
    this.stale = true;
  }

  turn(right, up) {
    const arm = this.camera.position.clone().sub(this.controls.target), ahead = arm.clone().normalize();
    const side = this.camera.up.clone().cross(ahead).normalize(), over = ahead.clone().cross(side).normalize();
    for (const part of [arm, this.camera.up]) part.applyAxisAngle(over, right).applyAxisAngle(side, -up);
    this.camera.position.copy(this.controls.target).add(arm);
    this.camera.lookAt(this.controls.target);
    this.stale = true;
  }

  zoom(factor) {
    this.camera.position.sub(this.controls.target).multiplyScalar(factor).add(this.controls.target);
    this.stale = true;
  }

  key(event) {
    const step = 0.12, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) this.turn(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1 / 1.15);
    else if (event.key === "-") this.zoom(1.15);
    else if (event.key === "0" || event.key === "Home") this.face(this.cloud && this.cloud.facing);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  threshold(score) { this.uniforms.threshold.value = score === null ? -1e9 : this.scale.share(score); this.stale = true; }
  mode(number) { this.uniforms.mode.value = number; this.stale = true; }
  removed(visible) { if (this.gone) { this.gone.visible = visible; this.stale = true; } }
  pointSize(factor) {
    this.factor = factor;
    this.size = 2.2 * factor * (this.spacing || 0.01);
    this.stale = true;
  }

  /** How many of the shown points score at least so much. */
  above(score) {
    const share = this.scale.share(score);
    let low = 0, high = this.sorted.length;
    while (low < high) { const half = (low + high) >> 1; if (this.sorted[half] < share) low = half + 1; else high = half; }
    return this.sorted.length - low;
  }

  /** The nearest point under a place on the canvas (CSS pixels), its coordinates and score; or null. */
  pick(x, y) {
    if (!this.points) return null;
    const places = this.points.geometry.attributes.position.array, matrix = this.camera.projectionMatrix.clone();
    const m = matrix.multiply(this.camera.matrixWorldInverse).elements;
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    let best = -1, nearest = Infinity;
    for (let i = 0; i < places.length; i += 3) {
      const [a, b, c] = [places[i], places[i + 1], places[i + 2]];
      const w = m[3] * a + m[7] * b + m[11] * c + m[15];
      const off = Math.hypot(((m[0] * a + m[4] * b + m[8] * c + m[12]) / w + 1) * width / 2 - x,
        (1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * height / 2 - y);
      if (off < 6 && w + 0.004 * off < nearest) { nearest = w + 0.004 * off; best = i / 3; }
    }
    if (best < 0) return null;
    const { low, step, scores } = this.cloud, place = ["x", "y", "z"].map((name, i) => low[i] + step * this.columns[name][best]);
    return { place, score: scores[0] + (scores[1] - scores[0]) * this.columns.score[best] / 65535 };
  }
}

// Views -----------------------------------------------------------------------------------------------------------------------

/** Views of one object: paint(view, kind, canvas, threshold), kind one of render, depth, heat. */
class Views {
  static async of(packed, scale) {
    const made = new Views();
    const [render, depth, heat] = await Promise.all(["render", "depth", "heat"].map((kind) => pixelsOf(packed[kind])));
    return Object.assign(made, { packed, scale, render, depth, heat });
  }
  paint(view, kind, canvas, threshold) {
    const { width, height, scores: [low, high] } = this.packed, start = 4 * view * width * height;
    Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d"), made = pen.createImageData(width, height), grey = this[kind === "depth" ? kind : "render"].data;
    for (let i = 0; i < 4 * width * height; i += 4) {
      let colour = null;
      if (kind === "heat" && this.heat.data[start + i]) {
        const score = low + (high - low) * (this.heat.data[start + i] - 1) / 254;
        if (threshold === null || score >= threshold) colour = 4 * this.scale.index(score);
      }
      for (let part = 0; part < 3; part++) {
        const shade = grey[start + i];
        made.data[i + part] = colour === null ? shade : 0.75 * this.scale.table[colour + part] + 0.25 * shade;
      }
      made.data[i + 3] = 255;
    }
    pen.putImageData(made, 0, 0);
  }
}
