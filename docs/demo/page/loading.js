// How far the model is: one line that is read aloud, a bar, and a line of numbers that moves every second.

import { bytesText, megabytes } from './bytes.js';

const STALLED = 10; // seconds without a byte that are worth a word
const DEVICES = { webgpu: 'WebGPU', wasm: 'WebAssembly' };
const element = (id) => document.getElementById(id);
const [status, progress, detail, go, again] = ['status', 'progress', 'detail', 'go', 'again'].map(element);
const [device, dtype] = ['device', 'dtype'].map(element);

let started = 0; // when the phase began
let moved = 0; // when the last byte came
let numbers = ''; // of the phase
let fetches = true; // bytes are to come
let clock; // of the line of numbers
let plan = {};

/** A phase of unknown length begins; whether bytes are to come in it. */
export function phase(text, network = true) {
  started = moved = Date.now();
  fetches = network;
  numbers = '';
  progress.removeAttribute('value');
  show(`${text}…`);
}

/** What will be loaded is known, and perhaps waits for somebody to agree to a large download. */
export function planned(message) {
  plan = message;
  const devices = plan.devices.map((name) => [name, DEVICES[name]]);
  const precisions = plan.precisions.map(({ name, text, bytes }) => {
    const title = name === 'default' ? text : `${name} (${text})`;
    return [name, `${title}, ${bytesText(bytes)}`];
  });
  fill(device, devices, plan.device);
  fill(dtype, precisions, plan.dtype);
  if (!plan.asks) return;
  rest(`${plan.name} is a download of ${bytesText(plan.bytes)}`);
  const here = navigator.deviceMemory * 1e9; // browsers say 8 at most
  const short = here < 8e9 && here < plan.memory ? `; this device has about ${bytesText(here)}` : '';
  const kept = globalThis.caches ? ' It is kept for the next visit.' : '';
  detail.textContent = `It needs about ${bytesText(plan.memory)} of memory${short}.${kept}`;
  go.textContent = `Download ${bytesText(plan.bytes)}`;
  go.hidden = false;
}

export function loaded({ loaded: bytes, total }) {
  moved = Date.now();
  if (bytes >= total) return phase('Preparing the model', false);
  const text = `Loading ${plan.name}…`;
  if (status.textContent !== text) show(text);
  progress.value = bytes / total;
  numbers = `${megabytes(bytes)} of ${megabytes(total)} MB`;
  return tick();
}

export function ready(seconds) {
  const { text } = plan.precisions.find(({ name }) => name === plan.dtype);
  rest(`${plan.name} is ready on ${DEVICES[plan.device]} in ${text}`);
  detail.textContent = `Loaded in ${seconds.toFixed(1)} s`;
}

export function failed(message) {
  rest(message);
  status.classList.add('wrong');
  again.hidden = false;
}

/** Nothing moves: no bar, no clock. */
function rest(text) {
  show(text);
  clearInterval(clock);
  clock = undefined;
  progress.classList.add('rests');
  detail.textContent = '';
  again.hidden = true;
}

function show(text) {
  status.textContent = text;
  status.classList.remove('wrong');
  progress.classList.remove('rests');
  go.hidden = true;
  clock ??= setInterval(tick, 1000);
  tick();
}

function tick() {
  const silent = Math.round((Date.now() - moved) / 1000);
  const seconds = Math.round((Date.now() - started) / 1000);
  const stalled = fetches && silent >= STALLED;
  const time = stalled ? `nothing has come for ${silent} s` : `${seconds} s`;
  detail.textContent = numbers ? `${numbers}; ${time}` : time;
  again.hidden = !stalled;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = chosen;
  select.disabled = options.length < 2;
}

for (const select of [device, dtype]) {
  select.onchange = () => {
    const address = new URL(location.href);
    if (select === device) address.searchParams.delete('dtype'); // it may not run there
    address.searchParams.set(select.id, select.value);
    location.assign(address);
  };
}
