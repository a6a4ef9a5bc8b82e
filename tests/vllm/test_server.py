"""The engine's OpenAI server with OFT adapters beside LoRA, driven by the real client: names, loading and unloading."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import ENVIRONMENT, PROMPTS, make_adapter, make_base, make_lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("served")
    base = make_base(folder / "base")
    return {
        "base": base,
        "rotated": make_adapter(base, folder / "rotated", 1),
        "later": make_adapter(base, folder / "later", 2),
        "lora": make_lora(base, folder / "lora"),
    }


@pytest.fixture(scope="module")
def client(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from openai import APIConnectionError, OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(paths["base"]),
        "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", "128",
        "--enforce-eager", "--max-num-seqs", "8", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "3",
        "--lora-modules", f"rotated={paths['rotated']}", f"lora={paths['lora']}",
    ]  # fmt: skip
    more = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **more}, start_new_session=True)
    try:
        found = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600, max_retries=0)
        while True:
            try:
                found.models.list()
                break
            except APIConnectionError:
                assert server.poll() is None, log.read_text()[-3000:]
                time.sleep(1)
        assert "OFT adapters are served unmerged: 3 slots reserve" in log.read_text()
        yield found
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answer(client: Any, model: str) -> str:
    made = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=8, temperature=0)
    return str(made.choices[0].text)


def test_adapters_are_models_and_come_and_go(client: Any, paths: dict[str, Path], tmp_path: Path) -> None:
    from openai import APIStatusError

    assert {"base", "rotated", "lora"} <= {model.id for model in client.models.list()}
    texts = {name: _answer(client, name) for name in ("base", "rotated", "lora")}
    assert len(set(texts.values())) == 3

    def post(verb: str, **body: str) -> Any:
        return client.post(f"/{verb}_lora_adapter", cast_to=str, body=body)

    post("load", lora_name="later", lora_path=str(paths["later"]))
    assert _answer(client, "later") not in texts.values()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((paths["later"] / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(APIStatusError, match="is not a safetensors file"):  # the server leaves paths out
        post("load", lora_name="broken", lora_path=str(broken))
    post("unload", lora_name="later")
    with pytest.raises(APIStatusError, match="later"):
        _answer(client, "later")
    assert {name: _answer(client, name) for name in texts} == texts


def test_adapters_come_and_go_while_others_answer(client: Any, paths: dict[str, Path]) -> None:
    """Requests under one adapter and under the base run all the time; each has the answer that it has alone."""
    names = ("rotated", "base")
    alone = {name: _answer(client, name) for name in names}
    done = threading.Event()

    def asks(name: str) -> list[str]:
        found = []
        while not done.is_set() or not found:
            found.append(_answer(client, name))
        return found

    later = []
    with ThreadPoolExecutor(len(names)) as pool:
        running = {name: pool.submit(asks, name) for name in names}
        try:
            for number in range(4):
                own = {"lora_name": f"late-{number}", "lora_path": str(paths["later"])}
                client.post("/load_lora_adapter", cast_to=str, body=own)
                later.append(_answer(client, f"late-{number}"))
                client.post("/unload_lora_adapter", cast_to=str, body={"lora_name": f"late-{number}"})
        finally:
            done.set()
        found = {name: set(future.result()) for name, future in running.items()}
    # Greedy tokens of a random float32 model: what is beside a row in its batch does not change the likeliest one.
    assert found == {name: {text} for name, text in alone.items()}
    assert len(set(later)) == 1 and later[0] not in alone.values()
