"""Makes vectors.json: what the reference implementations say about sentences.json.

Run it by hand when the sentences change:

    python3 -m venv venv
    venv/bin/pip install sentence-transformers==6.2.0 wordllama==0.4.0.post1
    cargo xtask fetch-models
    venv/bin/python make.py ../../../../../target/models

The int8 graph has no reference of its own: it is compared with the model it was made from.
"""

import json
import pathlib
import sys

from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from wordllama.inference import WordLlamaInference

HERE = pathlib.Path(__file__).parent

# Repeated, so that the fixture stays small: about 600 tokens, of which MiniLM reads 256.
LONG = "Row {n} was written at noon, and vacuum came by before the reader had seen it."


def sentences():
    texts = json.loads((HERE / "sentences.json").read_text(encoding="utf-8"))
    return texts + [" ".join(LONG.replace("{n}", str(n)) for n in range(32))]


def minilm(folder, texts):
    transformer = Transformer(str(folder), max_seq_length=256)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    # One at a time: no padding, so nothing but the model has a say.
    return [model.encode(text).tolist() for text in texts]


def wordllama(folder, texts):
    (table,) = load_file(folder / "model.safetensors").values()
    model = WordLlamaInference(table, Tokenizer.from_file(str(folder / "tokenizer.json")))
    return [model.embed(text, norm=True)[0].tolist() for text in texts]


def main():
    models = pathlib.Path(sys.argv[1])
    texts = sentences()
    vectors = {
        "minilm": minilm(models / "minilm", texts),
        "wordllama": wordllama(models / "wordllama", texts),
    }
    lines = []
    for name, rows in vectors.items():
        rows = [json.dumps([round(x, 5) for x in row], separators=(",", ":")) for row in rows]
        lines.append(f"{json.dumps(name)}: [\n" + ",\n".join(rows) + "\n]")
    (HERE / "vectors.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
