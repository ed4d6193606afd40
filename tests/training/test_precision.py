"""What is chosen for a processor: its precision, how it multiplies float32, its threads."""

import os
from collections.abc import Iterator

import pytest
import torch

from imdb_rlhf.config.machine import Device, Precision
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.models import products
from imdb_rlhf.training import precision
from imdb_rlhf.training.precision import (
    choose_float32_products,
    is_exact,
    resolve_device,
    resolve_precision,
    resolve_threads,
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def processor(monkeypatch: pytest.MonkeyPatch, *, amx: bool, avx512_bf16: bool, amd: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    features = {"sse4a": amd, "avx512_bw": True, "amx_tile": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [(True, True, "bf16"), (True, False, "bf16"), (False, True, "bf16"), (False, False, "float32")],
    ids=["Sapphire Rapids", "AMX alone", "Zen 4, Cooper Lake", "Cascade Lake"],
)
def test_a_cpu_that_multiplies_bf16_natively_is_used_so(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, expected: str
) -> None:
    processor(monkeypatch, amx=amx, avx512_bf16=avx512_bf16)
    assert resolve_precision(Precision.auto, "cpu") == expected
    assert [resolve_precision(wanted, "cpu") for wanted in (Precision.bf16, Precision.float32)] == ["bf16", "float32"]


def test_a_torch_without_the_probes_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_precision(Precision.auto, "cpu") == "float32"


@pytest.mark.parametrize(
    ("amd", "amx", "exact", "expected"),
    [
        (True, False, True, "medium"),
        (True, False, False, "highest"),  # a later oneDNN might round
        (True, True, True, "highest"),
        (False, False, True, "highest"),
        (False, True, True, "highest"),
    ],
)
def test_amd_multiplies_float32_by_onednn_as_long_as_that_rounds_nothing(
    monkeypatch: pytest.MonkeyPatch, amd: bool, amx: bool, exact: bool, expected: str
) -> None:
    torch.set_float32_matmul_precision("highest")
    processor(monkeypatch, amx=amx, avx512_bf16=True, amd=amd)
    monkeypatch.setattr(precision, "is_exact", lambda: exact)
    choose_float32_products()
    assert torch.get_float32_matmul_precision() == expected


def test_float32_products_are_exact_as_this_machine_is_set_up() -> None:
    choose_float32_products()
    assert is_exact()
    random = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((1, 64, 32), (128, 160, 480), (512, 768, 1024)):
        left, right = torch.randn(rows, inner, generator=random), torch.randn(inner, columns, generator=random)
        truth = left.double() @ right.double()
        assert (left @ right - truth).abs().max() < 1e-5 * inner**0.5  # bf16 factors: 1e-2


def test_rounded_factors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.mm(left.bfloat16().double(), right.bfloat16().double()).float()

    assert is_exact()
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not is_exact()


def test_the_switch_for_one_product_is_put_back() -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), products.bf16_factors():
        assert matmul.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert matmul.fp32_precision == before


def test_threads_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_threads(3) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 7, 9}, raising=False)
    assert resolve_threads(None) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS has none
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert resolve_threads(None) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resolve_threads(None) == 1


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(Device.auto) == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU here"):
        resolve_device(Device.cuda)
