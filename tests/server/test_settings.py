"""One option, four sources: flag before environment before file before default; mistakes are one line."""

from importlib.util import find_spec

import pytest
from pydantic import ValidationError

from covervlm.server import cli, serving
from covervlm.server.engines.registry import build_engine, engine_names
from covervlm.server.settings import MIB, SECTIONS, Settings, SettingsError, one_line, unknown_variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"COVERVLM_{name.upper()}", raising=False)


@pytest.fixture
def served(monkeypatch):
    """The settings that `covervlm serve ARGUMENTS` comes to."""

    async def keep(settings):
        kept.append(settings)

    kept = []
    monkeypatch.setattr(serving, "serve", keep)

    def serve(*arguments):
        kept.clear()
        assert cli.main(["serve", *arguments]) == 0
        return kept[0]

    return serve


def test_defaults_need_nothing(served):
    settings = served()
    assert settings == Settings()
    assert (settings.model, settings.host, settings.port, settings.method) == ("demo", "127.0.0.1", 8000, "mmtok")
    assert settings.keep_tokens is settings.keep_ratio is None


def test_flags_are_the_options_in_kebab_case(served):
    settings = served(
        "--model=org/name", "--keep-tokens", "64", "--budget-aliases", "9,5", "--max-image-bytes", "1MiB", "--port=0"
    )
    assert (settings.model, settings.keep_tokens, settings.budget_aliases) == ("org/name", 64, (9, 5))
    assert (settings.max_image_bytes, settings.port) == (MIB, 0)


def test_the_model_may_be_named_without_its_flag(served):
    assert served("org/name", "--keep-tokens", "64").model == "org/name"
    assert served("--port=0", "org/name", "--model", "org/name").model == "org/name"


def test_two_models_are_wrong_usage(served, capsys):
    assert cli.main(["serve", "org/one", "--model", "org/two"]) == 2
    assert "org/one and --model org/two" in capsys.readouterr().err


def test_options_of_vllm_that_have_a_twin_here_set_it(served):
    settings = served("--max-num-seqs", "5", "--limit-mm-per-prompt", '{"image": 3, "audio": 0}')
    assert (settings.max_running, settings.max_images) == (5, 3)
    assert served("--limit-mm-per-prompt", "image=2,video=1").max_images == 3
    assert served("--limit-mm-per-prompt", '{"image": {"count": 2, "width": 336}}').max_images == 2


def test_options_that_only_vllm_has_reach_it_beside_those_of_every_source(served, monkeypatch):
    monkeypatch.setenv("COVERVLM_VLLM_ARGS", "--block-size 16")
    given = ["--tensor-parallel-size", "2", "--max-model-len=4096", "--gpu-memory-utilization", "0.8"]
    settings = served("--engine", "vllm", *given)
    assert settings.vllm_args.split() == [
        *("--block-size", "16", "--max-model-len", "4096"),
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.8"),
    ]
    with pytest.raises(SettingsError, match=r"--tensor-parallel-size 2 .* is for --engine vllm"):
        build_engine(settings.model_copy(update={"engine": "transformers"}))


@pytest.mark.parametrize("limit", ["audio=1", '{"audio": 1}', '{"image": "many"}', '{"image": ', "image", "[3]"])
def test_a_limit_that_cannot_be_kept_is_wrong_usage(served, capsys, limit):
    with pytest.raises(SystemExit) as exit:
        cli.main(["serve", "--limit-mm-per-prompt", limit])
    assert exit.value.code == 2
    assert "--limit-mm-per-prompt: " in capsys.readouterr().err


def test_variables_that_are_no_option_are_remarked_on_with_the_nearest_name():
    names = ["PATH", "COVERVLM_BASE_URL", "covervlm_port", "COVERVLM_MODEL", "COVERVLM_KEEP_TOKEN", "COVERVLM_QQQQQ"]
    assert unknown_variables(names) == [
        "COVERVLM_KEEP_TOKEN is not an option and changes nothing; is it COVERVLM_KEEP_TOKENS?",
        "COVERVLM_QQQQQ is not an option and changes nothing",
    ]


def test_every_option_stands_in_a_section():
    assert next(iter(SECTIONS.values())) == next(iter(Settings.model_fields))
    assert set(SECTIONS.values()) <= set(Settings.model_fields)


def test_a_file_may_begin_with_a_byte_order_mark(served, tmp_path):
    file = tmp_path / "covervlm.toml"
    file.write_text("port = 7\n", encoding="utf-8-sig")
    assert served("--config", str(file)).port == 7


