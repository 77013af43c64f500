"""Which folders and hub names open, and the errors of the others."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stablerep import cli
from stablerep import hub as hub_client
from stablerep.config import UserError
from stablerep.generate.pipeline import open_pipeline
from tests.generate import compvis, tiny_models

CPU = torch.device("cpu")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


STRANGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "SD3": (
        lambda folder: edit(
            folder / "model_index.json",
            _class_name="StableDiffusion3Pipeline",
            unet=[None, None],
            transformer=["diffusers", "SD3Transformer2DModel"],
            text_encoder=["transformers", "CLIPTextModelWithProjection"],
        ),
        "is a StableDiffusion3Pipeline; what opens is Stable Diffusion 1.x/2.x, SDXL, their Turbo and LCM models",
    ),
    "Flux": (
        lambda folder: edit(folder / "model_index.json", _class_name="FluxPipeline", vae=["diffusers", "Other"]),
        "is a FluxPipeline; what opens is",
    ),
    "SDXL's refiner": (
        lambda folder: edit(
            folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None]
        ),
        "is a StableDiffusionXLImg2ImgPipeline; what opens is",
    ),
    "its own pipeline code": (
        lambda folder: edit(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"]),
        "what opens is",
    ),
    "its own unet code": (
        lambda folder: edit(folder / "model_index.json", unet=["my_unet", "UNet2DConditionModel"]),
        "brings its own code (my_unet), which is not run",
    ),
    "flow matching": (
        lambda folder: edit(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "was trained for FlowMatchEulerDiscreteScheduler, another kind of noise",
    ),
    "no json": (lambda folder: (folder / "model_index.json").write_text("{"), "is no pipeline of safetensors"),
    "a list": (lambda folder: (folder / "model_index.json").write_text("[]"), "is no pipeline of safetensors"),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "is no pipeline of safetensors"),
    "weights gone": (
        lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "is no pipeline of safetensors",
    ),
    "weights pickled": (
        lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").rename(
            folder / "unet/diffusion_pytorch_model.bin"
        ),
        "is no pipeline of safetensors",
    ),
    "no sample_size": (
        lambda folder: edit(folder / "unet/config.json", sample_size=None),
        "does not say its size: sample_size is missing in unet/config.json",
    ),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_does_not_open_is_one_line(strange: str, prompts: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    tiny_models.save("sd", folder)
    change, message = STRANGE[strange]
    change(folder)
    with pytest.raises(SystemExit) as stop:
        cli.gen(["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--device", "cpu", "--model", str(folder)])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--model {folder}" in line and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"in_channels": 9}, "paints over given pictures: its UNet takes 9 channels, its VAE gives 4; take the text-"),
        ({"class_embed_type": "timestep"}, "has a UNet with class_embed_type 'timestep'"),
        ({"addition_embed_type": "text"}, "has a UNet with addition_embed_type 'text'"),
    ],
    ids=str,
)
def test_a_unet_that_wants_other_inputs_is_one_line(unet: dict[str, Any], message: str, tmp_path: Path) -> None:
    if unet.get("addition_embed_type") == "text":
        unet = unet | {"encoder_hid_dim": 24}
    tiny_models.save("sd", tmp_path, unet=unet)
    with pytest.raises(UserError) as refused:
        open_pipeline(str(tmp_path), CPU)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def same_weights(one: Any, other: Any) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("parts", [None, ("unet",)])  # all parts, or one alone
def test_weights_that_are_there_as_fp16_only(kind: str, parts: tuple[str, ...] | None, tmp_path: Path) -> None:
    theirs = tiny_models.save(kind, tmp_path, variant=None if parts else "fp16")
    for part in parts or ():
        file = tmp_path / part / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert parts or not list(tmp_path.rglob("*model.safetensors"))
    ours = open_pipeline(str(tmp_path), CPU)
    assert all(same_weights(getattr(ours, name), getattr(theirs, name)) for name in ("unet", "vae", "text_encoder"))


def test_where_both_are_there_the_full_weights_are_taken(tmp_path: Path) -> None:
    theirs = tiny_models.save("sd", tmp_path)
    for file in list(tmp_path.rglob("*.safetensors")):
        file.with_suffix(".fp16.safetensors").write_bytes(b"not read")
    assert same_weights(open_pipeline(str(tmp_path), CPU).unet, theirs.unet)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: a listing, and files with their digests."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            names = sorted(str(file.relative_to(self.root)) for file in self.root.rglob("*") if file.is_file())
            siblings = [{"rfilename": name} for name in names]
            data = json.dumps({"id": "o/m", "modelId": "o/m", "sha": "0" * 40, "siblings": siblings}).encode()
            if "/tree/" in path:
                data = json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]).encode()
        else:
            name = path.partition("/resolve/")[2].partition("/")[2]
            file = self.root / name
            if not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.asked += [name] if body else []
            data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"' + str(hash(data)) + '"')
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine with whatever lies in tmp_path / "hub" as o/m."""
    from huggingface_hub import constants, hf_api

    Hub.root, Hub.asked = tmp_path / "hub", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_name(hub: type[Hub], variant: str | None) -> None:
    theirs = tiny_models.save("sd", hub.root, variant=variant)
    (hub.root / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert same_weights(open_pipeline("o/m", CPU).unet, theirs.unet)
    assert not [name for name in hub.asked if name.endswith(".bin")]


def test_a_hub_name_with_pickles_only(hub: type[Hub]) -> None:
    tiny_models.save("sd", hub.root)
    file = hub.root / "unet/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"--model o/m cannot be fetched from the hub: .*safetensors"):
        open_pipeline("o/m", CPU)
    assert not [name for name in hub.asked if name.endswith(".bin")]


def test_a_hub_name_of_another_kind_is_refused_before_its_weights_are_fetched(hub: type[Hub]) -> None:
    tiny_models.save("sd", hub.root)
    STRANGE["SD3"][0](hub.root)
    with pytest.raises(UserError, match="--model o/m is a StableDiffusion3Pipeline"):
        open_pipeline("o/m", CPU)
    assert set(hub.asked) <= {"model_index.json"}


@pytest.mark.parametrize("answer", ["none", "late"])
def test_without_a_network_a_name_is_one_line_at_once(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub_client, "REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        if answer == "none":
            listening.close()
        for refuse in (open_pipeline, lambda name, _: hub_client.model_folder("--model", name)):
            start = time.perf_counter()
            with pytest.raises(UserError, match=r"--model o/m is no folder .* the hub cannot be reached") as error:
                refuse("o/m", CPU)
            assert time.perf_counter() - start < 2 and "\n" not in str(error.value)


def test_what_is_in_the_cache_opens_without_a_network(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    theirs = tiny_models.save("sd", hub.root)
    open_pipeline("o/m", CPU)
    hub.asked.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert same_weights(open_pipeline("o/m", CPU).unet, theirs.unet)
    assert hub_client.model_folder("--llm", "o/m").is_dir()
    assert not hub.asked


@pytest.mark.parametrize("model", ["/nope", "./x", "../x/y", "~/x", "C:\\models\\sd", "models\\sd", "a/b/c"])
@pytest.mark.parametrize(
    "refuse", [lambda model: open_pipeline(model, CPU), partial(hub_client.model_folder, "--model")]
)
def test_a_path_is_no_hub_name(refuse: Callable[[str], Any], model: str) -> None:
    with pytest.raises(UserError, match=f"^--model {re.escape(model)}: no such folder$"):
        refuse(model)


def test_a_folder_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sd").mkdir()
    assert hub_client.model_folder("--model", "~/sd") == tmp_path / "sd"


@pytest.mark.parametrize("config", ["o/m", None])  # None: what diffusers names for SD 1.x, which this hub has too
def test_the_configs_of_a_model_in_one_file_are_fetched_without_weights(
    hub: type[Hub], config: str | None, tmp_path: Path
) -> None:
    theirs = tiny_models.save("sd", hub.root)
    save_file(compvis.checkpoint(theirs), tmp_path / "model.safetensors")
    ours = open_pipeline(str(tmp_path / "model.safetensors"), CPU, model_config=config)
    assert same_weights(ours.unet, theirs.unet) and same_weights(ours.text_encoder, theirs.text_encoder)
    assert hub.asked and not [name for name in hub.asked if name.endswith(".safetensors")]
