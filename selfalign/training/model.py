"""The base model made ready for training: whole, under an adapter, or quantised under one."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError, DataError, EngineError, is_out_of_memory
from selfalign.language_model import WITH_LANGUAGE_MODEL, language_model_options, require_whole
from selfalign.serving.form import ChatForm
from selfalign.training.chat import fit_form
from selfalign.training.failures import engine_errors

if TYPE_CHECKING:
    import torch

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A directory in Hugging Face's layout, or a hub id with its commit."""

    path: str
    revision: str | None = None

    @property
    def is_directory(self) -> bool:
        return Path(self.path).is_dir()

    @property
    def stable_name(self) -> str:
        """What files may call it: never a path of this machine."""
        return "base" if self.is_directory else self.path

    def load(self, loader: Any, **options: Any) -> Any:
        """`loader.from_pretrained` of it. Raises DataError; EngineError when the hub is away."""
        options |= {"revision": self.revision, "trust_remote_code": False}  # else it may ask
        with self._loading():
            return loader.from_pretrained(self.path, **options)

    def multimodal(self) -> str | None:
        """Its `model_type` where it takes more than text; None for a text model. Raises as
        `config` does."""
        whole = self._whole_config()
        return None if whole.get_text_config() is whole else str(whole.model_type)

    def config(self) -> Any:
        """Of its language model.

        Raises as `load` does, and DataError where its language model cannot be told from the rest.
        """
        whole = self._whole_config()
        return language_model_options(whole).get("config", whole)

    def _whole_config(self) -> Any:
        from transformers import AutoConfig

        whole = self.load(AutoConfig)
        if whole.get_text_config() is not whole and whole.model_type not in WITH_LANGUAGE_MODEL:
            raise DataError(
                f"base_model {self.path}: {whole.model_type} takes more than text; the language "
                f"model alone can be trained of {', '.join(WITH_LANGUAGE_MODEL)}",
                remedy="save its language model alone, as the architecture of its text_config, "
                "and train that one",
            )
        return whole

    def tokenizer(self) -> Any:
        """Its tokenizer. Raises as `load` does."""
        from transformers import AutoTokenizer

        tokenizer = self.load(AutoTokenizer)
        with self._loading():
            _ = tokenizer.all_special_ids  # of one that its vocabulary lacks, it asks for ever
        return tokenizer

    def load_model(self, **options: Any) -> Any:
        """Its language model, with weights. Raises as `config` does."""
        from transformers import AutoModelForCausalLM

        alone = language_model_options(self._whole_config())
        options |= {"output_loading_info": True, **alone}
        model, report = self.load(AutoModelForCausalLM, **options)
        require_whole(model, report, f"base_model {self.path}")
        if alone:
            model._weight_conversions = None  # else it is saved under the names of the whole
        return model

    def without_weights(self) -> Any:
        """Its language model on torch's meta device: its modules, no memory. Raises as `load`."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self.config()
        with self._loading(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        with engine_errors(f"loading {self.path}"):
            try:
                yield
            except Exception as e:  # a damaged file raises nearly anything
                passing = isinstance(e, RuntimeError) and not isinstance(e, RecursionError)
                if passing or is_out_of_memory(e) or (isinstance(e, OSError) and e.errno):
                    raise  # the machine or its disk, not what is on it
                raise self._error(e) from e

    def _error(self, error: Exception) -> DataError | EngineError:
        message = f"base_model {self.path}: cannot be loaded: {str(error)[:500]}"
        causes = {type(cause).__name__ for cause in _chain(error)}
        if not self.is_directory and causes & {"ConnectError", "ConnectTimeout", "ReadTimeout"}:
            return EngineError(message, remedy="look at the network, or use a local directory")
        return DataError(
            message, remedy="base_model.path must be a model in Hugging Face's layout, or a hub id"
        )


def _chain(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def check_base_model(config: TrainConfig, base: BaseModel, form: ChatForm) -> None:
    """Find out from a base model's configuration and tokenizer that it cannot be trained.

    Raises DataError for a tokenizer that does not fit the model or has no end-of-sequence token,
    and for a model of more than text whose language model cannot be told from the rest;
    ConfigurationError for target modules that the model does not have; and what `fit_form` does.
    """
    if (name := base.multimodal()) is not None:
        trained = base.config().model_type
        _log.info("training.language_model_alone", base_model=name, trained=trained)
    fit_form(form, load_tokenizer(base)[0])
    if config.method != "full" and config.lora.target_modules != "all-linear":
        _check_targets(config.lora.target_modules, base.without_weights())


def load_tokenizer(base: BaseModel) -> tuple[Any, int, int]:
    """The tokenizer, the id that ends a response, and one to pad with. Raises DataError."""
    tokenizer = base.tokenizer()
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"base_model {base.path}: its tokenizer has no eos_token, expected one: without it "
            "the model cannot be taught to end an answer",
            remedy="name the end-of-sequence token in tokenizer_config.json",
        )
    eos = int(tokenizer.eos_token_id)
    pad = eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    check_token_id(base, tokenizer, max(eos, pad))
    return tokenizer, eos, pad


def check_token_id(base: BaseModel, tokenizer: Any, token_id: int) -> None:
    """Raise DataError for a token that has no row in the base model's embedding."""
    rows = getattr(base.config(), "vocab_size", None)
    if rows is not None and token_id >= rows:
        raise DataError(
            f"base_model {base.path}: its tokenizer gives {_token(tokenizer, token_id)} the id "
            f"{token_id}, but the model's embedding has {rows} rows",
            remedy="resize the model's embedding to its tokenizer, or remove the added token from "
            "the tokenizer's files",
        )


