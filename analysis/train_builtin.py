"""Trains the embedded model again: its BPE tokenizer and a Llama of 5.1 M parameters, on a folder of texts.

python analysis/train_builtin.py --texts ../shared/data/text

Everything is kept under --work (tokenizer, tokens, checkpoint, log), so that the same command continues where a killed
one stopped. The finished model replaces lottery/assets/builtin. The training texts are not part of this project; the
script reads every .txt below --texts. The last 2% of every text is held out, and its loss is printed during training.
"""

import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
WORDS = 4096
WINDOW = 512
ASSETS = Path(__file__).resolve().parent.parent / "lottery" / "assets"


def plain_prose(text: str) -> str:
    """Returns prose as people type it, with END between documents: without WikiText's spaced tokens and headings, and
    without the line breaks of a book."""
    text = text.replace("\r\n", "\n").replace("\u2019", "'").replace("\u2018", "'")
    text = text.replace("\u201c", '"').replace("\u201d", '"').replace("\u2014", "--")
    if " @-@ " in text:
        text = re.sub(r"\n = ([^=\n]+) = \n", rf"\n{END}\1\n", text)
        text = re.sub(r"\n (?:= )+([^=\n]+?)(?: =)+ \n", r"\n\1\n", text)
        text = re.sub(r" @(.)@ ", r"\1", text)
        text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
        text = re.sub(r"([(\[$£]) ", r"\1", text)
        text = re.sub(r" (\'(?:s|t|re|ve|ll|d|m)?)\b", r"\1", text)
        text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
        text = re.sub(r"[^.!?\n]*<unk>[^.!?\n]*[.!?]?", "", text)  # sentences with a word that WikiText cut out
        text = "\n".join(line.strip() for line in text.split("\n"))
        return re.sub(r"\n+", "\n\n", text)
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and sum(map(len, lines)) / len(lines) < 80:  # a book wrapped at 70 columns: join the lines of a paragraph
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
        text = re.sub(r"\n +", "\n", re.sub(r" {2,}", " ", text))
    text = re.sub(rf"\s*{re.escape(END)}\s*", END, text)
    return re.sub(r"\n{3,}", "\n\n", text)


def read_texts(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise click.BadParameter(f"{folder}: no .txt file below it", param_hint="--texts")
    return {str(p.relative_to(folder)): plain_prose(p.read_text(encoding="utf-8")) for p in paths}


def train_tokenizer(texts: dict[str, str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (document for text in texts.values() for document in text.split(END))
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=WINDOW)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns two uint16 arrays of tokens: those for training, and the last 2% of every text, which is held out."""
    end = tokenizer.convert_tokens_to_ids(END)
    train, held = [], []
    for text in texts.values():
        ids = [end]
        for document in text.split(END):
            ids += [*tokenizer.backend_tokenizer.encode(document).ids, end]
        cut = int(len(ids) * 0.98)
        train.append(np.array(ids[:cut], np.uint16))
        held.append(np.array(ids[cut:], np.uint16))
    return np.concatenate(train), np.concatenate(held)


def new_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            rms_norm_eps=1e-5,
        )
    )


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, held: np.ndarray, device: str) -> float:
    """Returns the mean NLL per token (nats) over windows that do not overlap."""
    windows_NT = torch.from_numpy(held[: len(held) // WINDOW * WINDOW].astype(np.int64)).view(-1, WINDOW)
    losses = []
    for batch_NT in windows_NT.split(16):
        with torch.autocast(device, torch.bfloat16):
            losses.append(model(batch_NT.to(device), labels=batch_NT.to(device)).loss.item() * len(batch_NT))
    return sum(losses) / len(windows_NT)


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm = min(100, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def save_checkpoint(path: Path, model: LlamaForCausalLM, adam: torch.optim.AdamW, step: int) -> None:
    state = {f"model.{k}": v.detach().contiguous() for k, v in model.named_parameters()}
    for i, slot in adam.state_dict()["state"].items():
        state |= {f"adam.{i}.{k}": v for k, v in slot.items()}
    save_file(state, path.with_suffix(".new"), metadata={"step": str(step)})
    os.replace(path.with_suffix(".new"), path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, adam: torch.optim.AdamW) -> int:
    """Loads the checkpoint and returns the step to continue with; 0 if there is no checkpoint."""
    if not path.exists():
        return 0
    state = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(state[f"model.{name}"])
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        if key.startswith("adam."):
            _, i, name = key.split(".")
            slots.setdefault(int(i), {})[name] = value
    adam.load_state_dict({**adam.state_dict(), "state": slots})
    return int(slots[0]["step"])


def train(model: LlamaForCausalLM, tokens: np.ndarray, held: np.ndarray, work: Path, steps: int, batch: int, seed: int):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    first = load_checkpoint(work / "checkpoint.safetensors", model, adam)
    started, running = time.time(), 0.0
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])  # each step's windows depend on seed and step alone
        starts = rng.integers(0, len(tokens) - WINDOW - 1, batch)
        windows_NT = torch.from_numpy(np.stack([tokens[s : s + WINDOW + 1] for s in starts]).astype(np.int64))
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, steps, 3e-3)
        windows_NT = windows_NT.to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(windows_NT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows_NT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        running += (loss.item() - running) * max(0.02, 1 / (step - first + 1))
        if step % 20 == 19 or step + 1 == steps:
            pace = (time.time() - started) / (step - first + 1)
            left = pace * (steps - step - 1) / 60
            click.echo(f"step {step + 1}/{steps}  loss {running:.3f}  {pace:.2f} s/step  {left:.0f} min left", err=True)
        if step % 200 == 199 or step + 1 == steps:
            loss_held = held_out_loss(model, held, device)
            click.echo(f"step {step + 1}/{steps}  held-out loss {loss_held:.4f} (perplexity {math.exp(loss_held):.2f})")
            save_checkpoint(work / "checkpoint.safetensors", model, adam, step + 1)


@click.command()
@click.option("--texts", type=click.Path(exists=True, file_okay=False, path_type=Path), default="../shared/data/text")
@click.option("--work", type=click.Path(path_type=Path), default="train_builtin", show_default=True)
@click.option("--steps", default=3000, show_default=True)
@click.option("--batch", default=8, show_default=True, help=f"Windows of {WINDOW} tokens per step.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=ASSETS / "builtin", show_default=True)
def main(texts: Path, work: Path, steps: int, batch: int, seed: int, out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / "tokenizer_config.json").exists():
        raise click.BadParameter(f"{out}: it holds other files than a model; give a new folder", param_hint="--out")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "held.npy").exists():
        corpus = read_texts(texts)
        tokenizer = train_tokenizer(corpus)
        tokenizer.save_pretrained(work / "tokenizer")
        tokens, held = tokenize(tokenizer, corpus)
        np.save(work / "tokens.npy", tokens)
        np.save(work / "held.npy", held)  # saved last: if it exists, the others are complete
    tokens, held = np.load(work / "tokens.npy"), np.load(work / "held.npy")
    torch.manual_seed(seed)
    model = new_model()
    count = sum(p.numel() for p in model.parameters())
    click.echo(f"{len(tokens):,} training tokens, {len(held):,} held out; {count:,} parameters")
    train(model, tokens, held, work, steps, batch, seed)

    done = work / "model"
    model.to(torch.bfloat16).save_pretrained(done)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "tokenizer" / name, done / name)
    record = {"parameters": count, "tokens": len(tokens), "steps": steps, "batch": batch, "seed": seed}
    (done / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(done, fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
