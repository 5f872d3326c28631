// The artifact: what its manifest.json says of files and precisions. Knows no device and loads no weight.

import { Fault } from './fault.js';

const MANIFEST = 'manifest.json';
const GRAPHS = ['vision_encoder', 'embed_tokens', 'decoder_model_merged']; // that transformers.js loads
const DEFAULT = 'default'; // what the page calls the precision whose files have no suffix
const DTYPE = 'fp32'; // what transformers.js calls it, whatever it stores

/** The manifest of the artifact in a directory, a URL that ends with a slash. Throws a Fault if there is none. */
export async function readArtifact(address) {
  let response;
  try {
    response = await fetch(address + MANIFEST, { cache: 'no-cache' });
  } catch {
    throw new Fault(`${address} cannot be reached. Check the connection and ?model=, then try again`);
  }
  if (!response.ok) {
    throw new Fault(`${address} has no ${MANIFEST} (${response.status}). ?model= must be the directory of an artifact`);
  }
  let manifest;
  try {
    manifest = await response.json();
  } catch {
    throw new Fault(`${address}${MANIFEST} is not JSON. ?model= must be the directory of an artifact`);
  }
  return new Artifact(address, manifest);
}

class Artifact {
  constructor(address, manifest) {
    const { name, recipe, files } = manifest ?? {};
    if (typeof name !== 'string' || !isListing(files) || !Array.isArray(recipe?.packaging?.runtimes)) {
      throw new Fault(`${address}${MANIFEST} is not the manifest of an artifact`);
    }
    if (!recipe.packaging.runtimes.includes('transformers.js')) {
      throw new Fault(`${name} is not packaged for transformers.js. Build it again with vision.grid: dynamic`);
    }
    if ((recipe.head ?? 'text') !== 'text') {
      throw new Fault(`${name} does not answer questions: it is an embedding model or a reranker`);
    }
    this.address = address;
    this.name = name;
    this.files = new Map(Object.entries(files));
    const further = Object.entries(manifest.precisions ?? {});
    this.precisions = [
      this.#precision(DEFAULT, '', recipe),
      ...further.map(([dtype, entry]) => this.#precision(dtype, `_${dtype}`, entry.recipe)),
    ];
  }

  /** A precision by the name that ?dtype= gives it. */
  precision(name) {
    const precision = this.precisions.find((entry) => entry.name === (name === DTYPE ? DEFAULT : name));
    if (precision) return precision;
    const names = this.precisions.map((entry) => entry.name).join(', ');
    throw new Fault(`?dtype=${name}: ${this.name} has no such precision. It has ${names}`);
  }

  #precision(name, suffix, recipe) {
    const graphs = GRAPHS.map((graph) => `onnx/${graph}${suffix}.onnx`);
    const belongs = (file) => graphs.some((graph) => file === graph || file.startsWith(`${graph}_data`));
    const files = [...this.files.keys()].filter(belongs);
    const bytes = files.reduce((sum, file) => sum + this.files.get(file).bytes, 0);
    return { name, dtype: name === DEFAULT ? DTYPE : name, text: describe(recipe), files, bytes, recipe };
  }
}

function isListing(files) {
  const records = Object.values(files ?? []);
  const whole = ({ bytes, sha256 }) => Number.isSafeInteger(bytes) && bytes >= 0 && typeof sha256 === 'string';
  return records.length > 0 && records.every((record) => record && whole(record));
}

/** How a recipe stores weights: `float16, decoder int4`. */
function describe({ dtype, quantization }) {
  const method = quantization?.decoder_model_merged?.method ?? 'none';
  return method === 'none' ? dtype : `${dtype}, decoder ${method}`;
}
