"""How an artifact is used: a program for each runtime and head, shown in model cards.

Tests run every one of them. Knows programs; nothing about artifacts.
"""

from __future__ import annotations

from ..contract import EMBEDDING, RERANKER, TEXT
from ..promise import GENAI, ONNXRUNTIME, TRANSFORMERS_JS

PYTHON = """\
# needs qwen3vl-export and huggingface_hub
from huggingface_hub import snapshot_download
from qwen3vl_export.runtime import Image, Qwen3VL

model = Qwen3VL.load(snapshot_download("{repository}"))
"""

ANSWER = """\
for piece in model.stream([Image("cat.png"), "What is this?"]):
    print(piece, end="", flush=True)
"""

EMBED = """\
(vector,) = model.embed([[Image("cat.png"), "a cat"]])
print(vector.tolist())
"""

RERANK = """\
(score,) = model.rerank("a cat", [Image("cat.png")])
print(score)
"""

GENAI_PYTHON = """\
# needs onnxruntime-genai and huggingface_hub
import onnxruntime_genai as og
from huggingface_hub import snapshot_download

model = og.Model(snapshot_download("{repository}"))
processor = model.create_multimodal_processor()
question = "<|vision_start|><|image_pad|><|vision_end|>What is this?"
prompt = f"<|im_start|>user\\n{{question}}<|im_end|>\\n<|im_start|>assistant\\n"
params = og.GeneratorParams(model)
params.set_search_options(max_length=2048, do_sample=False)
generator = og.Generator(model, params)
generator.set_inputs(processor(prompt, images=og.Images.open("cat.png")))
stream = processor.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
"""

LOAD_JAVASCRIPT = """\

const processor = await AutoProcessor.from_pretrained('{repository}');
const model = await Qwen3VLForConditionalGeneration.from_pretrained('{repository}');
"""

STREAM_JAVASCRIPT = """\
// needs @huggingface/transformers
import {{ AutoProcessor, Qwen3VLForConditionalGeneration, RawImage, TextStreamer }} from '@huggingface/transformers';
"""

ANSWER_JAVASCRIPT = f"""\
{STREAM_JAVASCRIPT}{LOAD_JAVASCRIPT}\
const content = [{{{{ type: 'image' }}}}, {{{{ type: 'text', text: 'What is this?' }}}}];
const prompt = processor.apply_chat_template([{{{{ role: 'user', content }}}}], {{{{ add_generation_prompt: true }}}});
const inputs = await processor(prompt, await RawImage.read('cat.png'));
const streamer = new TextStreamer(processor.tokenizer, {{{{ skip_prompt: true, skip_special_tokens: true }}}});
await model.generate({{{{ ...inputs, max_new_tokens: 512, do_sample: false, streamer }}}});
"""

TENSOR_JAVASCRIPT = """\
// needs @huggingface/transformers
import {{ AutoProcessor, Qwen3VLForConditionalGeneration, RawImage, Tensor }} from '@huggingface/transformers';
"""

LAST_JAVASCRIPT = """\
const messages = [{{ role: 'system', content: [text(system)] }}, {{ role: 'user', content }}];
const prompt = processor.apply_chat_template(messages, {{ add_generation_prompt: true }});
const inputs = await processor(prompt, await RawImage.read('cat.png'));
const last = {{ num_logits_to_keep: new Tensor('int64', [1n], []) }};
"""

EMBED_JAVASCRIPT = f"""\
{TENSOR_JAVASCRIPT}{LOAD_JAVASCRIPT}\
const text = (text) => ({{{{ type: 'text', text }}}});
const system = "Represent the user's input.";
const content = [{{{{ type: 'image' }}}}, text('a cat')];
{LAST_JAVASCRIPT}\
const {{{{ last_hidden_state }}}} = await model({{{{ ...inputs, ...last }}}});
console.log(JSON.stringify(last_hidden_state.slice(null, -1).normalize(2, -1).tolist()[0]));
"""

RERANK_JAVASCRIPT = f"""\
{TENSOR_JAVASCRIPT}{LOAD_JAVASCRIPT}\
const text = (text) => ({{{{ type: 'text', text }}}});
const system =
  'Judge whether the Document meets the requirements based on the Query and the Instruct provided. ' +
  'Note that the answer can only be "yes" or "no".';
const instruct = '<Instruct>: Given a search query, retrieve relevant candidates that answer the query.';
const content = [text(instruct), text('<Query>:'), text('a cat'), text('\\n<Document>:'), {{{{ type: 'image' }}}}];
{LAST_JAVASCRIPT}\
const {{{{ logits }}}} = await model({{{{ ...inputs, ...last }}}});
const [yes, no] = logits.tolist()[0].at(-1);
console.log(1 / (1 + Math.exp(no - yes)));
"""

SNIPPETS = {  # by runtime and head: language and program
    (ONNXRUNTIME, TEXT): ("python", PYTHON + ANSWER),
    (ONNXRUNTIME, EMBEDDING): ("python", PYTHON + EMBED),
    (ONNXRUNTIME, RERANKER): ("python", PYTHON + RERANK),
    (GENAI, TEXT): ("python", GENAI_PYTHON),
    (TRANSFORMERS_JS, TEXT): ("js", ANSWER_JAVASCRIPT),
    (TRANSFORMERS_JS, EMBEDDING): ("js", EMBED_JAVASCRIPT),
    (TRANSFORMERS_JS, RERANKER): ("js", RERANK_JAVASCRIPT),
}
