"""The run's configuration: frozen models, one YAML file, nothing unknown accepted.

default < file < `--set key=value`. A stage owns its section. Fields marked `_execution` say how
work is done, not what comes out, and stay out of an artifact's identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

_execution: dict[str, Any] = {"identity": False}

Probability = Annotated[float, Field(gt=0, le=1)]

# Upper bounds, far beyond use: what is absurd is refused where it is written, by the AlignmentRun
# resource too. A platform narrows them for its runs (`runs.limits` of charts/selfalign).
Count = Annotated[PositiveInt, Field(le=1_000_000)]  # in one request, round, batch or part
Total = Annotated[PositiveInt, Field(le=1_000_000_000)]  # of requests, prompts or steps
Tokens = Annotated[PositiveInt, Field(le=2**24)]
Seconds = Annotated[PositiveFloat, Field(le=7 * 24 * 3600)]
Ratio = Annotated[PositiveFloat, Field(le=1000)]


class Model(BaseModel):
    """Base of all configuration models."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class SamplingConfig(Model):
    """How completions are drawn."""

    temperature: float = Field(1.0, ge=0, le=1000, description="0 is greedy")
    top_p: Probability = Field(1.0, description="nucleus mass")
    max_new_tokens: Tokens = Field(256, description="tokens; longer completions are cut")
    repetition_penalty: Ratio = Field(1.0, description="1.0 is none")


class ServerConfig(Model):
    """An OpenAI-compatible server: how it is reached, never what it serves."""

    url: str = Field(description="base address; that of vLLM ends in /v1")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds its key; null: it needs none",
    )
    concurrency: Count = Field(64, description="requests in flight")
    timeout_seconds: Seconds = Field(600, description="for one answer")
    give_up_after_seconds: Seconds = Field(
        300, description="of failures in a row of one request, before the stage is tried anew"
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("expected an address such as http://host:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "an address here holds no credentials, query or fragment: name the environment "
                "variable of the key in key_variable"
            )
        return url


class EngineConfig(Model):
    """What generates and scores."""

    kind: Literal["transformers", "vllm", "openai", "fake"] = Field(
        "transformers",
        description="vllm on GPUs; transformers anywhere; openai: a server of its own; fake only "
        "in tests",
    )
    server: ServerConfig | None = Field(
        None,
        description="where openai asks; a run on a cluster may never set it",
        json_schema_extra=_execution,
    )
    served_model: str | None = Field(
        None, description="what the server calls the base model (openai); null: base_model.path"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of weights; auto is the checkpoint's own"
    )
    batch_size: Count = Field(
        32, description="prompts per batch (transformers); must divide records_per_part"
    )
    max_length: Tokens | None = Field(
        None, description="tokens of prompt and completion together; null is the model's own"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="of the engine's own, for speed, memory and precision; a wrong one is refused "
        "with those there are (openai: fields of each request)",
    )
    tensor_parallel_size: Count = Field(
        1, description="GPUs per engine (vllm)", json_schema_extra=_execution
    )
    gpu_memory_utilization: Probability = Field(
        0.9,
        description="share of GPU memory the engine may take (vllm)",
        json_schema_extra=_execution,
    )

    @model_validator(mode="after")
    def _server_where_there_is_one(self) -> EngineConfig:
        if (self.kind == "openai") != (self.server is not None):
            raise ValueError("engine.server and engine.kind openai belong together; give both")
        if self.served_model is not None and self.kind != "openai":
            raise ValueError("engine.served_model is for engine.kind openai")
        return self


class BaseModelConfig(Model):
    """A model from elsewhere, such as the one that every training starts from."""

    path: str = Field(description="a local Hugging Face model directory, or a hub id")
    revision: str | None = Field(
        None,
        description="commit of a hub id (required for one); for a directory, null means its "
        "files are hashed",
    )


class SeedsConfig(Model):
    """The directory of lines written by people, and how many lines of each sort it must have."""

    directory: Path = Field(Path("seeds"), description="laid out as seeds/ of this project")
    general: Count = Field(175, description="lines in general.txt")
    topic_guided: Count = Field(20, description="lines in topic_guided.jsonl")
    principles: Count = Field(16, description="rules in principles.txt")
    exemplars: Count = Field(5, description="dialogues in exemplars.txt")


_max_quarantined: Any = Field(
    0.01,
    ge=0,
    le=1,
    description="share of rows that cannot be put to the model (too long, no text, refused) above "
    "which the stage fails; one row always may be, unless this is 0",
    json_schema_extra=_execution,
)


class StageModel(Model):
    """What every stage's section has."""

    num_shards: PositiveInt = Field(
        1, le=10_000, description="workers that share the stage", json_schema_extra=_execution
    )


class GenerationStageModel(StageModel):
    """What stages that generate have in common."""

    engine: EngineConfig | None = Field(None, description="null: the run's engine")
    records_per_part: Count = Field(
        256, description="records committed together; what a killed worker can lose"
    )
    max_quarantined: float = _max_quarantined


class InstructConfig(GenerationStageModel):
    """Stage 1: self-instruct and topic-guided red-teaming self-instruct."""

    general_requests: int = Field(
        60_000, ge=0, le=1_000_000_000, description="prompts sent to the model for general tasks"
    )
    general_in_context: Count = Field(5, description="seed tasks shown in each prompt")
    general_sampling: SamplingConfig = SamplingConfig(
        temperature=1.0, top_p=0.98, max_new_tokens=1024
    )
    topic_rounds: Count = Field(5, description="rounds in which topics are grown")
    topic_requests_per_round: Count = Field(10, description="prompts per question type and round")
    topics_in_context: Count = Field(5, description="known topics shown in each prompt")
    topics_per_type: Count | None = Field(
        None, description="cap on topics of one type; null: only balanced to the smallest type"
    )
    topic_sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=384)
    questions_in_context: Count = Field(5, description="seed questions in each prompt")
    questions_per_request: Count = Field(5, description="(type, topic) hints per prompt")
    name_first_hint: bool = Field(
        True, description="the prompt ends with its first hint; weak models make up hints otherwise"
    )
    question_sampling: SamplingConfig = SamplingConfig(
        temperature=1.0, top_p=0.95, max_new_tokens=384
    )
    min_words: Count = Field(4, description="candidates with fewer words are dropped")
    max_words: Count = Field(150, description="candidates with more words are dropped")


