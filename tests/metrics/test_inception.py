"""Inception's features against clean-fid and torch-fidelity on the same files, and files that must not be loaded."""

import numpy as np
import pytest
import torch

from marcli.errors import MarcliError, UsageError
from marcli.metrics import inception
from marcli.runtime.atomic import sha256_file


def pictures(count: int, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def test_state_dict_agrees_with_torch_fidelity(state_dict_inception, trusted):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "stand-in", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(state_dict_inception)
    )
    features, logits = theirs(pictures(2))
    ours = trusted(state_dict_inception, "legacy_tensorflow")
    result = ours(pictures(2))
    assert np.abs(result - features.numpy()).max() < 1e-4 * features.abs().max()
    assert result.std() > 0.01
    unbiased = result @ ours.classifier.T
    assert np.abs(unbiased - logits.numpy()).max() < 1e-4 * logits.abs().max()


def test_torchscript_agrees_with_clean_fid(torchscript_inception, trusted):
    images = pictures(3)
    whole = torch.jit.load(torchscript_inception)
    ours = trusted(torchscript_inception, "legacy_tensorflow")
    features = ours(images)
    np.testing.assert_array_equal(features, whole(images, return_features=True).detach().numpy())
    probabilities = torch.from_numpy(features @ ours.classifier.T).softmax(dim=1)
    expected = whole(images, no_output_bias=True).detach()
    torch.testing.assert_close(probabilities.float(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_protocols_agree_with_clean_fid(mode, state_dict_inception, torchscript_inception, trusted, monkeypatch):
    """Their own functions, with the stand-in where they would download."""
    from cleanfid import inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    images = pictures(2)
    resize = build_resizer(mode)
    resized = torch.stack([torch.from_numpy(resize(im.permute(1, 2, 0).numpy())).permute(2, 0, 1) for im in images])
    if mode == "clean":
        path = torchscript_inception
        (path.parent / "inception-2015-12-05.pt").unlink(missing_ok=True)
        (path.parent / "inception-2015-12-05.pt").symlink_to(path)
        expected = InceptionV3W(str(path.parent), download=False)(resized)
    else:
        path = state_dict_inception
        state = torch.load(path, weights_only=True)
        monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
        expected = inception_pytorch.InceptionV3([3], resize_input=False).eval()(resized / 255)[0].flatten(1)
    ours = trusted(path, mode)(images)
    assert np.abs(ours - expected.detach().numpy()).max() < 1e-5 * expected.abs().max()
    other = trusted(path, "legacy_tensorflow")(images)
    assert np.abs(ours - other).max() > 1e-3 * expected.abs().max()  # the protocol is not a mere name


def test_grey_pictures_fill_three_channels(torchscript_inception, trusted):
    extractor = trusted(torchscript_inception, "legacy_tensorflow")
    grey = pictures(2)[:, :1]
    np.testing.assert_array_equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(MarcliError, match=r"8-bit pictures, but these are torch\.float32"):
        extractor(grey.float())


def test_a_changed_file_is_refused_unless_its_hash_is_given(torchscript_inception):
    cpu = torch.device("cpu")
    digest = sha256_file(torchscript_inception)
    with pytest.raises(MarcliError, match=f"not a published Inception file.*--inception-sha256 {digest}"):
        inception.inception_extractor(protocol="clean", path=torchscript_inception, sha256=None, device=cpu)
    with pytest.raises(MarcliError, match="another file, or it was changed"):
        inception.inception_extractor(protocol="clean", path=torchscript_inception, sha256="0" * 64, device=cpu)
    with pytest.raises(UsageError, match="there is no file"):
        inception.verified_sha256(torchscript_inception / "x", expected=None)
    with pytest.raises(UsageError, match="none of legacy_tensorflow, clean, legacy_pytorch"):
        inception.inception_extractor(protocol="cleaner", path=torchscript_inception, sha256=digest, device=cpu)


def test_download_is_checked_and_lands_whole(tmp_path, monkeypatch):
    source = tmp_path / "served.pt"
    source.write_bytes(b"weights" * 1000)
    monkeypatch.setenv("MARCLI_CACHE", str(tmp_path / "cache"))
    good = inception.PublishedFile("net.pt", source.as_uri(), sha256_file(source))
    path = inception.cached_file(good)
    assert path == tmp_path / "cache/inception/net.pt" and path.read_bytes() == source.read_bytes()
    source.unlink()
    assert inception.cached_file(good) == path  # kept, and checked again
    path.write_bytes(b"tampered")
    with pytest.raises(MarcliError, match="another file, or it was changed"):
        inception.cached_file(good)
    path.unlink()
    with pytest.raises(MarcliError, match=r"could not be downloaded.*--inception PATH, or put it at .*net\.pt"):
        inception.cached_file(good)
    source.write_bytes(b"a proxy's login page")
    with pytest.raises(MarcliError, match="not the published file"):
        inception.cached_file(good)
    assert list(path.parent.iterdir()) == []  # nothing half-written stays


def test_downloads_go_where_other_caches_are(tmp_path, monkeypatch):
    source = tmp_path / "served.pt"
    source.write_bytes(b"weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MARCLI_CACHE", "~/own")
    path = inception.cached_file(inception.PublishedFile("net.pt", source.as_uri(), sha256_file(source)))
    assert path == tmp_path / "own/inception/net.pt"


def test_files_that_are_no_network(tmp_path, trusted):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    evil = tmp_path / "evil.pth"
    torch.save({"fc.weight": Payload()}, evil)
    with pytest.raises(MarcliError, match="does not hold the Inception weights"):
        trusted(evil, "legacy_tensorflow")
    assert not (tmp_path / "ran").exists()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(MarcliError, match="does not hold the Inception weights"):
        trusted(cut, "clean")