def _token(tokenizer: Any, token_id: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(token_id))


def base_dtype(base: BaseModel) -> torch.dtype:
    """The precision the base model's weights are stored in, which the result keeps."""
    import torch

    dtype = base.config().dtype
    return torch.float32 if dtype is None else dtype


def for_hardware(config: TrainConfig) -> TrainConfig:
    """The configuration with float32 in the place of bfloat16 where the GPU has none."""
    import torch

    if config.precision == "float32" or not torch.cuda.is_available():
        return config
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return config
    _log.warning("training.no_bfloat16", device=torch.cuda.get_device_name(), instead="float32")
    return config.model_copy(update={"precision": "float32"})


def load_for_training(config: TrainConfig, base: BaseModel) -> Any:
    """The model with what is trained in float32, and the rest as small as `precision` allows.

    Raises ConfigurationError for a method or target module that does not exist here, DataError
    for a model that cannot be loaded.
    """
    import torch
    from transformers import GenerationConfig

    low = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    # Optimisers need float32 for small updates to count; frozen weights do not, and DeepSpeed
    # keeps its own float32 copy, a share in each process.
    whole = config.method == "full" and config.deepspeed is None
    options: dict[str, Any] = {"dtype": torch.float32 if whole else low, "use_safetensors": True}
    if config.method == "qlora":
        options |= _quantised(low)
    model = base.load_model(**options)
    # Checkpoints would refuse a generation config whose fields contradict each other.
    model.generation_config = GenerationConfig()
    if config.method == "full":
        return model
    if config.method == "qlora":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=bool(config.gradient_checkpointing),
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    return with_adapter(config, model)


def _quantised(compute_dtype: torch.dtype) -> dict[str, Any]:
    import torch

    missing = [
        what
        for what, there in (
            ("CUDA device", torch.cuda.is_available()),
            ("package bitsandbytes", importlib.util.find_spec("bitsandbytes") is not None),
        )
        if not there
    ]
    if missing:
        raise ConfigurationError(
            f"method qlora needs a CUDA device and bitsandbytes, got no {' and no '.join(missing)}",
            remedy="use method lora, or run on a GPU with selfalign[qlora] installed",
        )
    return {
        "quantization_config": nf4(compute_dtype),
        "device_map": {"": torch.cuda.current_device()},
    }


def nf4(compute_dtype: torch.dtype) -> Any:
    """QLoRA's quantisation (Dettmers et al. 2023, sec. 3): 4-bit NormalFloat, constants too."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def adapted_modules(config: TrainConfig, base: BaseModel) -> dict[str, int]:
    """How many modules of each name the adapter will change; empty for full fine-tuning.

    Raises ConfigurationError for a name in `lora.target_modules` that the base model does not
    have, and for an embedding that its output layer shares.
    """
    if config.method == "full":
        return {}
    model = base.without_weights()
    if config.lora.target_modules != "all-linear":
        _check_targets(config.lora.target_modules, model)
    names = with_adapter(config, model).base_model.targeted_module_names
    counts = Counter(name.rpartition(".")[2] for name in names)
    return dict(sorted(counts.items()))


def _check_targets(targets: list[str], model: Any) -> None:
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    for target in targets:
        found = [module for name, module in modules.items() if f".{name}".endswith(f".{target}")]
        if not found:
            raise ConfigurationError(
                f"lora.target_modules: the base model has no module {target!r}; it has "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in modules}))}",
                remedy="name modules of the base model, or use all-linear",
            )
        if tied and any(module in embeddings for module in found):
            raise ConfigurationError(
                f"lora.target_modules: {target!r} shares its weights with another layer of the "
                "base model (tie_word_embeddings), so an adapter of one cannot be merged",
                remedy=f"remove {target} from the list, or use all-linear, which leaves it out",
            )


def with_adapter(config: TrainConfig, model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
    )
    adapted = get_peft_model(model, lora)
    if config.precision == "bfloat16":
        # Adapters are float32 and compute in bfloat16. peft would copy every layer's input to
        # float32 first and keep the copy for the backward pass: most of an adapter's time and
        # memory.
        for module in adapted.modules():
            if getattr(module, "cast_input_dtype_enabled", False):
                module.cast_input_dtype_enabled = False
    return adapted
