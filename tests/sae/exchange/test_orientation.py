from __future__ import annotations

import pytest
import torch

from sae.exchange.orientation import by_latent
from sae.exchange.refusals import CoderFolderError


@pytest.mark.parametrize("documented", ["latent width", "width latent"])
def test_the_width_and_not_the_format_says_which_axis_is_which(documented):
    matrix = torch.arange(6.0).view(3, 2)
    assert torch.equal(by_latent(matrix, 2, documented, "it"), matrix)
    assert torch.equal(by_latent(matrix.T, 2, documented, "it"), matrix)


def test_a_square_is_no_guess():
    matrix = torch.arange(4.0).view(2, 2)
    with pytest.raises(
        CoderFolderError,
        match=r"^`W_dec` in a must have another number of latents than the width .* apart, "
        r"got \[2, 2\]\. Give `trust_layout=True` to read it as \[width, latent\]",
    ):
        by_latent(matrix, 2, "width latent", "`W_dec` in a")
    trusted = by_latent(matrix, 2, "width latent", "it", trust_layout=True)
    assert torch.equal(trusted, matrix.T)
    assert torch.equal(by_latent(matrix, 2, "latent width", "it", trust_layout=True), matrix)


@pytest.mark.parametrize("shape", [(3, 5), (2,), (2, 3, 5), ()])
def test_a_matrix_without_the_width_is_a_sentence(shape):
    for trust in (False, True):
        with pytest.raises(CoderFolderError, match=r"it must be a matrix .* the width, 2, got"):
            by_latent(torch.zeros(shape), 2, "latent width", "it", trust_layout=trust)
