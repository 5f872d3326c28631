// Runs the graphs of one artifact in a browser, as transformers.js loads them: tower, token table, prompt, one step.
//
// job: {library, wasm, models, name, device, dtype, pastDims, inputs, outputs}; `inputs` has for each run the tensors that
// it is given, by name: {type, dims, data}, data in base64; `outputs` the name of what each run returns. The step gets
// the cache that the prompt left.
const ARRAYS = { float32: Float32Array, float16: globalThis.Float16Array, int64: BigInt64Array };

/** Outputs by run, as the inputs are given, and seconds; or the message of what failed. */
export async function run(job) {
  const { AutoConfig, Qwen3VLForConditionalGeneration, Tensor, env } = await import(job.library);
  env.allowLocalModels = false;
  env.remoteHost = job.models;
  env.remotePathTemplate = '{model}';
  env.useBrowserCache = false;
  env.backends.onnx.wasm.wasmPaths = job.wasm;
  const seconds = {};
  const timed = async (name, compute) => {
    const start = performance.now();
    const result = await compute();
    seconds[name] = (performance.now() - start) / 1000;
    return result;
  };
  let stage = 'load';
  try {
    const options = { device: job.device, ...(job.dtype && { dtype: job.dtype }) };
    const { sessions } = await timed(stage, () => Qwen3VLForConditionalGeneration.from_pretrained(job.name, options));
    const results = {};
    let cache = {};
    for (const [run, { graph, inputs, output, keeps }] of Object.entries(job.runs)) {
      stage = run;
      const session = sessions[graph];
      const feeds = { ...cache };
      for (const [name, tensor] of Object.entries(inputs)) feeds[name] = decode(Tensor, tensor);
      const given = Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]]));
      await timed(run, async () => {
        const outputs = await session.run(given);
        results[run] = encode(outputs[output], await outputs[output].getData());
        if (keeps) cache = asPast(outputs);
      });
    }
    return { results, seconds };
  } catch (error) {
    return { error: `${stage}: ${error?.message ?? error}`, seconds };
  }
}

/** What the decoder returns of its cache, under the names by which it takes it. */
function asPast(outputs) {
  const present = Object.entries(outputs).filter(([name]) => name.startsWith('present.'));
  return Object.fromEntries(present.map(([name, tensor]) => [name.replace('present.', 'past_key_values.'), tensor]));
}

function decode(Tensor, { type, dims, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  return new Tensor(type, new ARRAYS[type](bytes.buffer), dims).ort_tensor;
}

function encode({ type, dims }, array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = '';
  for (let start = 0; start < bytes.length; start += 0x8000)
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  return { type, dims, data: btoa(text) };
}
