"""All that covervlm needs of vLLM: what it overrides, calls and reads, by vLLM's own names.

`test_contract.py` holds it against our sources in `server/engines/vllm/` and against the vLLM that is installed.
"""

_LLAVA = "vllm.model_executor.models.llava"
_NEXT = "vllm.model_executor.models.llava_next"
_ONEVISION = "vllm.model_executor.models.llava_onevision"
_INTERNVL = "vllm.model_executor.models.interns1"
_QWEN = "vllm.model_executor.models.qwen2_5_vl"
_QWEN3 = "vllm.model_executor.models.qwen3_vl"
_CLIP = "vllm.model_executor.models.clip"

_MODEL = {"__init__": "*, vllm_config, prefix=...", "embed_multimodal": "**kwargs"}
_MROPE_MODEL = {
    **_MODEL,
    "get_encoder_cudagraph_config": "",
    "get_mrope_input_positions": "input_tokens, mm_features",
    "recompute_mrope_positions": "input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens",
}
_PROCESSOR = {
    "apply": "inputs, timing_ctx",
    "get_dummy_inputs": "seq_len, mm_counts, mm_options",
    "_get_mm_hashes": "inputs",
    "_get_cache_missing_processor_kwargs": "inputs, mm_is_cached",
    "_apply_hf_processor_main": "mm_items, hf_kwargs",
    "_get_mm_fields_config": "hf_inputs, hf_processor_mm_kwargs",
    "_get_prompt_updates": "mm_items, hf_processor_mm_kwargs, out_mm_kwargs",
}

OVERRIDES = {
    "vllm.multimodal.processing.BaseMultiModalProcessor": _PROCESSOR,
    f"{_LLAVA}.LlavaMultiModalProcessor": _PROCESSOR,
    f"{_NEXT}.LlavaNextMultiModalProcessor": _PROCESSOR,
    f"{_ONEVISION}.LlavaOnevisionMultiModalProcessor": _PROCESSOR,
    f"{_INTERNVL}.InternS1MultiModalProcessor": _PROCESSOR,
    f"{_QWEN}.Qwen2_5_VLMultiModalProcessor": _PROCESSOR,
    f"{_QWEN3}.Qwen3VLMultiModalProcessor": _PROCESSOR,
    "vllm.multimodal.processing.BaseProcessingInfo": {"get_hf_processor": "**kwargs"},
    f"{_LLAVA}.LlavaForConditionalGeneration": _MODEL,
    f"{_NEXT}.LlavaNextForConditionalGeneration": _MODEL,
    f"{_ONEVISION}.LlavaOnevisionForConditionalGeneration": _MODEL,
    f"{_INTERNVL}.InternS1ForConditionalGeneration": _MODEL,
    f"{_QWEN}.Qwen2_5_VLForConditionalGeneration": _MROPE_MODEL,
    f"{_QWEN3}.Qwen3VLForConditionalGeneration": _MROPE_MODEL,
    "vllm.config.multimodal.MultiModalConfig": {"is_multimodal_pruning_enabled": ""},
    "vllm.v1.metrics.loggers.StatLoggerBase": {
        "__init__": "vllm_config, engine_index=...",
        "record": "scheduler_stats, iteration_stats, mm_cache_stats=..., engine_idx=...",
        "log_engine_initialized": "",
    },
    "vllm.utils.argparse_utils.FlexibleArgumentParser": {"error": "message"},
}
"""Methods that ours take the place of, with vLLM's parameters; `...` is any default."""