class CurateConfig(StageModel):
    """Stage 1, the end: what is kept."""

    novelty_threshold: Probability = Field(
        0.7, description="drop when ROUGE-L F exceeds this against any seed or kept prompt"
    )
    near_duplicate_threshold: Probability = Field(
        0.8, description="drop when the Jaccard similarity of shingles reaches this"
    )
    near_duplicate_shingle: Count = Field(5, description="words per shingle")
    decontamination_ngram: Count = Field(
        8, description="drop a prompt that shares a word n-gram of this length with a test item"
    )
    decontamination_overlap: Probability = Field(
        0.8,
        description="drop a prompt whose content words overlap with a test item's by this Jaccard "
        "similarity: a rewording that no n-gram finds",
    )
    records_per_part: Count = Field(4096, description="records per part")
    max_prompts: Total | None = Field(
        None, description="keep at most this many, of each source its share of the candidates"
    )


class AlignConfig(GenerationStageModel):
    """Stage 2: principle-driven self-alignment."""

    sampling: SamplingConfig = SamplingConfig(temperature=0.5, top_p=0.95, max_new_tokens=512)
    min_answer_characters: int = Field(
        160,
        ge=0,
        le=1_000_000,
        description="shorter answers are dropped; refusals are not exempted or banned",
    )
    require_cited_rule: bool = Field(True, description="drop a thought that cites no rule")
    exemplar_leak_ngram: Count = Field(
        12, description="drop an answer that repeats this many words of an exemplar in a row"
    )


class LoraConfig(Model):
    """Low-rank adapters (peft)."""

    r: Count = Field(16, description="rank")
    alpha: Count = Field(16, description="scale numerator")
    dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    target_modules: list[str] | Literal["all-linear"] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"], description="layers adapted"
    )


class TrainConfig(StageModel):
    """Stages 3 and 4: fine-tune the base model on prompt and response."""

    method: Literal["lora", "qlora", "full"] = Field("lora", description="what is trained")
    lora: LoraConfig = LoraConfig()
    learning_rate: PositiveFloat = Field(4e-4, le=10, description="peak")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field("cosine")
    warmup_steps: int = Field(100, ge=0, le=1_000_000_000)
    weight_decay: float = Field(0.0, ge=0, le=1000)
    max_grad_norm: PositiveFloat = Field(1.0, le=1e9)
    epochs: PositiveFloat = Field(1.0, le=10_000)
    max_steps: Total | None = Field(None, description="stop after; null: epochs decide")
    global_batch_size: Count = Field(768, description="examples per optimiser step")
    micro_batch_size: Count | None = Field(
        None,
        description="examples per forward pass and device; must divide global_batch_size; null: "
        "as many as the GPU's memory holds (8 on a CPU or with DeepSpeed)",
        json_schema_extra=_execution,
    )
    max_length: Tokens = Field(768, description="tokens; longer examples are cut at the end")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the training")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit (bitsandbytes) keeps 2 bytes a parameter instead of 8"
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="recompute activations to save memory; null: where it does not fit otherwise",
        json_schema_extra=_execution,
    )
    checkpoint_every_steps: Total | None = Field(
        None,
        description="steps between checkpoints a killed worker resumes from; null: every five "
        "minutes, or more seldom where that takes more than 2% of the time",
        json_schema_extra=_execution,
    )
    deepspeed: dict[str, Any] | None = Field(
        None, description="a DeepSpeed configuration, passed through; null: none"
    )
    num_processes: Count = Field(
        1, description="training processes per node (torchrun)", json_schema_extra=_execution
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainConfig:
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}; make it one"
            )
        return self


