"""Loading: every place a subject comes from, and one sentence for everything that goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import nn

from probes.bundled import bundled_models
from probes.inputs import InputError
from probes.load_error import LoadError
from probes.loaders import bridge, folder, hub, module, timm_model
from probes.loaders.explain import explained, torchvision_is_broken
from probes.loading import load


def test_every_bundled_model_loads_with_towers_and_the_class_of_the_index() -> None:
    for name, entry in bundled_models().items():
        subject = load(name)
        assert subject.name == name
        assert subject.kind == entry.kind
        assert type(subject.model).__name__ == entry.architecture
        assert subject.towers
        assert not subject.model.training


def test_a_folder_is_loaded_by_the_class_that_its_config_names(tmp_path: Path) -> None:
    original = tiny_models.gpt2()
    path = tiny_models.saved(tmp_path, original, tiny_models.tokenizer())
    subject = load(path)
    assert type(subject.model) is type(original)
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = subject.prepare(input_ids=ids)
    assert torch.equal(subject.forward(batch).logits, original(ids).logits)
    assert load(Path(path)).name == path


def test_without_a_named_class_the_first_auto_class_that_fits_is_used(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    _edit_config(tmp_path, architectures=None)
    assert type(load(path).model).__name__ == "GPT2LMHeadModel"


def test_a_dtype_is_a_word_or_a_torch_dtype(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    assert load(path).dtype is torch.float32
    assert load(path, dtype="bf16").dtype is torch.bfloat16
    assert load(path, dtype=torch.float16).dtype is torch.float16
    with pytest.raises(LoadError, match=r"`dtype` must be 'auto', 'float32'.*got 'int7'"):
        load(path, dtype="int7")


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    assert load(path, device="cpu").device.type == "cpu"
    with pytest.raises(LoadError, match="Device 'cuda:99' is not there: torch sees"):
        load(path, device="cuda:99")
    with pytest.raises(LoadError, match="must be like 'cpu', 'cuda' or 'cuda:1', got 'gpu'"):
        load(path, device="gpu")
    with pytest.raises(LoadError, match="exclude each other"):
        load(path, device="cpu", device_map="auto")


def test_a_device_map_spreads_by_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    subject = load(tiny_models.saved(tmp_path, tiny_models.gpt2()), device_map={"": "cpu"})
    assert subject.device.type == "cpu"
    assert subject.towers["language"].heads == 3


def test_quantization_says_what_to_install(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    with pytest.raises(LoadError, match="must be '4bit' or '8bit', got '3bit'"):
        load(path, quantization="3bit")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(LoadError, match=r"needs bitsandbytes.* Install with `pip install"):
            load(path, quantization="4bit")


def test_a_close_bundled_name_is_suggested_offline() -> None:
    with pytest.raises(LoadError, match=r"the hub cannot be reached.*Did you mean 'repeat-lm'\?"):
        load("repeatlm")


def test_a_hub_id_that_is_not_cached_offline_is_one_sentence_with_its_cause() -> None:
    with pytest.raises(LoadError, match="nor in the local cache, and the hub cannot be") as caught:
        load("nobody-here/no-model")
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("./nowhere", r"Folder './nowhere' does not exist\. Check the path\."),
        ("a b c", "neither a bundled model, an existing folder, nor written like a hub id"),
        (3.5, "must be a name, a folder, a torch.nn.Module or a TransformerBridge, got float"),
    ],
)
def test_what_is_no_model_is_said(source: object, sentence: str) -> None:
    with pytest.raises(LoadError, match=sentence):
        load(source)


def test_a_file_and_an_empty_folder_are_no_models(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    with pytest.raises(LoadError, match="is a file. Give the folder"):
        load(file)
    with pytest.raises(LoadError, match=r"has no config\.json"):
        load(tmp_path)


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    weights = load_file(tmp_path / "model.safetensors")
    whole = dict(weights)
    del weights["transformer.h.1.attn.c_attn.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"1 weights of .* 'transformer.h.1.attn.c_attn.weight'"):
        load(path)
    whole["transformer.wpe.weight"] = torch.zeros(5, 12)
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"have another shape .* 'transformer.wpe.weight'"):
        load(path)


def test_unreadable_weights_and_configs_are_said(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    (tmp_path / "model.safetensors").write_bytes(b"these are no weights, not at all")
    with pytest.raises(LoadError, match=r"weights of .* cannot be read .*Download or save"):
        load(path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"has no weights file \(model\.safetensors\)"):
        load(path)
    _edit_config(tmp_path, model_type="zork")
    with pytest.raises(LoadError, match=r"is of type 'zork', which transformers .* does not know"):
        load(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="is not valid JSON"):
        load(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="does not say what the model is"):
        load(path)


def test_code_that_comes_with_a_model_is_not_run_unasked(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2())
    ran = tmp_path / "ran"
    (tmp_path / "conf.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import GPT2Config\n"
        "class Conf(GPT2Config):\n    model_type = 'zork'\n"
    )
    _edit_config(tmp_path, model_type="zork", auto_map={"AutoConfig": "conf.Conf"})
    with pytest.raises(LoadError, match=r"brings Python code of its own.*`--trust-remote-code`"):
        load(path)
    assert not ran.exists()


def test_a_folder_without_processor_loads_and_says_what_is_missing(tmp_path: Path) -> None:
    subject = load(tiny_models.saved(tmp_path, tiny_models.gpt2()))
    assert subject.processor is None
    assert subject.towers["language"].layers == 2
    with pytest.raises(InputError, match="came without tokenizer and processor files, so text"):
        subject.prepare(text="a b")


def test_a_broken_tokenizer_does_not_keep_the_model_from_loading(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.gpt2(), tiny_models.tokenizer())
    (tmp_path / "tokenizer.json").write_text("{")
    subject = load(path)
    assert subject.towers["language"].layers == 2
    with pytest.raises(InputError, match=r"The processor of .* cannot be loaded \("):
        subject.prepare(text="a b")


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="`revision` does not apply to a bundled model"):
        load("repeat-lm", revision="main")
    with pytest.raises(LoadError, match="`dtype` does not apply to a module that you hand over"):
        load(nn.Linear(2, 3), dtype="bf16")


def test_a_module_is_taken_as_it_is() -> None:
    model = tiny_models.llama().train()
    subject = load(model, tiny_models.tokenizer())
    assert subject.model is model
    assert subject.towers["language"].kv_heads == 2
    assert model.training


def test_a_bridge_gives_its_own_numbers(tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model = tiny_models.llama()
    path = tiny_models.saved(tmp_path, model, tiny_models.tokenizer("left"))
    booted = TransformerBridge.boot_transformers(
        "meta-llama/Llama-3.2-1B",
        hf_model=model,
        tokenizer=AutoTokenizer.from_pretrained(path),
        device="cpu",
    )
    subject = load(booted)
    assert (subject.towers["language"].layers, subject.towers["language"].heads) == (3, 6)
    batch = subject.prepare(text=["a b c", "the cat sat on"])
    ids = batch.tensors["input_ids"][1:]
    torch.testing.assert_close(subject.forward(batch).logits[1:], booted(ids), atol=1e-6, rtol=0)


def test_each_loader_takes_only_its_own() -> None:
    linear = nn.Linear(2, 3)
    assert module.matches(linear) and not bridge.matches(linear)
    assert timm_model.matches("timm:vit_tiny") and not folder.matches("timm:vit_tiny")
    assert hub.matches("owner/name") and not hub.matches("/owner/name")
    assert folder.matches("./name") and not folder.matches("no-such-folder-here")
    assert not any(loader.matches(None) for loader in (module, bridge, timm_model, folder, hub))


@pytest.mark.parametrize(
    "fault",
    [
        'RuntimeError("operator torchvision::nms does not exist")',
        'OSError("/x/torchvision/_C.so: undefined symbol: _ZN3c10")',
    ],
)
def test_a_torchvision_that_does_not_fit_torch_is_named(tmp_path: Path, fault: str) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {fault}\n")
    about = tmp_path / "torchvision-0.20.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.1\n")
    code = """
        import headscope as hs
        try:
            hs.load("shapes-vit")
        except hs.LoadError as error:
            print(error)
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("The installed torchvision 0.20.1 does not fit torch")
    assert "pip uninstall torchvision" in said


