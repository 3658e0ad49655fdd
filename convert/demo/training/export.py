"""Turns a trained model into the shipped checkpoint: bf16 in Hugging Face's format, then `mlx_lm.convert` to 4 bits.

mlx_lm knows this architecture as model_type qwen3_5_moe with the text model's settings under text_config, which is
also how Qwen publishes it; the bf16 configuration and tensor names are made so before the conversion.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3_5MoeForCausalLM

HERE = Path(__file__).resolve().parent
GENERATION = {"do_sample": False, "eos_token_id": [2, 0], "max_new_tokens": 256, "pad_token_id": 0}


def wrapped(text: dict[str, object]) -> dict[str, object]:
    """The text model's configuration in the form of the published checkpoints."""
    text = {key: value for key, value in text.items() if key not in ("architectures", "transformers_version")}
    text["full_attention_interval"] = 4
    shared = {"eos_token_id": text["eos_token_id"], "pad_token_id": text["pad_token_id"], "dtype": "bfloat16"}
    names = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe"}
    return {**names, **shared, "tie_word_embeddings": False, "text_config": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--bf16", type=Path, required=True, help="where to put the bf16 checkpoint")
    parser.add_argument("--out", type=Path, default=HERE.parent / "checkpoint")
    args = parser.parse_args()

    shutil.rmtree(args.bf16, ignore_errors=True)
    args.bf16.mkdir(parents=True)
    model = Qwen3_5MoeForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    tensors = {k.replace("model.", "model.language_model.", 1): v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, args.bf16 / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((args.model / "config.json").read_text())
    (args.bf16 / "config.json").write_text(json.dumps(wrapped(text), indent=2))
    (args.bf16 / "generation_config.json").write_text(json.dumps(GENERATION, indent=2))
    longest = text["max_position_embeddings"]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": longest}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.data / "tokenizer.json"), **names)
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(args.bf16)

    shutil.rmtree(args.out, ignore_errors=True)
    command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(args.bf16), "--mlx-path", str(args.out)]
    subprocess.run([*command, "-q", "--q-bits", "4", "--q-group-size", "64"], check=True)
    (args.out / "README.md").unlink(missing_ok=True)
    print(f"{sum(p.stat().st_size for p in args.out.iterdir())} bytes in {args.out}")


if __name__ == "__main__":
    main()
