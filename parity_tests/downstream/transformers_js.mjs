// Answers prompts with transformers.js in Node, and writes down what it was given and what it computed.
//
// usage: node transformers_js.mjs NODE_MODULES JOB.json
// JOB.json: {model, dtype, out, new_tokens, no_grid, prompts: [{name, text, images}]}; `dtype` may be empty.
// Writes OUT/NAME.json ({tokens, shapes, types}, or {error}) and OUT/NAME.<array>.bin, little-endian.
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, jobFile] = process.argv.slice(2);
const library = pathToFileURL(join(modules, '@huggingface', 'transformers', 'dist', 'transformers.node.mjs'));
const { AutoProcessor, LogitsProcessor, LogitsProcessorList, Qwen3VLForConditionalGeneration, RawImage, Tensor, env } =
  await import(library);

const job = JSON.parse(readFileSync(jobFile, 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(job.model));
const name = basename(job.model);
const processor = await AutoProcessor.from_pretrained(name);
const model = await Qwen3VLForConditionalGeneration.from_pretrained(name, job.dtype ? { dtype: job.dtype } : {});

// Note how many rows of logits each run of the decoder computes.
const decoder = model.sessions.decoder_model_merged;
const run = decoder.run.bind(decoder);
let rows = [];
decoder.run = async (...given) => {
  const results = await run(...given);
  rows.push(results.logits.dims[1]);
  return results;
};

/** Keeps the logits each token is chosen from. */
class Recorder extends LogitsProcessor {
  rows = [];
  _call(inputIds, logits) {
    this.rows.push(Float32Array.from(logits.data));
    return logits;
  }
}

function write(prompt, arrays) {
  const record = { shapes: {}, types: {} };
  for (const [key, { data, dims, type }] of Object.entries(arrays)) {
    writeFileSync(join(job.out, `${prompt}.${key}.bin`), Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    record.shapes[key] = dims;
    record.types[key] = type;
  }
  writeFileSync(join(job.out, `${prompt}.json`), JSON.stringify(record));
}

async function answer({ text, images }) {
  const pictures = await Promise.all(images.map((file) => RawImage.read(file)));
  const inputs = await processor(text, pictures.length > 1 ? pictures : (pictures[0] ?? null));
  const noPicture = job.no_grid ? {} : { image_grid_thw: new Tensor('int64', new BigInt64Array(0), [0, 3]) };
  const recorder = new Recorder();
  rows = [];
  const logitsProcessor = new LogitsProcessorList();
  logitsProcessor.push(recorder);
  const sequence = await model.generate({
    ...(pictures.length ? {} : noPicture),
    ...inputs,
    max_new_tokens: job.new_tokens,
    do_sample: false,
    logits_processor: logitsProcessor,
  });
  const tokens = sequence.slice(null, [inputs.input_ids.dims.at(-1), null]);
  const width = recorder.rows[0].length;
  const logits = new Tensor('float32', Float32Array.from(recorder.rows.flatMap((row) => [...row])), [recorder.rows.length, width]);
  const { input_ids, attention_mask, pixel_values, image_grid_thw } = inputs;
  const pixels = pixel_values ? { pixel_values, image_grid_thw } : {};
  const computed_rows = new Tensor('int64', BigInt64Array.from(rows, BigInt), [rows.length]);
  return { input_ids, attention_mask, ...pixels, tokens, logits, computed_rows };
}

for (const prompt of job.prompts) {
  try {
    write(prompt.name, await answer(prompt));
  } catch (error) {
    writeFileSync(join(job.out, `${prompt.name}.json`), JSON.stringify({ error: String(error) }));
  }
}
