"""The configuration file: what is accepted, and how a mistake is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError
from selfalign.load import load_config, write_resolved


def config_file(directory: Path, text: str) -> Path:
    path = directory / "selfalign.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping"),
        ("base_model: {path: m}\nalgin: {}", "unknown key; did you mean 'align'"),
        ("base_model: {path: m}\nalign: {samplng: {}}", "did you mean 'sampling'"),
        ("align: {}", "base_model: required, but not given"),
        ("base_model: {path: m}\nseed: x", "seed: input should be a valid integer"),
        ("base_model: {path: m}\nalign: {sampling: {top_p: 1.5}}", "less than or equal to 1"),
        ("base_model: {path: m}\nseed: 1\nseed: 2", "given twice"),
        ("base_model: {path: m\nseed: 1", "not valid YAML"),
        ("base_model: {path: m}\nengrave: {micro_batch_size: 7}", "not a multiple of"),
        ("base_model: {path: m}\nalign: {records_per_part: 33}", "align.records_per_part 33"),
        ("base_model: {path: m}\npromote: {rules: [{metric: hhh, at_most: .nan}]}", "finite num"),
        ("- a", "expected a mapping of keys at the top, got list"),
        ("base_model: {path: m}\nalign:\n", "align: expected keys and values below it, got None"),
        ("base_model: {path: m}\nnotify: [{url_var: H}]", "did you mean 'url_variable'"),
        ("base_model: {path: m}\npromote: {rules: [{metrics: mc1}]}", "did you mean 'metric'"),
        ("base_model: {path: m}\nstore: a\7", ":2: not valid YAML: unacceptable character"),
        ("#" * (1 << 20) + "\n", "more than 1048576 characters"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = config_file(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_a_later_source_wins_and_is_remembered(tmp_path: Path) -> None:
    path = config_file(tmp_path, "base_model: {path: m}\nseed: 1\nalign: {num_shards: 2}")
    loaded = load_config(path, ["seed=5", "engrave.lora.r=4"])
    assert loaded.config.seed == 5
    assert loaded.config.align.num_shards == 2
    assert loaded.config.engrave.lora.r == 4
    assert loaded.origins["seed"] == "--set"
    assert loaded.origins["align.num_shards"] == "file"


def test_a_falsy_override_is_not_dropped(tmp_path: Path) -> None:
    path = config_file(tmp_path, "base_model: {path: m}")
    loaded = load_config(path, ["align.require_cited_rule=false", "engrave.warmup_steps=0"])
    assert loaded.config.align.require_cited_rule is False
    assert loaded.config.engrave.warmup_steps == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("base_model.path.deeper=1", "base_model.path.deeper: path is 'm', not a section"),
        ("seed=2024-13-45", "the value is not valid YAML"),
        (f"seed={'9' * 5000}", "the value is not valid YAML"),
        ("engine=&a {options: *a}", "the value is not valid YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_a_malformed_override_is_refused(tmp_path: Path, override: str, said: str) -> None:
    path = config_file(tmp_path, "base_model: {path: m}")
    with pytest.raises(ConfigurationError, match=f"--set .*{said}"):
        load_config(path, [override])


def test_paths_count_from_the_file_and_a_hub_id_stays(tmp_path: Path) -> None:
    path = config_file(
        tmp_path,
        "base_model: {path: org/name, revision: abc}\nstore: out\nevaluate: {heldout: h.jsonl}",
    )
    config = load_config(path).config
    assert config.base_model.path == "org/name"
    assert config.store == str(tmp_path / "out")
    assert config.evaluate.heldout == tmp_path / "h.jsonl"
    assert config.seeds.directory == tmp_path / "seeds"


def test_a_directory_whose_name_is_no_utf_8_is_refused_wherever_it_is_named(tmp_path: Path) -> None:
    latin = tmp_path / os.fsdecode(b"caf\xe9")
    latin.mkdir()
    path = latin / "selfalign.yaml"
    path.write_text("base_model: {path: hub/id, revision: abc}\n")
    for overrides in ((), (f"store={tmp_path}",)):  # the seeds lie there, too
        with pytest.raises(ConfigurationError, match=r"caf\\udce9.*: expected a name in UTF-8"):
            load_config(path, overrides)
    elsewhere = (f"store={tmp_path}", f"seeds.directory={tmp_path}")
    assert load_config(path, elsewhere).config.seeds.directory == tmp_path


def test_the_resolved_file_loads_to_the_same_configuration(tmp_path: Path) -> None:
    path = config_file(tmp_path, "base_model: {path: m}\nevaluate: {heldout: h.jsonl}")
    config = load_config(path, ["align.num_shards=3"]).config
    other = tmp_path / "elsewhere" / "config.yaml"
    write_resolved(config, other)
    assert load_config(other).config == config


def test_a_section_may_be_merged_into_another(tmp_path: Path) -> None:
    path = config_file(
        tmp_path,
        "base_model: {path: m}\nengrave: &t {epochs: 2, warmup_steps: 0}\n"
        "clone:\n  <<: *t\n  epochs: 3\n",
    )
    config = load_config(path).config
    assert (config.clone.epochs, config.clone.warmup_steps) == (3, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: {path: m}\nstore: {{ STORE }}\n", "expected a key"),
        ("? [a]\n: 1\n", "expected a key"),
        ("base_model: {path: m}\nseeds: 5\n", "seeds"),
        ("base_model: {path: m}\nseeds: []\n", "seeds"),
        ("base_model: {path: m}\nstore: ~nobody-at-all/x\n", "~nobody-at-all/x"),
        ("base_model: {path: m}\nseeds: {directory: ~nobody-at-all/x}\n", "seeds.directory"),
        ("base_model: {path: m}\nseed: 2024-13-45\n", "cannot be read: month must be in 1..12"),
        (f"base_model: {{path: m}}\nseed: {'9' * 5000}\n", "cannot be read: Exceeds the limit"),
        ("base_model: {path: m}\nengine: &a {options: *a}\n", "more than 100000 values, aliases"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load_config(config_file(tmp_path, text))


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/p", "file://KEY:SECRET@host/p", "s3://bucket/p?key=SECRET"]
)
def test_credentials_in_the_stores_url_are_refused_and_not_repeated(
    tmp_path: Path, url: str
) -> None:
    path = config_file(tmp_path, "base_model: {path: m}")
    with pytest.raises(ConfigurationError) as refused:
        load_config(path, [f"store={url}"])
    assert "SECRET" not in str(refused.value)


def test_a_file_without_end_is_refused_and_a_pipe_is_read() -> None:
    with pytest.raises(ConfigurationError, match=r"/dev/zero: .*more than 1048576"):
        load_config(Path("/dev/zero"))
    reader, writer = os.pipe()
    os.write(writer, b"base_model: {path: m}")
    os.close(writer)
    try:
        assert load_config(Path(f"/dev/fd/{reader}")).config.base_model.path.endswith("m")
    finally:
        os.close(reader)