class EngraveConfig(TrainConfig):
    """Stage 3: principle engraving."""

    max_length: Tokens = Field(512, description="tokens; longer examples are cut at the end")


class CloneConfig(TrainConfig):
    """Stage 4: verbose cloning."""


class ElaborateConfig(GenerationStageModel):
    """Stage 4: the engraved model answers at length."""

    sampling: SamplingConfig = SamplingConfig(
        temperature=0.3, top_p=0.7, max_new_tokens=512, repetition_penalty=1.1
    )
    min_unfinished_characters: int = Field(
        128,
        ge=0,
        le=1_000_000,
        description="drop an answer cut by the token limit that is shorter than this",
    )
    persona_leak_ngram: Count = Field(
        8, description="drop an answer that repeats this many words of the verbose prompt in a row"
    )


class JudgeConfig(Model):
    """A model that says which of two answers is better, the final model's or another's, and
    whether an answer refuses.

    On a cluster only the platform's configuration names it, never a run.
    """

    model: BaseModelConfig = Field(
        description="the judge's own model: not the base model, nor one that was made of it"
    )
    engine: EngineConfig | None = Field(None, description="null: the engine of evaluate")
    template: Path | None = Field(
        None,
        description="text with the holes {query}, {a} and {b}, and {rubric} where wanted, that "
        '"A" or "B" continues; null: the built-in one',
    )
    labelled: Path | None = Field(
        None,
        description="JSON lines of prompt, first, second and winner (first, second or tie), as "
        "people judged: how far the judge agrees is reported; null: not measured",
    )
    refusals: Literal["judge", "wording"] = Field(
        "judge",
        description="which of the two decides whether an answer refuses; the other is asked "
        "beside it, and how often they agree is reported",
    )
    refusal_template: Path | None = Field(
        None,
        description='text with the holes {query} and {answer} that "complies", "partly" or '
        '"refuses" continues; null: the built-in one',
    )


class HarnessConfig(Model):
    """Tasks of EleutherAI's lm-evaluation-harness (extra `harness`)."""

    tasks: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]] = Field(
        min_length=1,
        description="names of tasks, groups or tags (`lm-eval ls tasks`); metrics are "
        "harness.<name>.<metric>",
    )
    include_path: Path | None = Field(
        None,
        description="a directory with tasks of your own as YAML, and their data; may hold Python "
        "that is run, so that on a cluster a run may never set it; null: none",
    )
    limit: Total | None = Field(
        None, description="documents of each task, the first ones; null: all"
    )

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice; name it once")
        return tasks


class EvaluateConfig(StageModel):
    """Scores with intervals."""

    engine: EngineConfig | None = Field(None, description="null: the run's engine")
    max_quarantined: float = _max_quarantined
    heldout: Path | None = Field(
        Path("default"),
        description="prompts with what to expect: JSON lines, XSTest, StrongREJECT or IFEval, or "
        "a directory of them; default: the set that comes with selfalign; null: none",
    )
    hhh: Path | None = Field(None, description="HHH: BIG-bench's or the Hub's, or JSON lines")
    truthfulqa: Path | None = Field(
        None, description="TruthfulQA: mc_task.json, the CSV or the Hub's, or JSON lines"
    )
    hhh_template: Path | None = Field(None, description="null: the built-in template")
    truthfulqa_template: Path | None = Field(None, description="null: the built-in template")
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=512)
    samples: Count = Field(
        1,
        description="answers to each held-out prompt, each with a seed of its own; more than one "
        "needs sampling.temperature above 0. Intervals count prompts, not answers",
    )
    choosing_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the items of heldout (of each kind and side of refusal), hhh (of "
        "each category), truthfulqa and harness (of each task) that the gate's rules see, drawn "
        "anew for each final model; scores are told from the others. null: both are of all items",
    )
    principled_sampling: SamplingConfig | None = Field(
        None, description="for base with principles in context; null: same as sampling"
    )
    ablate_principles: list[PositiveInt] = Field(
        default=[], description="also score the base with each of these rules left out"
    )
    judge: JudgeConfig | None = Field(
        None, description="compares held-out answers, each pair in both orders; null: none does"
    )
    harness: HarnessConfig | None = Field(
        None, description="tasks of lm-evaluation-harness, for every model; null: none"
    )
    confidence: float = Field(
        0.9, gt=0, lt=1, description="of intervals; each end is wrong in (1 - this) / 2 of nights"
    )
    bootstrap_samples: Count = Field(2000, description="resamples for paired intervals")

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluateConfig:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples {self.samples}: with sampling.temperature 0 every answer would be the "
                "same; raise it, or make samples 1"
            )
        return self


