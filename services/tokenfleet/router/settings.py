"""What the router can be told."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from tokenfleet.core.scheduling import POLICIES, PredictionSettings, SchedulerLimits
from tokenfleet.router.objectives import Objectives, parse_objectives
from tokenfleet.runtime.discovery import PeerTargets
from tokenfleet.runtime.settings import ServiceSettings, Targets


class RouterSettings(ServiceSettings):
    """Durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="TOKENFLEET_ROUTER_")

    listen: str = Field("127.0.0.1:8083", description="host:port of the gRPC server; port 0: a free one")
    loader: str = Field("127.0.0.1:8085", description="host:port of the model-loader")
    workers: PeerTargets = Field(
        default_factory=list,
        description="the workers: host:port, kubernetes://SERVICE:PORT or redis://HOST:PORT/0#NAME",
    )
    policy: str = Field("predicted", description=f"how to choose: {', '.join(sorted(POLICIES))}")
    model_policies: Targets = Field(
        default_factory=list, description="another way for some models: MODEL=POLICY, comma-separated"
    )
    zone_penalty_s: float = Field(
        0.25, ge=0, description="how much slower an answer at home may be before another zone is asked for it"
    )
    prefix_index_bytes: int = Field(
        256 * 1024 * 1024, ge=65_536, description="the most that the index of cached prefixes may take"
    )
    ttft_objectives: Targets = Field(
        ["interactive=2.5", "standard=10"],
        description="seconds in which a class wants its first token, CLASS=SECONDS, comma-separated: what "
        "would wait longer for its turn on a worker waits in the router, in its order; classes that are not "
        "named go wherever there is room",
    )
    itl_objectives: Targets = Field(
        default_factory=list,
        description="seconds between two tokens that a class wants, CLASS=SECONDS, comma-separated: nothing "
        "more of it is placed where steps would take longer, unless they do everywhere",
    )
    seed: int | None = Field(None, description="of the draws among equals; none: a new one every start")
    queue_limit: int = Field(
        1024, ge=0, description="waiting requests for each model before new ones are shed"
    )
    no_worker_timeout_s: float = Field(
        30.0, ge=0, description="how long a worker that went away is expected back, and waited for"
    )
    engine_queue_ratio: float = Field(
        0.125,
        ge=0,
        le=4,
        description="sequences sent to an engine beyond what it runs at once, as a share of that (at least "
        "one), so that it never starves between two load samples",
    )
    default_deadline_s: float = Field(300.0, gt=0, description="deadline of a request that names none")
    decision_log_ratio: float = Field(0.01, ge=0, le=1, description="share of decisions that are logged")
    explain_records: int = Field(4096, ge=0, description="decisions kept for explanations; 0: none")
    explain_candidates: int = Field(16, ge=0, description="workers recorded with a decision")

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        return _checked(policy)

    @field_validator("model_policies")
    @classmethod
    def _known_each(cls, pairs: list[str]) -> list[str]:
        for pair in pairs:
            model, equals, policy = pair.rpartition("=")
            if not (model and equals):
                raise ValueError(f"{pair!r} is not MODEL=POLICY")
            _checked(policy)
        return pairs

    @field_validator("ttft_objectives", "itl_objectives")
    @classmethod
    def _readable(cls, pairs: list[str]) -> list[str]:
        parse_objectives(pairs)
        return pairs

    def objectives(self) -> Objectives:
        return Objectives(parse_objectives(self.ttft_objectives), parse_objectives(self.itl_objectives))

    def by_model(self) -> dict[str, str]:
        """The policies of the models that have one of their own."""
        split = (pair.rpartition("=") for pair in self.model_policies)
        return {model: policy for model, _, policy in split}

    def prediction(self) -> PredictionSettings:
        return PredictionSettings(zone_penalty_s=self.zone_penalty_s, index_bytes=self.prefix_index_bytes)

    def limits(self) -> SchedulerLimits:
        return SchedulerLimits(
            queue_limit=self.queue_limit,
            patience_s=self.no_worker_timeout_s,
            engine_queue_ratio=self.engine_queue_ratio,
            candidates_recorded=self.explain_candidates,
        )


def _checked(policy: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(sorted(POLICIES))}")
    return policy
