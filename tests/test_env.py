"""What `env` tells, and that it asks nobody."""

import json
import socket

from gfl.cli import env


def test_environment_names_versions_and_what_is_missing(monkeypatch, tmp_path, capsys):
    import torch

    def refuse(*args, **kwargs):
        raise AssertionError("no connection here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    real = env._version
    absent = ("onnx", "supervision", "pydantic")
    monkeypatch.setattr(env, "_version", lambda name: None if name in absent else real(name))
    assert env.main(["--json", str(tmp_path / "env.json")]) == 0
    found = json.loads((tmp_path / "env.json").read_text())
    assert found["required"]["torch"] == str(torch.__version__).split("+")[0]
    assert found["required"]["pydantic"] == "NOT INSTALLED"
    assert found["optional"]["onnx"].startswith(
        "not installed (export; pip install 'gfl-detection[onnx]"
    )
    assert set(found["optional"]) == {"timm", "onnx", "onnxscript", "onnxruntime", "supervision"}
    assert len(found["gpus"]) == max(torch.cuda.device_count(), 1)
    printed = capsys.readouterr().out
    for name in ("gfl", "cuda", "/dev/shm", "onnxruntime"):
        assert f"\n{name}" in f"\n{printed}"