class GateRule(Model):
    """One condition on the final model. Every bound that is set must hold.

    `min_difference` and `max_difference` bound the ends of the paired interval of
    (final - opponent), so that too few items fail. The other bounds are on what was measured.
    """

    metric: str = Field(
        description="e.g. heldout.aligned, heldout.refusal.must, guard.empty, hhh, mc1, "
        "judge.win_rate, harness.arc_easy.acc; metric/kind is one kind of item, metric/* each "
        "kind on its own"
    )
    against: Literal["base", "promoted", "anchor"] | None = Field(
        None, description="whom the final model is compared to; null: nobody"
    )
    min_difference: float | None = Field(
        None,
        description="the interval's lower end must be above this (0: better; -0.03: not worse by "
        "0.03 or more)",
    )
    max_difference: float | None = Field(
        None, description="the interval's upper end must be below this"
    )
    min_ratio: float | None = Field(None, gt=0, description="final / opponent, at least")
    max_ratio: float | None = Field(None, gt=0, description="final / opponent, at most")
    at_least: float | None = Field(None, description="the final model's mean, at least")
    at_most: float | None = Field(None, description="the final model's mean, at most")

    @model_validator(mode="before")
    @classmethod
    def _better_is_meant(cls, values: Any) -> Any:
        """`{metric, against}` alone asks for "better"."""
        if isinstance(values, dict) and set(values) == {"metric", "against"} and values["against"]:
            return {**values, "min_difference": 0.0}
        return values

    @model_validator(mode="after")
    def _has_a_bound(self) -> GateRule:
        compared = [self.min_difference, self.max_difference, self.min_ratio, self.max_ratio]
        has_comparison = any(bound is not None for bound in compared)
        if self.metric.startswith("judge.win_rate"):
            if self.against not in ("base", "promoted"):
                raise ValueError(f"{self.metric}: the judge compares `against` base or promoted")
            has_comparison = has_comparison or (self.at_least, self.at_most) != (None, None)
        for least, most in (
            ("min_difference", "max_difference"),
            ("min_ratio", "max_ratio"),
            ("at_least", "at_most"),
        ):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{self.metric}: {least} {low:g} is above {most} {high:g}")
        own = self.metric.split("/")[0] in ("judge.agreement", "judge.refusal_agreement")
        if own and self.against is not None:
            raise ValueError(f"{self.metric} is the judge's own: leave out `against`")
        if has_comparison and self.against is None:
            raise ValueError(f"{self.metric}: a difference or ratio needs `against`")
        if not has_comparison and self.against is not None:
            raise ValueError(
                f"{self.metric}: `against` needs min_difference, max_difference, min_ratio or "
                "max_ratio"
            )
        if not has_comparison and self.at_least is None and self.at_most is None:
            raise ValueError(f"{self.metric}: the rule has no bound, such as at_least")
        return self


class GuardsConfig(Model):
    """Ceilings on the share of held-out answers that are broken, whatever they score.

    Each null turns one guard off.
    """

    empty: Probability | None = Field(0.02, description="answers without a word")
    one_word: Probability | None = Field(
        0.25, description="a single word, where no pattern of the item is satisfied by it"
    )
    repeats: Probability | None = Field(0.05, description="over 40% of its 4-grams came before")
    cut: Probability | None = Field(0.25, description="ran into max_new_tokens")
    other_language: Probability | None = Field(
        0.05, description="another script or language than the prompt's"
    )
    echo: Probability | None = Field(0.05, description="the prompt again, or a label of the chat")
    same: Probability | None = Field(
        0.1, description="the same words as the answer to another prompt, and no refusal"
    )
    word_list: Probability | None = Field(0.1, description="words without sentences")
    max_increase: Probability | None = Field(
        0.05, description="share above the promoted model's, at the interval's upper end"
    )
    min_length_ratio: Ratio | None = Field(
        0.67, description="mean words of an answer, final / promoted and final / anchor"
    )
    max_length_ratio: Ratio | None = Field(1.5, description="likewise, at most")

    @classmethod
    def ceilings(cls) -> tuple[str, ...]:
        """The guards, by the field that bounds each."""
        return tuple(name for name in cls.model_fields if not name.startswith(("min_", "max_")))