CALLS = {
    # The plugin's start.
    "vllm.model_executor.models.registry._ModelRegistry": {"register_model": "architecture, path"},
    "vllm.logger": {"init_logger": "name"},
    "vllm.exceptions": {"VLLMValidationError": "message, parameter=field"},
    "vllm.multimodal.registry.MultiModalRegistry": {
        "register_processor": "processor, info=info, dummy_inputs=builder",
    },
    # Processors.
    "vllm.multimodal.processing.BaseProcessingInfo": {
        "get_hf_config": "",
        "get_hf_processor": "**options",
        "get_tokenizer": "",
    },
    _LLAVA: {
        "_build_llava_or_pixtral_hf_info": "context",
        "_build_llava_or_pixtral_hf_processor": "info, dummy_inputs",
        "LlavaMultiModalProcessor": "info, dummy_inputs",
    },
    _NEXT: {"LlavaNextProcessingInfo": "context", "LlavaNextMultiModalProcessor": "info, dummy_inputs"},
    _ONEVISION: {"LlavaOnevisionProcessingInfo": "context", "LlavaOnevisionMultiModalProcessor": "info, dummy_inputs"},
    _INTERNVL: {"InternS1ProcessingInfo": "context", "InternS1MultiModalProcessor": "info, dummy_inputs"},
    _QWEN: {"Qwen2_5_VLProcessingInfo": "context", "Qwen2_5_VLMultiModalProcessor": "info, dummy_inputs"},
    _QWEN3: {"Qwen3VLProcessingInfo": "context", "Qwen3VLMultiModalProcessor": "info, dummy_inputs"},
    f"{_QWEN}.Qwen2_5_VLProcessingInfo": {
        "get_image_processor": "**options",
        "_get_vision_info": "image_width=width, image_height=height, image_processor=processor, mm_kwargs=options",
    },
    f"{_QWEN3}.Qwen3VLProcessingInfo": {
        "get_image_processor": "**options",
        "_get_vision_info": "image_width=width, image_height=height, image_processor=processor, mm_kwargs=options",
    },
    "vllm.multimodal.processing.InputProcessingContext": {"get_merged_mm_kwargs": "options"},
    "vllm.multimodal.parse": {"VideoProcessorItems": "data"},
    "vllm.multimodal.parse.ImageProcessorItems": {"get_image_size": "index"},
    "vllm.multimodal.parse.VideoProcessorItems": {"get": "index"},
    "vllm.multimodal.parse.MultiModalDataItems": {"select": "modalities"},
    "vllm.multimodal.inputs.MultiModalFieldConfig": {"batched": "'image', keep_on_cpu=True"},
    "vllm.multimodal.processing.PromptUpdateDetails": {"select_token_id": "framed, placeholder"},
    "vllm.multimodal.processing": {
        "PromptReplacement": "modality='image', target=target, replacement=replacement",
    },
    # Models.
    "vllm.model_executor.models.utils": {"WeightsMapper": "orig_to_new_regex=names"},
    "vllm.model_executor.models.utils.WeightsMapper": {"__or__": "other"},
    "vllm.distributed": {
        "get_tensor_model_parallel_world_size": "",
        "tensor_model_parallel_all_reduce": "rows",
    },
    f"{_LLAVA}.LlavaForConditionalGeneration": {
        "_image_pixels_to_features": "tower, pixels",
        "get_language_model": "",
    },
    f"{_NEXT}.LlavaNextForConditionalGeneration": {
        "_image_pixels_to_features": "tower, pixels",
        "get_language_model": "",
    },
    f"{_ONEVISION}.LlavaOnevisionForConditionalGeneration": {
        "_image_pixels_to_features": "tower, pixels",
        "get_language_model": "",
    },
    f"{_INTERNVL}.InternS1ForConditionalGeneration": {
        "pixel_shuffle": "states, scale_factor=ratio",
        "get_language_model": "",
    },
    f"{_INTERNVL}.InternS1VisionModel": {"forward": "pixel_values=pixels"},
    f"{_QWEN}.Qwen2_5_VLForConditionalGeneration": {"iter_mm_grid_thw": "features", "get_language_model": ""},
    f"{_QWEN}.Qwen2_5_VisionTransformer": {"forward": "pixels, grid_thw=grids"},
    f"{_QWEN3}.Qwen3VLForConditionalGeneration": {
        "_iter_mm_grid_hw": "input_tokens, features, video_token_id=v, vision_start_token_id=s, "
        "vision_end_token_id=e, spatial_merge_size=m",
        "get_language_model": "",
    },
    f"{_QWEN3}.Qwen3_VisionTransformer": {"forward": "pixels, grid_thw=grids"},
    "vllm.model_executor.models.interfaces_base.VllmModel": {"embed_input_ids": "ids"},
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner": {"get_model": ""},
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": {"get_model": ""},
    "vllm.v1.worker.cpu_model_runner.CPUModelRunner": {"get_model": ""},
    "vllm.platforms.interface.Platform": {"is_cpu": ""},
    # The engine.
    "vllm.engine.arg_utils.AsyncEngineArgs": {
        "add_cli_args": "parser",
        "from_cli_args": "parsed",
        "create_engine_config": "",
    },
    "vllm.utils.argparse_utils": {"FlexibleArgumentParser": "prog='vllm_args', add_help=False, exit_on_error=False"},
    "vllm.utils.argparse_utils.FlexibleArgumentParser": {"parse_args": "words"},
    "vllm.model_executor.model_loader.utils": {"get_model_cls": "config"},
    "vllm.v1.engine.async_llm.AsyncLLM": {
        "from_vllm_config": "config, stat_loggers=factories",
        "generate": "engine_input, sampling_params, name",
        "shutdown": "",
    },
    "vllm.v1.engine.core_client.AsyncMPClient": {
        "call_utility_all_async": "'collective_rpc', method, None, arguments, None",
    },
    "vllm.v1.engine.core.EngineCore": {"collective_rpc": "method, None, arguments, None"},
    "vllm.renderers.base.BaseRenderer": {
        "get_mm_processor": "",
        "get_tokenizer": "",
        "render_cmpl_async": "prompts",
    },
    "vllm.multimodal.inputs.PlaceholderRange": {"get_num_embeds": ""},
    "vllm.config.ModelConfig": {"get_diff_sampling_param": ""},
    "vllm.v1.metrics.prometheus": {"get_prometheus_registry": ""},
    "vllm": {
        "SamplingParams": "n=n, temperature=t, top_p=p, top_k=k, min_p=p, presence_penalty=p, frequency_penalty=p, "
        "repetition_penalty=p, seed=s, stop=s, stop_token_ids=ids, bad_words=words, min_tokens=n, max_tokens=n, "
        "ignore_eos=i, include_stop_str_in_output=i, skip_special_tokens=s, logit_bias=b, logprobs=n, "
        "allowed_token_ids=ids, logprob_token_ids=ids, "
        "prompt_logprobs=n, structured_outputs=s, detokenize=d, output_kind=o",
    },
    "vllm.sampling_params": {"StructuredOutputsParams": "choice=c, json=j, grammar=g, regex=r, structural_tag=s"},
}
"""Functions and classes that we call, with what we pass."""

