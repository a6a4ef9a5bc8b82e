"""Build the text world from the standard library of this Python: ``python tools/worlds/build_text.py --out DIR``.

This takes about 15 minutes on two idle CPU cores. An interrupted build continues from its last checkpoint.
Other sizes and optimizers are bases for experiments: ``--width 384 --layers 6``, ``--optimizer muon``, ``--steps 650``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from orthotune.files.atomic import write_bytes, write_text
from orthotune.files.json_file import read_json, write_json
from text_corpus import Corpus, Document, collect
from text_pretrain import (
    HEAD,
    OPTIMIZERS,
    Schedule,
    nats_per_token,
    new_model,
    pretrain,
    save,
    stream,
    train_tokenizer,
)

NOTICE = """The texts in data/ and the texts that the model and the tokenizer in model/ were trained on come from the
standard library of CPython {version}: its source code, docstrings and pydoc topics.

Copyright (c) Python Software Foundation. All rights reserved.
Licensed under the Python Software Foundation License Version 2 (https://docs.python.org/3/license.html).
Some files were contributed under notices of their own, which stand in their texts.

Changes: long module and class docstrings were taken out of the code and grouped by file as prose, paragraphs
that appear more than once were kept once, and the texts were divided into splits. data/old_train.jsonl.gz is a
part of the code that the model was trained on.
"""


def build(out: Path, work: Path, plan: Schedule) -> dict[str, object]:
    """Write splits, model, notice and card into ``out``; return the card.

    Args:
        out: the folder of the world.
        work: folder for the checkpoint.
        plan: of the training.
    """
    corpus = _write_texts(out)
    # The tokenizer is also trained on the prose that finetuning will learn; the model is not.
    seen = corpus.pretraining + corpus.splits["new_train"]
    tokenizer = train_tokenizer(doc["text"] for doc in seen)
    tokens = stream(tokenizer, texts(corpus.pretraining))
    model = new_model(tokenizer, plan)
    card: dict[str, object] = {
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "pretraining": {"files": len(corpus.pretraining), "tokens": len(tokens)},
        "steps": plan.steps,
        "tokens_per_step": plan.batch * plan.length,
        "learning_rate": {"peak": plan.peak, "cosine_to": plan.horizon, "line_to_zero_over": plan.anneal},
        "seed": plan.seed,
        "optimizer": plan.optimizer,
        "width": plan.width,
        "layers": plan.layers,
    }
    print(json.dumps(card), flush=True)
    work.mkdir(parents=True, exist_ok=True)
    name = f"{plan.optimizer}-{plan.width}x{plan.layers}-seed-{plan.seed}-steps-{plan.steps}.pt"
    card["minutes"] = round(pretrain(model, tokens, plan, work / name), 1)
    save(model, tokenizer, out / "model")
    # Measured on the released weights, which are rounded to half precision.
    return _write_card(out, card | {"splits": measure(model.float(), tokenizer, corpus)})


def build_texts(out: Path) -> dict[str, object]:
    """Write splits and notice again into ``out``, which already has the model; return the card."""
    corpus = _write_texts(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model", local_files_only=True)
    model = LlamaForCausalLM.from_pretrained(out / "model", local_files_only=True)
    card = read_json(out / "card.json")
    return _write_card(out, card | {"splits": measure(model.float(), tokenizer, corpus)})


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> dict[str, dict[str, float]]:
    """Size of each split, and the loss of the model on it in nats per token."""
    rows = {}
    for name, docs in sorted(corpus.splits.items()):
        tokens = stream(tokenizer, texts(docs))
        loss = round(nats_per_token(model, tokens), 4)
        rows[name] = {
            "documents": len(docs),
            "characters": sum(map(len, texts(docs))),
            "tokens": len(tokens),
            "nats_per_token": loss,
        }
    return rows


def texts(docs: list[Document]) -> list[str]:
    """The texts of documents."""
    return [doc["text"] for doc in docs]


def write_splits(corpus: Corpus, folder: Path) -> None:
    """One gzipped JSONL file per split."""
    for name, docs in corpus.splits.items():
        rows = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)
        # Without a time stamp, so that the same texts give the same file.
        write_bytes(folder / f"{name}.jsonl.gz", gzip.compress(rows.encode(), mtime=0))


def _write_texts(out: Path) -> Corpus:
    corpus = collect()
    write_splits(corpus, out / "data")
    write_text(out / "NOTICE", NOTICE.format(version=platform.python_version()))
    return corpus


def _write_card(out: Path, card: dict[str, object]) -> dict[str, object]:
    write_json(out / "card.json", card)
    return card


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Build the text world.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model/, data/, card.json and NOTICE")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (OUT/work unless given)")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--seed", type=int, default=Schedule.seed)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default=Schedule.optimizer)
    parser.add_argument("--width", type=int, default=Schedule.width, help=f"of the model, a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=Schedule.layers)
    parser.add_argument("--texts-only", action="store_true", help="write the texts again and keep the model in OUT")
    args = parser.parse_args()
    if args.texts_only:
        print(json.dumps(build_texts(args.out), indent=2))
        return
    if args.width < HEAD or args.width % HEAD or args.layers < 1:
        parser.error(
            f"--width must be a multiple of {HEAD} and --layers at least 1, got {args.width} and {args.layers}"
        )
    plan = Schedule(steps=args.steps, seed=args.seed, optimizer=args.optimizer, width=args.width, layers=args.layers)
    print(json.dumps(build(args.out, args.work or args.out / "work", plan), indent=2))


if __name__ == "__main__":
    main()