class PromoteConfig(StageModel):
    """The gate: every rule and every guard must hold."""

    rules: list[GateRule] | None = Field(
        None, description="null: the default rules (`selfalign gate plan` lists them)"
    )
    guards: GuardsConfig | None = Field(GuardsConfig(), description="null: no guards")
    anchor: str | None = Field(
        None,
        min_length=4,
        description="key, or its beginning, of a promoted model that bounds how far later ones "
        "may fall; null: the last one that was better for sure than the anchor before it",
    )
    approval: Literal["automatic", "manual"] = Field(
        "automatic",
        description="manual: what the gate passes is promoted once a person approves it "
        "(`selfalign approve`); a run on a cluster may never set it",
    )


class NotifyConfig(Model):
    """Where a notice goes when a run has ended."""

    url_variable: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds the address, which is a secret",
    )
    format: Literal["cloudevents", "slack"] = Field(
        "cloudevents",
        description="CloudEvents 1.0 in JSON, or a message as Slack's webhooks take it",
    )
    link: str | None = Field(
        None,
        pattern=r"^https?://[!-~]*\{run\}[!-~]*$",
        max_length=2000,
        description="web address of a run's report or dashboard, with {run} for its name, which a "
        "notice then holds; null: the command that shows the report is all there is",
    )


class RunConfig(Model):
    """Everything a run needs. Paths are relative to the configuration file."""

    seed: int = Field(0, ge=0, le=2**53 - 1, description="of every random choice")
    store: str = Field("store", description="a directory, or s3://bucket/prefix")
    base_model: BaseModelConfig
    seeds: SeedsConfig = SeedsConfig()
    engine: EngineConfig = EngineConfig()
    instruct: InstructConfig = InstructConfig()
    curate: CurateConfig = CurateConfig()
    align: AlignConfig = AlignConfig()
    engrave: EngraveConfig = EngraveConfig()
    elaborate: ElaborateConfig = ElaborateConfig()
    clone: CloneConfig = CloneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    notify: list[NotifyConfig] = Field(
        default=[],
        max_length=8,
        description="who is told how a run ended; a run on a cluster may never set it",
    )

    @field_validator("notify")
    @classmethod
    def _each_address_once(cls, notify: list[NotifyConfig]) -> list[NotifyConfig]:
        if len({target.url_variable for target in notify}) < len(notify):
            raise ValueError("two targets name the same url_variable; give each its own")
        return notify

    @model_validator(mode="after")
    def _judge_is_another_model(self) -> RunConfig:
        judge = self.evaluate.judge
        if judge is None:
            return self
        if self.evaluate.heldout is None:
            raise ValueError(
                "evaluate.judge compares held-out answers, and evaluate.heldout is null: set it, "
                "or make evaluate.judge null"
            )
        ours, engine = self.evaluate.engine or self.engine, judge.engine
        is_base = judge.model.path == self.base_model.path
        if engine and ours.server and engine.server and engine.server.url == ours.server.url:
            asked = engine.served_model or judge.model.path
            is_base = is_base or asked == (ours.served_model or self.base_model.path)
        if is_base:
            raise ValueError(
                f"evaluate.judge.model: {judge.model.path!r} is the base model, whose answers are "
                "judged: name another model"
            )
        return self

    @model_validator(mode="after")
    def _parts_hold_whole_batches(self) -> RunConfig:
        # A batch never crosses a part, so that a resumed worker forms the batches an
        # uninterrupted one would have formed: same padding, same bytes.
        for name in ("instruct", "align", "elaborate"):
            section: GenerationStageModel = getattr(self, name)
            engine = section.engine or self.engine
            if engine.kind == "transformers" and section.records_per_part % engine.batch_size:
                raise ValueError(
                    f"{name}.records_per_part {section.records_per_part} is not a multiple of "
                    f"engine.batch_size {engine.batch_size}; make it one"
                )
        return self