def test_the_nearest_source_wins(served, monkeypatch, tmp_path):
    file = tmp_path / "covervlm.toml"
    file.write_text(
        'port = 1\nmax-images = 1\nkeep_ratio = 0.5\nbudget_aliases = [7, 3]\nfeature_cache_bytes = "2MiB"\n'
    )
    monkeypatch.setenv("COVERVLM_PORT", "2")
    monkeypatch.setenv("COVERVLM_MAX_IMAGES", "2")
    settings = served("--config", str(file), "--port", "3")
    assert (settings.port, settings.max_images, settings.keep_ratio) == (3, 2, 0.5)
    assert (settings.budget_aliases, settings.feature_cache_bytes) == ((7, 3), 2 * MIB)


def test_the_environment_may_name_the_file(served, monkeypatch, tmp_path):
    file = tmp_path / "covervlm.toml"
    file.write_text("port = 7\n")
    monkeypatch.setenv("COVERVLM_CONFIG", str(file))
    assert served().port == 7


@pytest.mark.parametrize(("value", "expected"), [("192,64,16", (192, 64, 16)), ("64", (64,)), ("", ()), ("5, 5", (5,))])
def test_aliases_in_the_environment_are_a_list_with_commas(monkeypatch, value, expected):
    monkeypatch.setenv("COVERVLM_BUDGET_ALIASES", value)
    assert Settings().budget_aliases == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adaptive-budget", "192:64"], "adaptive_budget: should be FLOOR:CEILING"),
        (["--adaptive-budget", "64:192", "--keep-tokens", "64"], "keep_tokens and adaptive_budget are 2 budgets"),
        (["--anticipate"], "anticipate needs adaptive_budget"),
        (["--port", "99999"], "port: "),
        (["--port", "http"], "port: "),
        (["--keep-tokens", "0"], "keep_tokens: "),
        (["--keep-ratio", "1.5"], "keep_ratio: "),
        (["--keep-ratio", "nan"], "keep_ratio: "),
        (["--keep-tokens", "5", "--keep-ratio", "0.5"], "keep_tokens and keep_ratio"),
        (["--budget-aliases", "64,none"], "budget_aliases: "),
        (["--budget-aliases", "0"], "budget_aliases: "),
        (["--max-image-bytes", "10XB"], "max_image_bytes: "),
        (["--max-waiting", "0"], "max_waiting: "),
        (["--dtype", "int8"], "dtype: "),
        (["--config", "/does/not/exist.toml"], "config file /does/not/exist.toml: No such file"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(served, capsys, arguments, words):
    assert cli.main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("covervlm serve: error: " + words)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"), [("prot = 1", "there is no option 'prot'; is it 'port'?"), ("port = ", "config file")]
)
def test_a_bad_file_is_one_line_that_names_what_is_wrong(served, tmp_path, capsys, text, words):
    file = tmp_path / "covervlm.toml"
    file.write_text(text)
    assert cli.main(["serve", "--config", str(file)]) == 2
    assert words in capsys.readouterr().err


def test_settings_cannot_change():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "tensorflow"}, "no engine 'tensorflow'; choose one of auto"),
        ({"method": "magic"}, "'magic'; choose one of mmtok"),
    ],
)
def test_what_only_the_engine_can_check_is_checked_before_a_model_is_loaded(options, words):
    with pytest.raises(SettingsError, match=words):
        build_engine(Settings(**options))


@pytest.mark.parametrize("name", engine_names())
def test_every_engine_name_builds_or_says_what_to_install(name):
    if name == "vllm" and find_spec("vllm") is None:
        with pytest.raises(SettingsError, match=r"install covervlm\[vllm\]"):
            build_engine(Settings(engine=name))
        return
    engine = build_engine(Settings(engine=name, max_running=3))
    assert not engine.ready


def test_one_line_names_the_value():
    with pytest.raises(ValidationError) as error:
        Settings(port=-1)
    assert one_line(error.value) == "port: input should be greater than or equal to 0, not -1"


def test_remote_media_is_on_and_one_flag_turns_it_off(served):
    assert served().remote_media
    assert not served("--no-remote-media").remote_media


def test_media_may_be_allowed_by_host_network_and_folder(served, tmp_path):
    settings = served(
        "--allowed-media-hosts=a.test,.b.test",
        "--allowed-media-networks=10.1.0.0/16",
        f"--allowed-media-dir={tmp_path}",
    )
    assert settings.allowed_media_hosts == ("a.test", ".b.test")
    assert settings.allowed_media_networks == ("10.1.0.0/16",)
    assert settings.allowed_media_dir == tmp_path


@pytest.mark.parametrize("bad", [{"allowed_media_networks": "10.1.2.3/16"}, {"allowed_media_dir": "/no/such/folder"}])
def test_media_that_cannot_be_allowed_is_a_mistake(bad):
    with pytest.raises(ValidationError):
        Settings(**bad)


@pytest.mark.parametrize("flags", [["--api-key=a,b"], ["--api-key", "a", "--api-key", "b"]])
def test_keys_may_be_repeated_or_listed(served, flags):
    assert served(*flags).api_key == Settings(api_key=("a", "b")).api_key
