"""Converts the golden answers of the needle model into plain files that a test can embed or map.

    python3 tools/convert_golden.py SOURCE TARGET

SOURCE holds docs.npz (token ids per context and document) and golden.json (questions and the reference's answers).
TARGET gets docs/CONTEXT-DOCUMENT.u16 (little-endian token ids, nothing else) and golden.json, one question a line.
Python's standard library is enough.
"""

import ast
import json
import pathlib
import struct
import sys
import zipfile


def array(data: bytes) -> tuple[bytes, int]:
    """The raw little-endian bytes and the length of a one-dimensional u16 array in NumPy's .npy format."""
    assert data[:6] == b"\x93NUMPY", "not an .npy member"
    size, start = (struct.unpack("<H", data[8:10])[0], 10) if data[6] == 1 else (struct.unpack("<I", data[8:12])[0], 12)
    header = ast.literal_eval(data[start:start + size].decode())
    assert header["descr"] == "<u2" and len(header["shape"]) == 1, header
    raw = data[start + size:]
    assert len(raw) == 2 * header["shape"][0], "truncated array"
    return raw, header["shape"][0]


def question(entry: dict) -> str:
    return json.dumps({
        "doc": entry["doc"],
        "question": entry["question"],
        "answer": "".join(entry["answer"]),
        "depth": entry["depth"],
        "dense": "".join(entry["dense"]),
        "margin": entry["margin"],
    }, separators=(",", ":"))


def context(entry: dict) -> str:
    rows = ",\n".join(question(q) for q in entry["questions"])
    accuracy = json.dumps(entry["accuracy"], separators=(",", ":"))
    return f'{{"n":{entry["n"]},"accuracy":{accuracy},"questions":[\n{rows}]}}'


def main() -> None:
    source, target = map(pathlib.Path, sys.argv[1:3])
    golden = json.loads((source / "golden.json").read_text())
    (target / "docs").mkdir(parents=True, exist_ok=True)
    total = 0
    with zipfile.ZipFile(source / "docs.npz") as docs:
        for name in docs.namelist():
            length, document = name.removesuffix(".npy").split("/")
            raw, tokens = array(docs.read(name))
            assert 0 <= tokens - int(length) + 16 < 64, (name, tokens)
            (target / "docs" / f"{length}-{document}.u16").write_bytes(raw)
            total += len(raw)
    for entry in golden["contexts"].values():
        for q in entry["questions"]:
            assert all(len(digit) == 1 for digit in q["answer"] + q["dense"]), q
    contexts = ",\n".join(f'"{name}":{context(entry)}' for name, entry in golden["contexts"].items())
    text = f'{{"seed":{golden["seed"]},"contexts":{{\n{contexts}}}}}\n'
    json.loads(text)
    (target / "golden.json").write_text(text)
    print(f"{total} bytes of documents, {len(text)} bytes of questions")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
