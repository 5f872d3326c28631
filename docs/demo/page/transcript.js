// The conversation on the page: questions, answers as they grow, and what the model still has in view.

const element = (id) => document.getElementById(id);
const [list, invitation, clear, form] = ['turns', 'invitation', 'clear', 'form'].map(element);

let turns = []; // of the conversation that the model knows: { question, answer }
let current = null; // the turn that is being answered, with its elements
let clock;

/** A question is asked: what the model must know to answer it. */
export function begin(question, picture) {
  const item = append('div', list, 'turn');
  const asked = append('div', item, 'question');
  if (picture && turns.length === 0) {
    const thumbnail = append('img', asked);
    thumbnail.src = picture.url;
    thumbnail.alt = picture.name;
  }
  append('p', asked).textContent = question;
  const waiting = append('p', item, 'waiting');
  const word = picture && turns.length === 0 ? 'Looking at the picture' : 'Reading the question';
  append('span', waiting).textContent = `${word}…`;
  const seconds = append('span', waiting);
  seconds.ariaHidden = 'true'; // a number that changes every second is not for reading aloud
  const start = Date.now();
  clock = setInterval(() => {
    seconds.textContent = ` ${Math.round((Date.now() - start) / 1000)} s`;
  }, 1000);
  current = { question, conversation: turns, item, waiting, answer: null };
  invitation.hidden = true;
  clear.hidden = false;
  list.ariaBusy = 'true';
  follow(true);
  return [...turns, { question }];
}

/** The answer grows. */
export function grow(text) {
  const near = atEnd();
  if (!current.answer) {
    current.answer = document.createElement('p');
    current.answer.className = 'answer';
    current.waiting.replaceWith(current.answer);
    clearInterval(clock);
  }
  current.answer.textContent += text;
  follow(near);
}

/** The answer is complete; `facts` is a line about it. */
export function finish(facts) {
  current.conversation.push({ question: current.question, answer: current.answer?.textContent ?? '' });
  end(facts, 'facts');
}

/** There is no answer, or none that goes on; the model is not told of this turn. */
export function fail(message) {
  end(message, 'wrong');
}

/** What was said so far is not in the model's view any more. */
export function forget(reason) {
  const last = list.lastElementChild;
  if (last && !last.matches('.divider')) append('div', list, 'divider').textContent = reason;
  turns = [];
}

/** Nothing is left of the conversation. */
export function empty() {
  turns = [];
  list.replaceChildren();
  invitation.hidden = false;
  clear.hidden = true;
}

function end(text, kind) {
  const near = atEnd();
  clearInterval(clock);
  current.waiting.remove();
  append('p', current.item, kind).textContent = text;
  current = null;
  list.ariaBusy = 'false';
  follow(near);
}

function append(tag, parent, kind = '') {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  parent.append(node);
  return node;
}

function atEnd() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - form.offsetHeight;
}

function follow(near) {
  if (near) scrollTo({ top: document.documentElement.scrollHeight });
}
