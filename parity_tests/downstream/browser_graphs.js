// Runs an artifact in a browser, as transformers.js loads it: its graphs one by one (`run`), or a question (`answer`).
//
// job: {library, wasm, models, name, device, dtype, session_options} and what the function needs. A tensor is {type, dims, data}, data in
// base64. Both return seconds of each stage, and `error`, stage and message, where something failed.
const ARRAYS = { float32: Float32Array, float16: globalThis.Float16Array, int8: Int8Array, int64: BigInt64Array };

/** job.runs: stage -> {graph, inputs, output, keeps}. Returns the output of each; a run that keeps leaves its cache. */
export function run(job) {
  return staged(job, async ({ Qwen3VLForConditionalGeneration, Tensor }, timed) => {
    const { sessions } = await timed('load', () => Qwen3VLForConditionalGeneration.from_pretrained(...source(job)));
    const results = {};
    let cache = {};
    for (const [stage, { graph, inputs, output, keeps }] of Object.entries(job.runs)) {
      const feeds = { ...cache };
      for (const [name, tensor] of Object.entries(inputs)) feeds[name] = decode(Tensor, tensor);
      const given = Object.fromEntries(sessions[graph].inputNames.map((name) => [name, feeds[name]]));
      await timed(stage, async () => {
        const outputs = await sessions[graph].run(given);
        results[stage] = encode(outputs[output], await outputs[output].getData());
        if (keeps) cache = asPast(outputs);
      });
    }
    return { results };
  });
}

/** job.picture: a URL; job.question; job.new_tokens. Returns greedy tokens and the logits that each was chosen from. */
export function answer(job) {
  return staged(job, async (library, timed) => {
    const { AutoProcessor, LogitsProcessor, LogitsProcessorList, Qwen3VLForConditionalGeneration, RawImage } = library;
    const [processor, model] = await timed('load', async () => [
      await AutoProcessor.from_pretrained(...source(job)),
      await Qwen3VLForConditionalGeneration.from_pretrained(...source(job)),
    ]);
    for (const [name, session] of Object.entries(model.sessions)) {
      const run = session.run.bind(session);
      session.run = (...given) => timed(name, () => run(...given));
    }
    const content = [{ type: 'image' }, { type: 'text', text: job.question }];
    const prompt = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const inputs = await processor(prompt, await RawImage.read(job.picture));
    const rows = [];
    const times = [performance.now()];
    class Recorder extends LogitsProcessor {
      _call(inputIds, logits) {
        times.push(performance.now());
        rows.push(encode({ type: 'float32', dims: logits.dims }, Float32Array.from(logits.data)));
        return logits;
      }
    }
    const recorder = new LogitsProcessorList();
    recorder.push(new Recorder());
    const options = { max_new_tokens: job.new_tokens, do_sample: false, logits_processor: recorder };
    const sequence = await timed('answer', () => model.generate({ ...inputs, ...options }));
    const tokens = sequence.slice(null, [inputs.input_ids.dims.at(-1), null]).tolist()[0].map(Number);
    const steps = times.slice(1).map((time, index) => (time - times[index]) / 1000);
    return { tokens, logits: rows, prompt: inputs.input_ids.dims.at(-1), steps };
  });
}

async function staged(job, compute) {
  const heap = watchHeap();
  const library = await import(job.library);
  const { env } = library;
  env.allowLocalModels = false;
  env.remoteHost = job.models;
  env.remotePathTemplate = '{model}';
  env.useBrowserCache = false;
  env.backends.onnx.wasm.wasmPaths = job.wasm;
  const seconds = {};
  let stage = '';
  const timed = async (name, task) => {
    stage = name;
    const start = performance.now();
    const result = await task();
    seconds[name] = (performance.now() - start) / 1000;
    return result;
  };
  try {
    return { ...(await compute(library, timed)), seconds, heap: heap() };
  } catch (error) {
    return { error: `${stage}: ${error?.message ?? error}`, seconds, heap: heap() };
  }
}

/** Returns a function that says how many bytes WebAssembly holds, of memory that is made from here on. */
function watchHeap() {
  const memories = [];
  WebAssembly.Memory = class extends WebAssembly.Memory {
    constructor(descriptor) {
      super(descriptor);
      memories.push(this);
    }
  };
  return () => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
}

function source({ name, device, dtype, session_options }) {
  return [name, { device, ...(dtype && { dtype }), ...(session_options && { session_options }) }];
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
