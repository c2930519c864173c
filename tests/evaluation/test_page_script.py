"""The page's own script, run by Node with a fake browser: which pairs are hidden, and the order of the pairs."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

BROWSER = """
const controls = {}, log = [];
const control = (value) => ({ value, listeners: {}, addEventListener(name, work) { this.listeners[name] = work; } });
const article = (id, margins, group, textContent) => ({ id, dataset: { margins, group }, textContent, hidden: false });
const main = { children: [
  article(0, "-1.5 2 ", "x", "The Fox jumps"), article(1, "3 -4 ", "y", "a dog"), article(2, "0 1 ", "x", "fox and dog"),
], dataset: { models: "0 1 " }, append(...nodes) { this.children = nodes; } };
for (const [id, value] of [["contender", "0"], ["which", "all"], ["group", ""], ["words", ""]]) controls[id] = control(value);
controls.pairs = main; controls.count = {};
globalThis.document = { getElementById: (id) => controls[id] ?? null };
const ids = (nodes) => nodes.map((node) => node.id);
const state = () => log.push({ order: ids(main.children), shown: ids(main.children.filter((n) => !n.hidden)),
  kinds: main.children.map((n) => n.className), count: controls.count.textContent });
const set = (id, value, event = "change") => { controls[id].value = value; controls[id].listeners[event](); state(); };
"""


def run(steps, browser=BROWSER):
    page = (files("polar_rm.evaluation") / "page.html.j2").read_text()
    script = page[page.index("<script>") + 8 : page.index("</script>")]
    program = f"{browser}\n(() => {{ {script} }})();\nstate();\n{steps}\nconsole.log(JSON.stringify(log));"
    done = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_only_models_disagree_and_baselines_do_not():
    page = BROWSER.replace('models: "0 1 "', 'models: "0 "')
    first, disagree = run('set("which", "disagree");', page)
    assert first["shown"] == [0, 2, 1] and disagree["shown"] == []


def test_pairs_are_sorted_and_filtered():
    first, second, wrong, disagree, words, both, group = run(
        'set("contender", "1"); set("which", "wrong"); set("which", "disagree"); set("which", "all"); log.pop();'
        'set("words", "FOX", "input"); set("words", "fox dog", "input"); set("words", "", "input"); log.pop(); set("group", "y");'
    )
    assert (first["order"], first["shown"], first["count"]) == ([0, 2, 1], [0, 2, 1], "3 of 3 shown")
    assert first["kinds"] == ["wrong", "tie", "right"]
    assert second["order"] == [1, 2, 0] and second["kinds"] == ["wrong", "right", "right"]
    assert wrong["shown"] == [1] and wrong["count"] == "1 of 3 shown"
    assert disagree["shown"] == [1, 2, 0]  # also a tie beside a right one
    assert words["shown"] == [2, 0] and both["shown"] == [2]
    assert group["shown"] == [1]
