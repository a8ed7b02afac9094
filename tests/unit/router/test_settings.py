"""A setting that cannot be meant is refused by name."""

import pytest

from tokenfleet.core.scheduling.sampling import sample_interval_ms
from tokenfleet.router.settings import RouterSettings
from tokenfleet.runtime.settings import load_settings


@pytest.mark.parametrize(
    ("flags", "complaints"),
    [
        (["--policy", "luckiest"], ["policy", "least_loaded", "predicted"]),
        (["--model-policies", "m=luckiest"], ["model_policies", "luckiest", "prefix_approx"]),
        (["--model-policies", "round_robin"], ["model_policies", "MODEL=POLICY"]),
        (["--workers", "nowhere"], ["workers", "host:port"]),
        (["--ttft-objectives", "urgent=1"], ["ttft_objectives", "CLASS=SECONDS", "interactive"]),
        (["--ttft-objectives", "batch=1,batch=2"], ["ttft_objectives", "batch is given twice"]),
        (["--itl-objectives", "batch=0"], ["itl_objectives", "above 0"]),
        (["--itl-objectives", "batch=nan"], ["itl_objectives", "above 0"]),
        (["--queue-limit", "-1"], ["queue_limit", "greater than or equal to 0"]),
        (["--engine-queue-ratio", "9"], ["engine_queue_ratio"]),
    ],
)
def test_bad_settings_are_named(
    flags: list[str], complaints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(RouterSettings, flags)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(complaint in told for complaint in complaints), told


def test_some_models_may_have_a_policy_of_their_own() -> None:
    settings = load_settings(RouterSettings, ["--model-policies", "a=random,org/b=v2=round_robin"])
    assert settings.by_model() == {"a": "random", "org/b=v2": "round_robin"}


def test_a_worker_named_twice_is_watched_once() -> None:
    settings = load_settings(RouterSettings, ["--workers", "a:1,b:2,a:1"])
    assert settings.workers == ["a:1", "b:2"]


def test_the_sampling_interval_widens_with_the_fleet() -> None:
    assert sample_interval_ms(20) == 50
    assert 150 <= sample_interval_ms(100) <= 300
    assert sample_interval_ms(1000) == 2000
    assert sample_interval_ms(4000) == 8000
