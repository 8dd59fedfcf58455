#!/usr/bin/env python3
"""What `transformers` makes of the chat templates in crates/model/tests/suite/templates, for the inputs of chats.json.

V/bin/pip install transformers jinja2 && V/bin/python tools/make_chat_goldens.py      # writes expected.json
"""

import json, pathlib
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates/model/tests/suite/templates"
chats = json.loads((FOLDER / "chats.json").read_text())
expected = {}
for path in sorted(FOLDER.glob("*.jinja")):
    for name, chat in chats.items():
        try:
            rendered, _ = render_jinja_template(
                [chat["messages"]],
                tools=chat.get("tools"),
                chat_template=path.read_text(),
                add_generation_prompt=chat.get("add_generation_prompt", False),
                bos_token="<s>",
                eos_token="</s>",
                **chat.get("variables", {}),
            )
            text = rendered[0]
        except Exception as error:
            text = f"refused: {error}"
        expected[f"{path.stem}/{name}"] = text
(FOLDER / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