READS = {
    "vllm": "__version__ ModelRegistry",
    "vllm.plugins": "DEFAULT_PLUGINS_GROUP",
    "vllm.platforms": "current_platform",
    "vllm.platforms.interface.Platform": "device_type",
    "vllm.exceptions": "VLLMClientError",
    "vllm.exceptions.VLLMValidationError": "parameter",
    "vllm.v1.engine.exceptions": "EngineDeadError",
    "vllm.multimodal": "MULTIMODAL_REGISTRY",
    # Configuration.
    "vllm.config": "VllmConfig",
    "vllm.config.VllmConfig": "model_config scheduler_config device_config parallel_config",
    "vllm.config.ModelConfig": "hf_config dtype architecture max_model_len multimodal_config",
    "vllm.config.SchedulerConfig": "max_num_encoder_input_tokens",
    "vllm.config.DeviceConfig": "device_type",
    "vllm.config.ParallelConfig": "pipeline_parallel_size",
    "vllm.config.multimodal.MultiModalConfig": "video_pruning_rate",
    "vllm.engine.arg_utils": "AsyncEngineArgs",
    "vllm.engine.arg_utils.AsyncEngineArgs": "model dtype max_num_seqs structured_outputs_config worker_extension_cls "
    "hf_overrides",
    # Processors.
    "vllm.inputs": "MultiModalHashes",
    "vllm.inputs.MultiModalInput": "prompt_token_ids mm_hashes mm_placeholders",
    "vllm.inputs.TokensPrompt": "prompt_token_ids multi_modal_data multi_modal_uuids mm_processor_kwargs cache_salt",
    "vllm.multimodal.inputs": "MultiModalKwargsItems",
    "vllm.multimodal.inputs.MultiModalFeatureSpec": "data mm_position",
    "vllm.multimodal.inputs.MultiModalFieldElem": "data",
    "vllm.multimodal.inputs.PlaceholderRange": "offset",
    "vllm.multimodal.parse": "MultiModalDataItems",
    "vllm.multimodal.parse.VideoProcessorItems": "metadata",
    "vllm.multimodal.parse.ImageSize": "width height",
    "vllm.multimodal.processing": "BaseDummyInputsBuilder",
    "vllm.multimodal.processing.BaseMultiModalProcessor": "info",
    "vllm.multimodal.processing.BaseProcessingInfo": "ctx",
    "vllm.multimodal.processing.context": "TimingContext InputProcessingContext",
    "vllm.multimodal.processing.ProcessorInputs": "prompt mm_data_items hf_processor_mm_kwargs",
    "vllm.multimodal.processing.PromptUpdate": "modality",
    _LLAVA: "LlavaDummyInputsBuilder",
    _ONEVISION: "LlavaOnevisionDummyInputsBuilder",
    _INTERNVL: "InternS1DummyInputsBuilder",
    _QWEN: "Qwen2_5_VLDummyInputsBuilder",
    _QWEN3: "Qwen3VLDummyInputsBuilder",
    # Models.
    f"{_LLAVA}.LlavaForConditionalGeneration": "config vision_tower multi_modal_projector hf_to_vllm_mapper",
    f"{_NEXT}.LlavaNextForConditionalGeneration": "config vision_tower multi_modal_projector hf_to_vllm_mapper",
    f"{_ONEVISION}.LlavaOnevisionForConditionalGeneration": "config vision_tower multi_modal_projector "
    "hf_to_vllm_mapper",
    f"{_CLIP}.CLIPVisionModel": "vision_model",
    f"{_CLIP}.CLIPVisionTransformer": "encoder",
    f"{_CLIP}.CLIPEncoder": "layers",
    f"{_CLIP}.CLIPEncoderLayer": "self_attn layer_norm1",
    f"{_CLIP}.CLIPAttention": "qkv_proj head_dim num_heads tp_size",
    f"{_INTERNVL}.InternS1ForConditionalGeneration": "vision_tower multi_modal_projector downsample_ratio",
    f"{_QWEN}.Qwen2_5_VLForConditionalGeneration": "config visual",
    f"{_QWEN}.Qwen2_5_VisionTransformer": "merger",
    f"{_QWEN}.Qwen2_5_VisionPatchMerger": "ln_q",
    f"{_QWEN3}.Qwen3VLForConditionalGeneration": "config visual visual_dim multiscale_dim",
    f"{_QWEN3}.Qwen3_VisionTransformer": "merger spatial_merge_size",
    f"{_QWEN3}.Qwen3_VisionPatchMerger": "norm",
    "vllm.v1.worker.encoder_cudagraph_defs.EncoderCudaGraphConfig": "modalities",
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner": "is_multimodal_pruning_enabled",
    "vllm.v1.worker.cpu_model_runner.CPUModelRunner": "is_multimodal_pruning_enabled",
    "vllm.v1.worker.worker_base.WorkerBase": "model_runner",
    # The engine.
    "vllm.v1.engine.async_llm.AsyncLLM": "errored renderer model_config engine_core",
    "vllm.sampling_params.RequestOutputKind": "DELTA",
    "vllm.outputs.RequestOutput": "outputs metrics prompt_logprobs num_cached_tokens",
    "vllm.outputs.CompletionOutput": "index token_ids logprobs finish_reason stop_reason",
    "vllm.logprobs.Logprob": "logprob rank",
    "vllm.v1.metrics.stats.RequestStateStats": "queued_ts scheduled_ts first_token_ts",
    "vllm.v1.metrics.stats.SchedulerStats": "num_running_reqs num_waiting_reqs",
}
"""Names that must exist and that are not called: attributes that we read or set, classes that we only name."""
