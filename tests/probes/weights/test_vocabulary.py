"""The module that a model names as its input embedding, and the models that name none."""

import pytest
import tiny_models as tiny
import torch
from torch import nn

from probes.weights.vocabulary import input_embedding


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (tiny.gpt2, "transformer.wte"),
        (tiny.llava, "model.language_model.embed_tokens"),
        (tiny.t5, "shared"),
        (tiny.vit, "vit.embeddings.patch_embeddings"),
    ],
)
def test_the_models_own_module(make, path):
    model = make()
    assert input_embedding(model) is model.get_submodule(path)


def test_none_where_a_model_names_none():
    class Half(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            return self.table  # pyright: ignore[reportReturnType]

    assert input_embedding(nn.Linear(3, 5)) is None
    for model, error in ((tiny.resnet(), NotImplementedError), (Half(), AttributeError)):
        with pytest.raises(error):
            model.get_input_embeddings()
        assert input_embedding(model) is None


def test_other_errors_are_the_models_own():
    class Broken(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        input_embedding(Broken())
