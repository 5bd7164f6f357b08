"""Every option of the server, once: flags of `covervlm serve`, COVERVLM_* environment, optional TOML file."""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from covervlm.server.core.generation import Recipe
from covervlm.server.limits.adaptive_budget import BudgetRange
from covervlm.server.limits.keys import configured, read_key_file

MIB = 1024 * 1024
MAX_PIXELS = 89_478_485
"""Where Pillow's own guard against decompression bombs begins."""


class SettingsError(Exception):
    """A setting that cannot work; the message is one line for the person who starts the server."""


class TomlFile(PydanticBaseSettingsSource):
    """The file that `--config` or COVERVLM_CONFIG names; flags and environment come before it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("the file is read whole")

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            options = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise SettingsError(f"config file {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise SettingsError(f"config file {path}: {error}") from None
        return {name.replace("-", "_"): value for name, value in options.items()}


def _split(value: Any) -> Any:
    items = value if isinstance(value, list | tuple) else [value]
    parts = [part.strip() for item in items for part in str(item).strip("[]").split(",")]
    return tuple(part for part in parts if part)


Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Numbers = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)]
"""Lists on the command line and in the environment: separated by commas, or the option given several times."""


SECTIONS = {
    "model": "config",
    "embeddings, labels and clusters": "clip_model",
    "address, TLS and log": "host",
    "keys and limits of each key": "api_key",
    "pruning": "method",
    "requests at once": "max_running",
    "guide 'agent'": "agent_tokens",
    "comparing with the unpruned model": "shadow",
    "time limits": "receive_timeout",
    "sizes": "max_inflight_bytes",
    "images at URLs": "remote_media",
}
"""Titles over the options in the order of the fields, each with the first field that it stands over."""


class Settings(BaseSettings):
    """Options of the server. Sizes take units, e.g. 512MiB."""

    model_config = SettingsConfigDict(
        env_prefix="COVERVLM_", frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )
    from_outside: ClassVar[bool] = True
    """Whether the environment and the TOML file are read."""

    config: Path | None = None
    """TOML file with these options; flags and environment win over it"""

    model: str = Field(default="demo", min_length=1)
    """the built-in 'demo', a local folder, or a hub id"""
    served_model_name: str | None = Field(default=None, min_length=1)
    """the name clients use; by default the hub id, or the folder's own name"""
    engine: str = "auto"
    """what runs the model: transformers, vllm, or auto for vllm where it has a CUDA GPU"""
    vllm_args: str = ""
    """further options for --engine vllm, e.g. --vllm-args='--tensor-parallel-size 2'"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """what the model computes in; auto is float32 on a CPU and the checkpoint's own on a GPU"""
    quantization: Literal["none", "int8"] = "none"
    """int8 rounds the language model's weights on a CPU: quicker answers in less memory, not quite the same"""
    runtime: Literal["torch", "openvino"] = "torch"
    """what runs the language model on a CPU: openvino answers sooner and in more memory, and not every model"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the model; by default torch decides"""
    tool_format: Literal["hermes", "mistral", "llama3_json", "json"] | None = None
    """how the model writes calls of functions; by default as its chat template does, where that takes functions"""

    clip_model: str = Field(default="auto", min_length=1)
    """CLIP or SigLIP model of the embedding, classifying and clustering endpoints: demo, none, a local folder or a hub
    id; auto is the demo's for the demo model and none otherwise"""
    data_dir: Path | None = None
    """folder of classifiers, streams, jobs and counted requests; by default covervlm in ~/.local/share"""

    snapshot_images: int = Field(default=64, ge=1)
    """images after which a stream is saved"""
    snapshot_seconds: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """most seconds that an image waits until its stream is saved"""

    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 means every address of this machine; set --api-key then"""
    allowed_hosts: Texts = ()
    """host names that requests may use, e.g. vlm.example.com, or * for any; by default any, but only this machine's own
    names where --host is a loopback address"""
    port: int = Field(default=8000, ge=0, le=65535)
    """port to listen on; 0 takes a free one"""
    ssl_certfile: Path | None = None
    """TLS certificate chain in PEM; serves https"""
    ssl_keyfile: Path | None = None
    """the certificate's private key, if not in its file"""
    ssl_keyfile_password: SecretStr | None = None
    """the private key's password, if it has one"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """lines of this level and above are written"""
    log_format: Literal["text", "json"] = "text"
    """lines for people, or a JSON object each"""
    log_content: bool = False
    """write questions and all texts of exceptions into the log; by default neither"""

    api_key: Texts = Field(default=(), repr=False)
    """keys, one of which every caller needs, plain or as sha256:HEX, comma-separated or repeated; by default none"""
    api_keys_file: Path | None = None
    """more keys, one sha256:HEX a line, # for comments"""
    metrics_token: SecretStr | None = None
    """bearer token that /metrics takes in place of an API key"""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """most requests of one key per minute"""
    key_concurrent_requests: int | None = Field(default=None, ge=1)
    """most requests of one key at once"""
    key_images_per_minute: int | None = Field(default=None, ge=1)
    """most images and videos of one key per minute"""
    key_classifiers: int = Field(default=100, ge=0)
    """most classifiers that one key may keep, and as many projections"""
    key_streams: int = Field(default=100, ge=0)
    """most streams that one key may keep"""
    key_unfinished_jobs: int = Field(default=8, ge=1)
    """most jobs of one key that are queued or running"""
    key_stored_bytes: ByteSize = Field(default=ByteSize(2 * 1024 * MIB), ge=0)
    """disk space of one key's classifiers and streams together"""
    cors_origins: Texts = ()
    """web origins whose pages may call the API, e.g. https://app.example.com"""

    method: str = "mmtok"
    """pruning method where a request names none: mmtok, vision_coverage, text_coverage, divprune, divprune_cen,
    cls_attention, cdpruner, cdpruner_cen, scope, holov, random, uniform, resize or none"""
    pruning_methods: Texts = ()
    """methods that a request may name beside none, e.g. mmtok,uniform; by default all that are built in or installed"""
    recipe: Recipe = "default"
    """released: split questions, round budgets and join crops as the methods' released programs do"""
    keep_tokens: int | None = Field(default=None, ge=1)
    """vision tokens kept of each image where a request has no budget; by default all"""
    keep_ratio: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """the same as a share of each image's tokens"""
    adaptive_budget: str | None = None
    """FLOOR:CEILING, e.g. 64:192: where a request has no budget, keep CEILING tokens of each image when nobody waits
    and fewer as the queue grows, never less than FLOOR"""
    anticipate: bool = False
    """let --adaptive-budget keep fewer tokens ahead of a peak that past days and weeks foretell"""
    budget_aliases: Numbers = (192, 64, 16)
    """budgets that /v1/models lists as MODEL:BUDGET, e.g. 192,64,16"""

    max_running: int = Field(default=32, ge=1)
    """answers that decode at once"""
    max_waiting: int = Field(default=256, ge=1)
    """requests that wait for a slot before others are refused"""
    feature_cache_bytes: ByteSize = Field(default=ByteSize(512 * MIB), ge=0)
    """memory for image features seen before; 0 turns the cache off"""
    prefix_cache_bytes: ByteSize = Field(default=ByteSize(256 * MIB), ge=0)
    """memory for prompts read before, whose chats then go on sooner (engine transformers); 0 turns the cache off"""

    agent_tokens: int = Field(default=16, ge=1)
    """vision tokens of the first pass that guide 'agent' makes with the served model"""
    agent_url: str | None = None
    """OpenAI-compatible base URL that answers for guide 'agent' instead, e.g. http://host/v1"""
    agent_model: str = "default"
    """the model's name at --agent-url"""
    agent_api_key: SecretStr | None = None
    """the key for --agent-url"""
    agent_timeout: float = Field(default=5.0, gt=0)
    """seconds until a request goes on without its agent"""

    shadow: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """share of the pruned answers that are compared with the unpruned model afterwards, while nobody waits, e.g. 0.01;
    what is seen goes to the metrics"""
    shadow_seed: int = 0
    """what the share is drawn by"""
    shadow_waiting: int = Field(default=64, ge=1)
    """answers that wait to be compared before further ones are left out"""
    shadow_bytes: ByteSize = Field(default=ByteSize(256 * MIB), ge=0)
    """memory of their images; part of --max-inflight-bytes, and given back where a request needs it"""

    receive_timeout: float = Field(default=60.0, gt=0)
    """seconds that a request's head, and then its body, may take to arrive; a long body has a second more for each
    256 KiB"""
    request_timeout: float = Field(default=600.0, gt=0)
    """seconds until a request is given up; the header X-Request-Timeout shortens it for one request"""
    send_timeout: float = Field(default=60.0, gt=0)
    """seconds that a client may stop reading before its connection is closed"""
    drain_seconds: float = Field(default=0.0, ge=0)
    """after SIGTERM, seconds in which /ready is 503 and new requests are refused before connections close, so that
    load balancers notice"""
    shutdown_timeout: int = Field(default=30, ge=0)
    """seconds that running requests then have to end"""
    max_inflight_bytes: ByteSize = Field(default=ByteSize(4096 * MIB), ge=1)
    """memory of the bodies and decoded images of all requests together; what comes beyond it is refused"""
    max_body_bytes: ByteSize = Field(default=ByteSize(64 * MIB), ge=1)
    """largest request body"""
    max_image_bytes: ByteSize = Field(default=ByteSize(20 * MIB), ge=1)
    """largest encoded image"""
    max_image_pixels: int = Field(default=50_000_000, ge=1, le=MAX_PIXELS)
    """most pixels of an image, width times height"""
    max_images: int = Field(default=8, ge=0)
    """most images and videos in one request"""
    max_video_frames: int = Field(default=64, ge=1)
    """most frames of a video, or that are sampled from a video file"""
    max_video_bytes: ByteSize = Field(default=ByteSize(48 * MIB), ge=1)
    """largest video: a file, or all encoded frames of a list together"""
    max_video_pixels: int = Field(default=64_000_000, ge=1)
    """most pixels of a video, frames times width times height; fewer frames are sampled from a file"""
    remote_media: bool = True
    """fetch images and videos at http(s) URLs, from public addresses only; --no-remote-media turns it off"""
    allowed_media_hosts: Texts = ()
    """the only hosts to fetch from, e.g. img.example.com,.cdn.example.com; by default any"""
    allowed_media_networks: Texts = ()
    """non-public networks to fetch from all the same, e.g. 10.1.0.0/16; by default none"""
    allowed_media_dir: Path | None = None
    """folder whose images and videos callers may name as file:///...; by default none"""
    max_media_redirects: int = Field(default=3, ge=0)
    """redirects followed for one image"""
    media_timeout: float = Field(default=10.0, gt=0)
    """seconds until fetching an image is given up"""
    media_read_timeout: float = Field(default=5.0, gt=0)
    """seconds that a fetch may stand still before it is given up"""
    media_threads: int = Field(default=2, ge=1)
    """threads that decode images"""

    @field_validator("budget_aliases")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(budget < 1 for budget in value):
            raise ValueError("budgets start at 1")
        return tuple(dict.fromkeys(value))

    @field_validator("api_key")
    @classmethod
    def _hashed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """From here on the server knows only hashes of the keys."""
        return tuple(configured(key) for key in value)

    @model_validator(mode="after")
    def _tls(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @property
    def key_hashes(self) -> tuple[str, ...]:
        """Hashes of all accepted keys. Raises SettingsError where the file of keys is unusable."""
        if self.api_keys_file is None:
            return self.api_key
        try:
            return (*self.api_key, *read_key_file(self.api_keys_file))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(f"api_keys_file {self.api_keys_file}: {reason}") from None

    @field_validator("allowed_media_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)
        return value

    @field_validator("allowed_media_dir")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("there is no such folder")
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        budgets = {name for name in ("keep_tokens", "keep_ratio", "adaptive_budget") if getattr(self, name) is not None}
        if len(budgets) > 1:
            raise ValueError(f"{' and '.join(sorted(budgets, reverse=True))} are {len(budgets)} budgets; set one")
        return self

    @model_validator(mode="after")
    def _something_to_lower(self) -> Self:
        if self.anticipate and self.adaptive_budget is None:
            raise ValueError("anticipate needs adaptive_budget, e.g. 64:192: the budget that it lowers")
        return self

    @field_validator("adaptive_budget")
    @classmethod
    def _range(cls, value: str | None) -> str | None:
        if value is not None:
            BudgetRange.parse(value)
        return value

    @property
    def budget_range(self) -> BudgetRange | None:
        """What `adaptive_budget` names."""
        return None if self.adaptive_budget is None else BudgetRange.parse(self.adaptive_budget)

    @property
    def model_name(self) -> str:
        """What clients call the model. A folder's path stays on this machine; only its name is shown."""
        if self.served_model_name is not None:
            return self.served_model_name
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if not cls.from_outside:
            return (init_settings,)
        return init_settings, env_settings, TomlFile(settings_cls)


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A remark on each variable whose name looks like one of our options but is not, with the nearest option."""
    prefix = "COVERVLM_"
    # The last is not an option of the server; commands and clients read it.
    known = [*(field.upper() for field in Settings.model_fields), "BASE_URL"]
    remarks = []
    for name in sorted(set(names)):
        rest = name.upper().removeprefix(prefix)
        if name.upper().startswith(prefix) and rest not in known:
            nearest = get_close_matches(rest, known, 1)
            advice = f"; is it {prefix}{nearest[0]}?" if nearest else ""
            remarks.append(f"{name} is not an option and changes nothing{advice}")
    return remarks


def one_line(error: ValidationError) -> str:
    """What is wrong with the first bad setting, named as in the file and the environment."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        nearest = get_close_matches(name, Settings.model_fields, 1)
        return f"there is no option {name!r}" + (f"; is it {nearest[0]!r}?" if nearest else "")
    if not name:
        return message
    return f"{name}: {message[0].lower()}{message[1:]}, not {first['input']!r}"
