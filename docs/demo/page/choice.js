// Where the model runs and in which precision: the page's address decides, else what this browser has.

import { bytesText } from './bytes.js';
import { Fault } from './fault.js';

const DEVICES = ['webgpu', 'wasm'];
const WASM_BYTES = 3.5 * 2 ** 30; // of weights: its 4 GiB hold them, activations and logits together
const TIGHT_WASM_BYTES = 2 * 2 ** 30; // above these the scores of a large picture's attention do not fit beside them
const HALF = 'float16';

/** What WebGPU offers here: null, or whether it computes in float16 (`half`) and in software (`fallback`). */
export async function probeGpu() {
  const adapter = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return null;
  const fallback = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  return { half: adapter.features.has('shader-f16'), fallback };
}

/**
 * The device and the precision. Without ?device= that is WebGPU where it is real and computes in float16, else
 * WebAssembly; without ?dtype= the artifact's default precision, else the smallest one that runs there.
 */
export function choose({ device, dtype }, artifact, gpu) {
  if (device && !DEVICES.includes(device)) {
    throw new Fault(`?device=${device}: there is no such device. Take ${DEVICES.join(' or ')}`);
  }
  if (device === 'webgpu' && !gpu) {
    throw new Fault('?device=webgpu: this browser offers no WebGPU on this page. Take ?device=wasm');
  }
  const chosen = device || (gpu?.half && !gpu.fallback ? 'webgpu' : 'wasm');
  if (dtype) {
    const precision = artifact.precision(dtype);
    const obstacle = obstacleTo(precision, chosen, gpu);
    if (obstacle) throw new Fault(`?dtype=${dtype}: ${obstacle}`);
    return { device: chosen, precision };
  }
  const [first, ...rest] = artifact.precisions;
  const candidates = [first, ...rest.sort((a, b) => a.bytes - b.bytes)];
  const precision = candidates.find((entry) => !obstacleTo(entry, chosen, gpu));
  if (!precision) throw new Fault(`${artifact.name}: ${obstacleTo(first, chosen, gpu)}`);
  return { device: chosen, precision };
}

/** The devices that ?device= could name here. */
export function devicesHere(gpu) {
  return gpu ? DEVICES : ['wasm'];
}

/** Of a picture, for which a device has memory: 1,024 tokens, or 256. */
export function mostPixels({ bytes }, device) {
  return device === 'wasm' && bytes > TIGHT_WASM_BYTES ? 512 * 512 : 1024 * 1024;
}

/** Why a precision cannot run on a device; undefined if it can. The packaging says the same (`browsers.py`). */
export function obstacleTo({ recipe, bytes }, device, gpu) {
  if (recipe.dtype === 'bfloat16') {
    return 'no browser computes in bfloat16. Take an artifact built with --precision web';
  }
  if (device === 'webgpu' && recipe.dtype === HALF && !gpu.half) {
    return 'the GPU here does not compute in float16 (shader-f16). Take ?device=wasm';
  }
  if (device === 'webgpu' && recipe.quantization?.cache?.method === 'int8') {
    return 'WebGPU takes no cache in 8 bits. Take ?device=wasm';
  }
  if (device === 'wasm' && bytes > WASM_BYTES) {
    return `its ${bytesText(bytes)} do not fit into WebAssembly (4 GB). Take ?device=webgpu or a smaller precision`;
  }
  return undefined;
}