def test_other_messages_about_torchvision_are_not_called_a_mismatch() -> None:
    assert not torchvision_is_broken("This class needs torchvision. Install it with pip.")
    assert torchvision_is_broken("operator torchvision::nms does not exist")


def test_an_unforeseen_error_keeps_its_name_and_first_line() -> None:
    error = explained(ZeroDivisionError("division by zero\nmore"), "x")
    assert "cannot be loaded (ZeroDivisionError: division by zero)" in str(error)


def test_the_hub_errors_have_sentences() -> None:
    class RepositoryNotFoundError(OSError):
        pass

    class GatedRepoError(OSError):
        pass

    wrapped = OSError("wrapped")
    wrapped.__cause__ = RepositoryNotFoundError("404")
    assert "nor public on the hub" in str(explained(wrapped, "owner/name"))
    assert "hf auth login" in str(explained(GatedRepoError("403"), "owner/name"))


def test_a_loader_of_ones_own_is_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes import loading

    class Mine:
        @staticmethod
        def matches(source: object) -> bool:
            return source == "mine:tiny"

        @staticmethod
        def load(source: object, options: loading.LoadOptions) -> object:
            return load(tiny_models.gpt2(), options.processor)

    class Point:
        name = "mine"

        @staticmethod
        def load() -> object:
            return Mine()

    monkeypatch.setattr(loading, "entry_points", lambda group: [Point()])
    loading._loaders.cache_clear()
    try:
        assert load("mine:tiny").towers["language"].heads == 3
        assert load(tiny_models.vit()).kind == "vision"
    finally:
        loading._loaders.cache_clear()


@pytest.mark.timm
def test_a_timm_model_comes_with_its_transform() -> None:
    from probes.sample_inputs import noise_image

    subject = load("timm:test_vit#random")
    batch = subject.prepare(images=[noise_image(), noise_image()])
    assert subject.forward(batch).shape[0] == 2
    assert subject.towers["vision"].layers == 6
    with pytest.raises(LoadError, match="timm has no model 'test_vitt'. Did you mean 'timm:test_"):
        load("timm:test_vitt")
    with pytest.raises(LoadError, match="write 'timm:test_vit#random' for random weights"):
        load("timm:test_vit")


def test_without_timm_the_extra_is_named() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(LoadError, match=r"pip install 'headscope\[timm\]'"):
            load("timm:vit_tiny_patch16_224")


def _edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
